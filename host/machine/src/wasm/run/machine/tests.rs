use super::*;
use crate::LocalCode;
use crate::wasm::{APPLY_THREAD_STACK_BYTES, Engine};

pub(super) fn guest() -> Vec<u8> {
    guest_with("", |text| text)
}

/// The guest with these optional exports, and its text edited.
pub(super) fn guest_with(optional: &str, edit: impl FnOnce(String) -> String) -> Vec<u8> {
    let text = include_str!("../../../../tests/machine/guest.wat")
        .replace("⟨optional⟩", optional)
        .replace("⟨describe⟩", "")
        .replace("⟨too-many⟩", "0");
    wat::parse_str(edit(text)).unwrap()
}

/// As the host runs machines.
pub(super) fn on_apply_thread(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new()
        .stack_size(APPLY_THREAD_STACK_BYTES)
        .spawn(test)
        .unwrap();
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn how_memories_are_laid_out_shows_in_no_outcome_and_no_fuel() {
    on_apply_thread(|| {
        let engine = Engine::new().unwrap();
        let context = EntryContext::default();
        let profile = Profile {
            memory_bytes: 80 << 20,
            command_fuel: 50_000_000,
            ..Profile::default()
        };
        let mut machines = [1, 16].map(|memories| {
            let component = Component::compile_as(&engine, &guest(), memories).unwrap();
            let label = MachineLabel::default();
            WasmMachine::new(Arc::new(component), profile.clone(), context, label).unwrap()
        });
        let [roomy, compact] = [0, 1].map(|at| machines[at].component().layout());
        assert_ne!(roomy, compact);
        for command in [
            "add",
            "get",
            "loop",
            "recurse",
            "divide",
            "out of bounds",
            "past memory",
            // Grows until it is refused: out of the small reservation, into another place.
            "memory",
            "add",
            "handles",
            "x",
            "get",
        ] {
            let [one, other] = machines.each_mut().map(|machine| {
                machine
                    .apply(&context, &[Bytes::from_static(command.as_bytes())])
                    .to_end()
            });
            assert_eq!(one.unwrap(), other.unwrap(), "{command}");
        }
        let [one, other] = machines.each_mut().map(|machine| {
            let mut saved = Vec::new();
            machine.save(&context, &mut saved).to_end().unwrap();
            saved
        });
        assert_eq!(one, other);
    });
}

// P-33
#[test]
fn a_stack_that_really_overflows_is_no_outcome_but_local() {
    on_apply_thread(|| {
        let component = Component::compile_uncounted(&Engine::new().unwrap(), &guest()).unwrap();
        let context = EntryContext::default();
        let label = MachineLabel::default();
        let mut machine =
            WasmMachine::new(Arc::new(component), Profile::default(), context, label).unwrap();
        let apply = |machine: &mut WasmMachine, command: &'static str| {
            machine
                .apply(&context, &[Bytes::from_static(command.as_bytes())])
                .to_end()
        };
        let number = |n: u64| [Outcome::Reply(Bytes::copy_from_slice(&n.to_le_bytes()))];
        assert_eq!(apply(&mut machine, "add").unwrap().outcomes, number(1));
        let error = apply(&mut machine, "recurse").unwrap_err();
        assert!(
            matches!(
                &error,
                MachineError::Local { call: "apply", code: LocalCode::StackOverflow, reason }
                    if reason.contains("stack")
            ),
            "{error}"
        );
        assert_eq!(machine.stopped_at(), Some(0));
        // Which one it was is found among many, too.
        let many =
            ["add", "get", "recurse", "add"].map(|command| Bytes::from_static(command.as_bytes()));
        // Nothing of it stays, should the host go on after all.
        assert_eq!(apply(&mut machine, "add").unwrap().outcomes, number(2));
        machine.apply(&context, &many).to_end().unwrap_err();
        assert_eq!(machine.stopped_at(), Some(2));
    });
}
