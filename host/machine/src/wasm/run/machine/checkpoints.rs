//! A machine that goes back to a checkpoint is the one that it would be without.

use skep_types::shared::lock;

use super::handles;
use super::tests::on_apply_thread;
use super::*;
use crate::wasm::run::checkpoint::CHECKPOINT_FUEL;
use crate::wasm::{Engine, Holdings};

fn context(index: u64) -> EntryContext {
    EntryContext {
        index: LogIndex(index),
        now: 1_700_000_000_000_000_000 + index * 1_000_000,
        entropy: [index as u8; 16],
        ..EntryContext::default()
    }
}

/// Pages are written, and taken, and handles are; and each thing fails now and then after it was done.
fn command(random: &mut impl FnMut(u64) -> u64) -> String {
    let page = random(4);
    match random(26) {
        0 => "add".into(),
        1..6 => format!("W{page}"),
        6..9 => format!("W{page}u"),
        9 => "G".into(),
        10 => "Gu".into(),
        11..14 => ["O", "E", "S"][random(3) as usize].into(),
        14..17 => format!("{}{}", ["D", "Q"][random(2) as usize], random(6)),
        17 => format!("K{}", random(5)),
        18 => "time".into(),
        19 => "X".into(),
        20.. => ["u", "l", "b", "m", "h", "e"][random(6) as usize].into(),
    }
}

/// Numbers below what is asked for, the same for the same seed.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    }
}

fn profile() -> Profile {
    Profile {
        command_fuel: 3_000_000,
        query_fuel: 3_000_000,
        memory_bytes: 64 << 20,
        reply_bytes: 64 << 10,
        ..Profile::default()
    }
}

fn start(component: &Arc<Component>) -> WasmMachine {
    let label = MachineLabel::default();
    WasmMachine::new(Arc::clone(component), profile(), context(0), label).unwrap()
}

/// One that soon has all the memory that it may have.
fn start_small(component: &Arc<Component>) -> WasmMachine {
    let profile = Profile {
        memory_bytes: 4 << 20,
        ..profile()
    };
    let label = MachineLabel::default();
    WasmMachine::new(Arc::clone(component), profile, context(0), label).unwrap()
}

fn apply(machine: &mut WasmMachine, index: u64, commands: &[String]) -> Applied {
    // The next one fails in the machine itself as well.
    machine.guard = Guard::default();
    let commands = commands.iter().cloned().map(Bytes::from);
    let commands = commands.collect::<Vec<_>>();
    machine.apply(&context(index), &commands).to_end().unwrap()
}

fn has_failed(applied: &Applied) -> bool {
    let is_fault = |outcome: &Outcome| matches!(outcome, Outcome::Fault(_));
    applied.outcomes.iter().any(is_fault)
}

/// It can go back to nothing but its base.
fn forget(machine: &WasmMachine) {
    let now = machine.present.journal.moment();
    lock(&machine.present.checkpoints).begin(now);
}

fn image(machine: &mut WasmMachine, index: u64) -> Bytes {
    let begun = machine.image(&context(index)).to_end().unwrap();
    begun.expect("it can have an image").finish().unwrap()
}

// P-21
#[test]
fn a_machine_that_went_back_is_one_that_never_failed() {
    on_apply_thread(|| {
        let component = handles::component(handles::READS);
        let mut returns = 0;
        for seed in 0..40 {
            let mut random = random(seed + 1);
            let [mut fails, mut never] = [&component, &component].map(start_small);
            let [mut reader, mut other] = [fails.wasm_reader(), never.wasm_reader()];
            for index in 1..60 {
                if random(4) == 0 {
                    fails.keep().to_end().unwrap();
                }
                let command = [command(&mut random)];
                let applied = apply(&mut fails, index, &command);
                match has_failed(&applied) {
                    true => drop(never.present.journal.publish(&context(index))),
                    false => assert_eq!(
                        applied,
                        apply(&mut never, index, &command),
                        "{seed}: {command:?} at {index}"
                    ),
                }
                if random(5) == 0 {
                    let asked = Bytes::from_static(
                        ["xX", "xO", "xK1", "xG"][random(4) as usize].as_bytes(),
                    );
                    let [one, two] = [&mut reader, &mut other]
                        .map(|reader| reader.query(&asked).to_end().unwrap());
                    assert_eq!(one, two, "{seed}: {asked:?} at {index}");
                }
            }
            let [one, two] = [&mut fails, &mut never].map(|machine| image(machine, 60));
            assert!(one == two, "{seed}");
            assert_eq!((reader.builds(), never.present.rebuilds()), (0, 0));
            returns += fails.returns();
        }
        assert!(returns > 200, "{returns}");
    });
}

/// With entries of many commands, barriers of both forms at which images are read beside what follows, and a memory of some
/// size.
// P-21
#[test]
fn a_machine_that_went_back_is_the_one_that_was_built_from_its_base() {
    on_apply_thread(|| {
        let component = Component::compile(&Engine::new().unwrap(), skep_examples::KV);
        let component = Arc::new(component.unwrap());
        let mut returns = 0;
        for seed in 0..6 {
            let mut random = random(seed + 1);
            let mut machines = [start(&component), start(&component)];
            let put = |machine: &mut WasmMachine, from: u64| {
                let large = "x".repeat(60_000);
                for at in from..from + 80 {
                    apply(machine, at, &[format!("put large-{at} {large}")]);
                }
                // An answer that is longer than is allowed.
                apply(machine, from + 80, &[format!("put long {large}{large}")]);
            };
            machines.iter_mut().for_each(|machine| put(machine, 1));
            for index in 100..180 {
                let commands = (0..=random(4)).map(|_| match random(9) {
                    0 | 1 => "get long".to_owned(),
                    2 => format!("del large-{}", random(100)),
                    3 => format!("get large-{}", random(100)),
                    4 => format!(
                        "put large-{} {}",
                        random(100),
                        "y".repeat(random(60_000) as usize)
                    ),
                    n => format!("incr n-{} {n}", random(20)),
                });
                let commands = commands.collect::<Vec<_>>();
                if random(3) == 0 {
                    machines[0].keep().to_end().unwrap();
                }
                forget(&machines[1]);
                let barrier = random(12);
                if barrier == 0 {
                    for machine in &mut machines {
                        let mut saved = Vec::new();
                        machine.save(&context(index), &mut saved).to_end().unwrap();
                        let schema = machine.component().descriptor().schema;
                        let at = context(index);
                        let restored = machine.restore(&at, schema, saved.into());
                        restored.to_end().unwrap();
                    }
                    forget(&machines[1]);
                }
                let mut images = Vec::new();
                if barrier == 1 {
                    for machine in &mut machines {
                        let begun = machine.image(&context(index)).to_end().unwrap();
                        let mut begun = begun.expect("it can have an image");
                        images.push(std::thread::spawn(move || begun.finish().unwrap()));
                    }
                    forget(&machines[1]);
                }
                let [one, two] =
                    (machines.each_mut()).map(|machine| apply(machine, index, &commands));
                assert_eq!(one, two, "{seed}: {commands:?} at {index}");
                let mut images = images.into_iter().map(|image| image.join().unwrap());
                assert!(images.next() == images.next(), "{seed} at {index}");
            }
            let [one, two] = machines.each_mut().map(|machine| image(machine, 180));
            assert!(one == two, "{seed}");
            returns += machines[0].returns();
            assert_eq!(machines[1].returns(), 0);
        }
        assert!(returns > 50, "{returns}");
    });
}

#[test]
fn a_machine_is_kept_after_so_much_work_and_wherever_a_large_one_begins() {
    on_apply_thread(|| {
        let component = Component::compile(&Engine::new().unwrap(), skep_examples::KV);
        let component = Arc::new(component.unwrap());
        let mut machine = start(&component);
        let has_one = |machine: &WasmMachine| {
            let mut checkpoints = lock(&machine.present.checkpoints);
            let newest = checkpoints.take();
            let at = newest.as_ref().map(|newest| newest.at.fuel);
            checkpoints.put(newest);
            at
        };
        let mut index = 0;
        let mut put = |machine: &mut WasmMachine, bytes: usize| {
            index += 1;
            let put = format!("put key-{index} {}", "x".repeat(bytes));
            apply(machine, index, &[put]);
            machine.present.journal.moment().fuel
        };
        // A small one pays nothing until it has done some work.
        let mut fuel = 0;
        while fuel < CHECKPOINT_FUEL {
            assert_eq!(has_one(&machine), None);
            fuel = put(&mut machine, 100);
        }
        assert_eq!(has_one(&machine), Some(fuel));
        // A large one has one wherever it begins.
        while machine.memory_bytes < 8 << 20 {
            put(&mut machine, 60_000);
        }
        let mut saved = Vec::new();
        machine.save(&context(1), &mut saved).to_end().unwrap();
        let schema = machine.component().descriptor().schema;
        for _ in 0..2 {
            let saved = Bytes::from(saved.clone());
            machine
                .restore(&context(1), schema, saved)
                .to_end()
                .unwrap();
            let now = machine.present.journal.moment().fuel;
            assert_eq!(has_one(&machine), Some(now));
            put(&mut machine, 100);
        }
        let before = put(&mut machine, 100);
        image(&mut machine, 2);
        assert_eq!(has_one(&machine), Some(before));
    });
}

#[test]
fn a_machine_that_writes_more_than_is_kept_is_built_from_its_base() {
    on_apply_thread(|| {
        // No more than four blocks may be copied for checkpoints.
        let engine = Engine::with_budget(Holdings {
            address_bytes: 1 << 46,
            mappings: 1 << 20,
            memory_bytes: 32 << 16,
        });
        let component = Component::compile(&engine.unwrap(), skep_examples::KV);
        let component = Arc::new(component.unwrap());
        let [mut machine, mut other] = [start(&component), start(&component)];
        // What a memory has grown by since is not copied, so it grows before.
        let long = format!("put long {}", "x".repeat(500_000));
        for machine in [&mut machine, &mut other] {
            (0..4).for_each(|_| drop(apply(machine, 0, std::slice::from_ref(&long))));
        }
        for index in 1..40 {
            machine.keep().to_end().unwrap();
            // One that writes little, and one that writes much, and then one that fails.
            let length = if index % 2 == 0 { 10 } else { 500_000 };
            let put = format!("put long {}", "x".repeat(length));
            let get = if length > 100 { "get long" } else { "get none" };
            for command in [put.as_str(), get, "incr n 1"] {
                let [one, two] = [&mut machine, &mut other]
                    .map(|machine| apply(machine, index, &[command.to_owned()]));
                assert_eq!(one, two);
            }
        }
        assert_eq!(machine.returns(), 0);
        assert!(machine.present.rebuilds() > 10);
        assert!(image(&mut machine, 40) == image(&mut other, 40));
    });
}
