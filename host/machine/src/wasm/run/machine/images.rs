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

/// The instance that a machine has, if it has one.
fn present<T>(machine: &WasmMachine, ask: impl FnOnce(&mut Instance) -> T) -> Option<T> {
    let mut present = machine.present.writing().to_end();
    present.get_mut().as_mut().map(ask)
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
        present(&machines[2], |instance| instance.freeze_and_thaw().unwrap());
        let command = [Bytes::from(command.clone())];
        let [one, two, three] = machines
            .each_mut()
            .map(|machine| machine.apply(&context, &command).to_end().unwrap());
        assert_eq!(one, two, "{command:?}");
        assert_eq!(one, three, "{command:?}");
    }
    let memories = machines
        .each_ref()
        .map(|machine| present(machine, |instance| instance.memory_bytes()));
    assert!(memories[0].is_some() && memories == [memories[0]; 3]);
    let without = present(&machines[0], Instance::freeze_and_thaw);
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

/// The image of a machine at an entry.
fn image(machine: &mut WasmMachine) -> Bytes {
    let begun = machine.image(&EntryContext::default()).to_end().unwrap();
    begun.unwrap().finish().unwrap()
}

// P-22
#[test]
fn one_flipped_bit_of_a_live_heap_shows_in_the_image_whether_or_not_in_any_answer() {
    on_apply_thread(|| {
        let [_, component] = without_and_with_images(skep_examples::KV);
        let mut machines = [(); 2].map(|()| {
            let (context, label) = (EntryContext::default(), MachineLabel::default());
            let profile = Profile::default();
            WasmMachine::new(Arc::clone(&component), profile, context, label).unwrap()
        });
        let apply = |machine: &mut WasmMachine, command: &'static str| {
            let context = EntryContext::default();
            let applied = machine.apply(&context, &[command.into()]).to_end();
            applied.unwrap()
        };
        let put = machines
            .each_mut()
            .map(|machine| apply(machine, "put key 1"));
        assert_eq!(put[0], put[1]);
        let [one, two] = machines.each_mut().map(image);
        assert!(one == two);
        let flipped = present(&machines[1], |instance| {
            let memories = Arc::clone(instance.memories());
            let largest = memories.iter().max_by_key(|memory| memory.bytes()).unwrap();
            let byte = largest.read_block(0, |bytes| bytes[1 << 10]);
            largest.put(1 << 10, &[byte ^ 1])
        });
        assert_eq!(flipped, Some(true));
        let got = machines.each_mut().map(|machine| apply(machine, "get key"));
        assert_eq!(got[0], got[1]);
        let [one, two] = machines.each_mut().map(image);
        assert!(one != two);
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
