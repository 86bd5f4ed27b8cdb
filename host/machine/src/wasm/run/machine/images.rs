//! Images make no difference that a machine or its clients could see.

use super::tests::{guest, on_apply_thread};
use super::*;
use crate::wasm::{Engine, NoImage};

/// The same guest without images and with them.
fn without_and_with_images(bytes: &[u8]) -> [Arc<Component>; 2] {
    let engine = Engine::new().unwrap();
    [
        Component::compile_without_images(&engine, bytes).unwrap(),
        Component::compile(&engine, bytes).unwrap(),
    ]
    .map(Arc::new)
}

/// Runs the commands without images, with images, and with the globals written down and put back before each.
fn run_without_and_with_images(bytes: &[u8], commands: &[String]) {
    let context = EntryContext::default();
    let profile = Profile {
        memory_bytes: 80 << 20,
        command_fuel: 50_000_000,
        ..Profile::default()
    };
    let [without, with] = without_and_with_images(bytes);
    let mut machines = [&without, &with, &with].map(|component| {
        let label = MachineLabel::default();
        WasmMachine::new(Arc::clone(component), profile.clone(), context, label).unwrap()
    });
    for command in commands {
        if let Some(instance) = &mut machines[2].live {
            instance.freeze_and_thaw().unwrap();
        }
        let command = [Bytes::from(command.clone())];
        let [one, two, three] = machines
            .each_mut()
            .map(|machine| machine.apply(&context, &command).to_end().unwrap());
        assert_eq!(one, two, "{command:?}");
        assert_eq!(one, three, "{command:?}");
    }
    let memories = machines
        .each_ref()
        .map(|machine| machine.live.as_ref().map(Instance::memory_bytes));
    assert!(memories[0].is_some() && memories == [memories[0]; 3]);
    let without = machines[0].live.as_mut().map(Instance::freeze_and_thaw);
    assert!(matches!(without, Some(Err(Failure::Local { .. }))));
    let saved = machines.each_mut().map(|machine| {
        let mut saved = Vec::new();
        machine.save(&context, &mut saved).to_end().unwrap();
        saved
    });
    assert!(saved[0] == saved[1] && saved[0] == saved[2]);
}

#[test]
fn images_show_in_no_outcome_and_no_fuel() {
    on_apply_thread(|| {
        let faults = "add get recurse add divide memory add handles loop get";
        let mut commands = faults.split(' ').map(String::from).collect::<Vec<_>>();
        commands.insert(5, "out of bounds".into());
        run_without_and_with_images(&guest(), &commands);

        let large = "x".repeat(50_000);
        let kv = (0..400).map(|n| match n % 4 {
            0 => format!("put key-{n} {large}"),
            1 => format!("incr n {n}"),
            2 => format!("get key-{}", n / 2),
            _ => format!("del key-{}", n / 3),
        });
        run_without_and_with_images(skep_examples::KV, &kv.collect::<Vec<_>>());
    });
}

#[test]
fn images_take_nothing_of_what_a_profile_allows() {
    on_apply_thread(|| {
        let [without, with] = without_and_with_images(&guest());
        let starts = |component: &Arc<Component>, profile: &Profile| {
            let (context, label) = (EntryContext::default(), MachineLabel::default());
            WasmMachine::new(Arc::clone(component), profile.clone(), context, label).is_ok()
        };
        let instances = |instances| Profile {
            instances,
            ..Profile::default()
        };
        let memory = |pages: u64| Profile {
            memory_bytes: pages << 16,
            ..Profile::default()
        };
        let profiles = (0..8).map(instances).chain((0..40).map(memory));
        let mut started = [0, 0];
        for profile in profiles {
            let starts = [&without, &with].map(|component| starts(component, &profile));
            assert_eq!(starts[0], starts[1], "{profile:?}");
            started[usize::from(starts[0])] += 1;
        }
        assert!(started[0] > 1 && started[1] > 1, "{started:?}");
    });
}

#[test]
fn a_machine_with_the_host_s_names_runs_without_images() {
    on_apply_thread(|| {
        let text = include_str!("../../../../tests/machine/guest.wat")
            .replace("⟨optional⟩", "")
            .replace("⟨describe⟩", "")
            .replace("⟨too-many⟩", "0");
        let end = text.rfind(')').unwrap();
        let named = format!(
            "{} (instance $empty) (export \"skep-freeze0\" (instance $empty)))",
            &text[..end]
        );
        let engine = Engine::new().unwrap();
        let component = Component::compile(&engine, &wat::parse_str(named).unwrap()).unwrap();
        assert_eq!(component.inspection().no_image, Some(NoImage::TakenName));
        assert!(component.exports().images.is_empty());
        let (context, label) = (EntryContext::default(), MachineLabel::default());
        let profile = Profile::default();
        let mut machine = WasmMachine::new(Arc::new(component), profile, context, label).unwrap();
        let added = machine.apply(&context, &["add".into()]).to_end().unwrap();
        assert_eq!(
            added.outcomes,
            [Outcome::Reply(Bytes::copy_from_slice(&1u64.to_le_bytes()))]
        );
    });
}
