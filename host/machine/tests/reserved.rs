//! What the budget counts of an instance is what the process comes to hold for it. A test program of its own, with one
//! test, so that nothing else maps memory meanwhile.

#![cfg(target_os = "linux")]

use std::sync::Arc;

use skep_core::outcome::EntryContext;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, Engine, Holdings, MachineBudget, MachineLabel, Profile,
    WasmMachine,
};
use skep_machine::{StateMachine, ToEnd};

const INSTANCES: u64 = 20;

/// Bytes and number of the process's mappings.
fn mapped() -> (u64, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("what is mapped");
    let bytes = |line: &str| {
        let (range, _) = line.split_once(' ').expect("a range");
        let (from, to) = range.split_once('-').expect("from and to");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        number(to) - number(from)
    };
    (maps.lines().map(bytes).sum(), maps.lines().count() as u64)
}

/// A guest with so many memories beside its own, each with contents of its own and room to grow.
fn component(engine: &Engine, memories: u64) -> Arc<Component> {
    let more: String = (0..memories)
        .map(|n| format!("(memory 3) (data (memory {n}) (i32.const 70000) \"{n}\")"))
        .collect();
    let text = include_str!("machine/guest.wat")
        .replace("⟨optional⟩", "")
        .replace("⟨describe⟩", "")
        .replace("⟨too-many⟩", "0")
        .replacen(
            "(core module $Memory",
            &format!("(core module $More {more}) (core instance (instantiate $More)) (core module $Memory"),
            1,
        );
    let bytes = wat::parse_str(text).expect("a component");
    Arc::new(Component::compile(engine, &bytes).expect("it compiles"))
}

fn instances(component: &Arc<Component>) -> Vec<WasmMachine> {
    (0..INSTANCES)
        .map(|_| {
            let context = EntryContext::default();
            let label = MachineLabel::default();
            let component = Arc::clone(component);
            let mut machine =
                WasmMachine::new(component, Profile::default(), context, label).expect("it starts");
            // Its calls have a stack from the first one on.
            machine
                .apply(&context, &["add".into()])
                .to_end()
                .expect("it runs");
            machine
        })
        .collect()
}

fn measure(budget: &MachineBudget, component: &Arc<Component>) -> (Holdings, u64, u64) {
    let (bytes, mappings) = mapped();
    let machines = instances(component);
    let held = budget.held();
    let (bytes_after, mappings_after) = mapped();
    drop(machines);
    assert_eq!(budget.held(), Holdings::default(), "all is given back");
    (held, bytes_after - bytes, mappings_after - mappings)
}

#[test]
fn what_is_counted_is_what_is_reserved() {
    let test = || {
        let engine = Engine::new().expect("an engine");
        let budget = Arc::clone(engine.budget());
        for memories in [0, 1, 15] {
            let component = component(&engine, memories);
            // What the process allocates once.
            drop(instances(&component));
            let (held, bytes, mappings) = measure(&budget, &component);
            eprintln!("{memories} more memories: counted {held:?}, mapped {bytes} in {mappings}");
            assert!(
                bytes <= held.address_bytes && mappings <= held.mappings,
                "{memories} more memories: counted {held:?}, mapped {bytes} in {mappings}"
            );
            if memories <= 1 {
                // Those never grow out of what they have, so it is all there from the start.
                assert!(
                    bytes >= held.address_bytes / 100 * 99,
                    "{memories} more memories: counted {held:?}, mapped {bytes}"
                );
            } else {
                // Sixteen memories take what one takes otherwise.
                assert!(held.address_bytes / INSTANCES <= 4 << 30, "{held:?}");
            }
            assert_eq!(
                held.memory_bytes,
                INSTANCES * (3 * memories + 2) * (64 << 10)
            );
        }
    };
    std::thread::Builder::new()
        .stack_size(APPLY_THREAD_STACK_BYTES)
        .spawn(test)
        .expect("a thread")
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
