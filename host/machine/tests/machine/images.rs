//! A machine as it is, written down and brought back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::Bytes;
use skep_machine::wasm::{Component, WasmMachine};
use skep_machine::{Applied, ImageTaken, LocalCode, MachineError, StateMachine, ToEnd};

use crate::guest::{
    ENGINE, FULL, IMAGELESS, PLAIN, compile_for, context, full, machine, on_apply_thread, save,
    without_checkpoints,
};

/// Commands of the guest, some of which fail, and of the key-value machine.
struct Case {
    component: Arc<Component>,
    command: fn(u64) -> String,
}

fn cases() -> [Case; 2] {
    let kv = Component::compile(&ENGINE, skep_examples::KV).unwrap();
    [
        Case {
            component: Arc::clone(&FULL),
            command: |number| {
                let commands = [
                    "time",
                    "add",
                    "Memory",
                    "unreachable",
                    "noise",
                    "j",
                    "get",
                    "memory",
                ];
                commands[number as usize % commands.len()].to_owned()
            },
        },
        Case {
            component: Arc::new(kv),
            command: |number| match number % 5 {
                0 => format!("incr n {number}"),
                1 => format!("del key-{}", number / 3),
                2 => format!("get key-{}", number / 2),
                _ => format!(
                    "put key-{number} {}",
                    "x".repeat((number as usize * 97) % 9000)
                ),
            },
        },
    ]
}

impl Case {
    fn machine(&self) -> WasmMachine {
        machine(&self.component)
    }

    /// Applies entries of one to four commands.
    fn run(&self, machine: &mut WasmMachine, entries: std::ops::Range<u64>) -> Vec<Applied> {
        let run = entries.map(|index| {
            let commands: Vec<_> = (0..=index % 4)
                .map(|at| Bytes::from((self.command)(index * 5 + at * 3)))
                .collect();
            machine.apply(&context(index), &commands).to_end().unwrap()
        });
        run.collect()
    }
}

fn begin(machine: &mut WasmMachine, index: u64) -> Box<dyn ImageTaken> {
    let begun = machine.image(&context(index)).to_end().unwrap();
    begun.expect("it can have an image")
}

fn image(machine: &mut WasmMachine, index: u64) -> Bytes {
    begin(machine, index).finish().unwrap()
}

fn resume(machine: &mut WasmMachine, index: u64, image: &Bytes) {
    machine
        .resume(&context(index), image.clone())
        .to_end()
        .unwrap();
}

// P-21
#[test]
fn a_machine_that_begins_at_an_image_is_the_one_that_went_on() {
    on_apply_thread(|| {
        for case in cases() {
            let mut whole = case.machine();
            let mut veteran = case.machine();
            for at in [1, 7, 30, 61, 90] {
                let [before, now] =
                    [&mut whole, &mut veteran].map(|machine| case.run(machine, at - 1..at));
                assert_eq!(before, now);
                let written = image(&mut veteran, at);
                let mut newcomer = case.machine();
                resume(&mut newcomer, at, &written);
                assert_eq!(newcomer.image_bytes(), veteran.image_bytes());
                // Both say the same of themselves, and the one says the same again.
                assert!(image(&mut newcomer, at) == written && image(&mut veteran, at) == written);
                let next = at + 1..at + 20;
                let did = [&mut whole, &mut veteran, &mut newcomer]
                    .map(|machine| case.run(machine, next.clone()));
                assert_eq!(did[0], did[1], "after the image at {at}");
                assert_eq!(did[0], did[2], "from the image at {at}");
                let images = [&mut whole, &mut veteran, &mut newcomer]
                    .map(|machine| image(machine, next.end));
                assert!(images[0] == images[1] && images[0] == images[2]);
                let saved = [&mut whole, &mut newcomer].map(|machine| save(machine, next.end));
                assert_eq!(saved[0], saved[1]);
                // The next round begins where this one did.
                whole = case.machine();
                case.run(&mut whole, 0..at);
                veteran = case.machine();
                case.run(&mut veteran, 0..at);
            }
        }
    });
}

// P-21
#[test]
fn an_image_is_of_its_entry_whatever_is_applied_while_it_is_taken() {
    on_apply_thread(|| {
        let [_, case] = cases();
        let [mut goes_on, mut stands] = [case.machine(), case.machine()];
        for round in 0..10 {
            let (from, to) = (round * 60, round * 60 + 30);
            for machine in [&mut goes_on, &mut stands] {
                case.run(machine, from..to);
            }
            let mut begun = begin(&mut goes_on, to);
            let taken = std::thread::spawn(move || begun.finish().unwrap());
            let meanwhile = case.run(&mut goes_on, to..from + 60);
            let expected = image(&mut stands, to);
            assert!(taken.join().unwrap() == expected, "round {round}");
            assert_eq!(meanwhile, case.run(&mut stands, to..from + 60));
        }
    });
}

#[test]
fn a_machine_that_failed_is_built_from_its_newest_image() {
    on_apply_thread(|| {
        let component = compile_for(&without_checkpoints(), &full());
        let [case, _] = cases();
        let case = Case { component, ..case };
        let [mut with, mut without] = [case.machine(), case.machine()];
        let reads = Arc::new(AtomicU32::new(0));
        for index in (0..60).step_by(6) {
            let mut begun = begin(&mut with, index);
            // A failure before the image is whole, and some after it.
            let [one, two] =
                [&mut with, &mut without].map(|machine| case.run(machine, index..index + 3));
            assert_eq!(one, two);
            let (bytes, reads) = (begun.finish().unwrap(), Arc::clone(&reads));
            if index % 4 == 0 {
                // It is kept elsewhere, and read from there.
                begun.kept(Box::new(move || {
                    reads.fetch_add(1, Relaxed);
                    Ok(bytes.clone())
                }));
            }
            let [one, two] =
                [&mut with, &mut without].map(|machine| case.run(machine, index + 3..index + 6));
            assert_eq!(one, two);
        }
        assert!(reads.load(Relaxed) > 0);
        assert!(with.costs().unwrap().rebuilds > 0);
        assert!(image(&mut with, 60) == image(&mut without, 60));
    });
}

#[test]
fn an_image_that_nobody_takes_to_its_end_changes_nothing() {
    on_apply_thread(|| {
        for case in cases() {
            let [mut with, mut without] = [case.machine(), case.machine()];
            for index in 0..40 {
                drop(begin(&mut with, index));
                let [one, two] =
                    [&mut with, &mut without].map(|machine| case.run(machine, index..index + 1));
                assert_eq!(one, two);
            }
            assert!(image(&mut with, 40) == image(&mut without, 40));
        }
    });
}

#[test]
fn an_image_taken_before_a_restore_is_not_what_the_machine_is_built_from() {
    on_apply_thread(|| {
        let [case, _] = cases();
        let mut machine = case.machine();
        case.run(&mut machine, 0..9);
        let mut begun = begin(&mut machine, 9);
        let bytes = save(&mut machine, 9);
        machine
            .restore(&context(9), 3, bytes.clone())
            .to_end()
            .unwrap();
        begun.finish().unwrap();
        let mut other = case.machine();
        other.restore(&context(9), 3, bytes).to_end().unwrap();
        let [one, two] = [&mut machine, &mut other].map(|machine| case.run(machine, 10..30));
        assert_eq!(one, two);
    });
}

fn local(refused: Result<(), MachineError>) -> (LocalCode, String) {
    match refused {
        Err(MachineError::Local { code, reason, .. }) => (code, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_image_is_refused_and_the_machine_stays() {
    on_apply_thread(|| {
        let [case, kv] = cases();
        let mut machine = case.machine();
        case.run(&mut machine, 0..9);
        let whole = image(&mut machine, 9);
        let foreign = image(&mut kv.machine(), 9);
        let mut wrong_pages = whole.to_vec();
        wrong_pages.splice(0..4096, []);
        let shortened =
            [0, 5, 12, whole.len() - 13, whole.len() - 1].map(|length| whole.slice(..length));
        let wrong = shortened.into_iter().chain([wrong_pages.into(), foreign]);
        for bytes in wrong {
            let (code, reason) = local(machine.resume(&context(9), bytes).to_end());
            assert_eq!(code, LocalCode::Differs, "{reason}");
        }
        assert!(image(&mut machine, 9) == whole);
    });
}

#[test]
fn machines_without_images_say_so() {
    on_apply_thread(|| {
        let mut imageless = machine(&IMAGELESS);
        assert_eq!(imageless.image_bytes(), None);
        assert!(imageless.image(&context(1)).to_end().unwrap().is_none());
        let written = image(&mut machine(&PLAIN), 1);
        local(imageless.resume(&context(1), written).to_end());
        // One that holds a handle can have none for now.
        let case = &cases()[0];
        let mut holds = case.machine();
        assert_eq!(holds.image_bytes(), Some(128 << 10));
        crate::guest::apply(&mut holds, 1, &["handles"]);
        let can = holds.image_bytes().is_some();
        assert_eq!(holds.image(&context(1)).to_end().unwrap().is_some(), can);
    });
}

#[test]
fn a_machine_that_began_at_an_image_is_built_from_where_that_is_kept() {
    on_apply_thread(|| {
        let component = compile_for(&without_checkpoints(), &full());
        let [case, _] = cases();
        let case = Case { component, ..case };
        let mut veteran = case.machine();
        case.run(&mut veteran, 0..9);
        let written = image(&mut veteran, 9);
        let mut newcomer = case.machine();
        resume(&mut newcomer, 9, &written);
        let reads = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&reads);
        newcomer.image_kept(Box::new(move || {
            counted.fetch_add(1, Relaxed);
            Ok(written.clone())
        }));
        let [one, two] = [&mut veteran, &mut newcomer].map(|machine| case.run(machine, 10..30));
        assert_eq!(one, two);
        assert!(reads.load(Relaxed) > 0);
    });
}
