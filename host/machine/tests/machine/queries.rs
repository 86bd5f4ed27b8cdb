//! Queries beside commands: the reader of a machine sees what the log did, and the log sees nothing of the reader.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use skep_core::outcome::{GuestFault, Outcome};
use skep_machine::wasm::WasmMachine;
use skep_machine::{Answer, Memory, Reader, StateMachine, ToEnd};

use crate::guest::{
    FULL, IMAGELESS, PLAIN, apply, compile, context, full, machine, number, on_apply_thread, save,
};

fn ask(reader: &mut dyn Reader, request: &'static str) -> Answer {
    reader
        .query(&Bytes::from_static(request.as_bytes()))
        .to_end()
        .unwrap()
}

/// The counter, and the entry it was read at.
fn count(reader: &mut dyn Reader) -> (u64, u64) {
    let Answer { outcome, index, .. } = ask(reader, "get");
    let Outcome::Reply(reply) = outcome else {
        panic!("{outcome:?}")
    };
    (u64::from_le_bytes(reply[..].try_into().unwrap()), index.0)
}

fn barrier(machine: &mut WasmMachine, index: u64) -> Bytes {
    let bytes = save(machine, index);
    machine
        .restore(&context(index), 3, bytes.clone())
        .to_end()
        .unwrap();
    bytes
}

#[test]
fn a_reader_follows_over_barriers_without_being_rebuilt() {
    let mut machine = machine(&IMAGELESS);
    let mut reader = machine.wasm_reader();
    assert_eq!(count(&mut reader), (0, 0));
    let mut index = 0;
    for round in 1..=5 {
        for _ in 0..3 {
            index += 1;
            apply(&mut machine, index, &["add", "get"]);
        }
        index += 1;
        barrier(&mut machine, index);
        // Every second time it comes late, over two barriers.
        if round % 2 == 1 {
            assert_eq!(count(&mut reader), (round * 3, index));
            assert_eq!(ask(&mut reader, "index").outcome, number(index));
        }
    }
    assert_eq!(reader.builds(), 1);
    // It can be left, and come back.
    reader.release();
    index += 1;
    apply(&mut machine, index, &["add"]);
    assert_eq!(count(&mut reader), (16, index));
    assert_eq!(reader.builds(), 2);
}

#[test]
fn a_command_that_answers_otherwise_in_the_reader_makes_it_begin_anew() {
    let mut machine = machine(&IMAGELESS);
    let mut reader = machine.wasm_reader();
    apply(&mut machine, 1, &["time"]);
    assert_eq!(count(&mut reader), (0, 1));
    apply(&mut machine, 2, &["time", "add"]);
    assert_eq!(count(&mut reader), (1, 2));
    assert_eq!(reader.builds(), 1);
    // The reply of `time` holds the seed, which is another one since the barrier: but not in the reader.
    barrier(&mut machine, 3);
    apply(&mut machine, 4, &["time", "add"]);
    assert_eq!(count(&mut reader), (2, 4));
    assert_eq!(reader.builds(), 2);
}

#[test]
fn a_query_that_fails_or_takes_the_memory_harms_no_later_one() {
    on_apply_thread(|| {
        let mut machine = machine(&FULL);
        let mut reader = machine.wasm_reader();
        for index in 1..6 {
            // `Memory` grows until it may not: in an instance whose query took it all, it would answer otherwise.
            apply(&mut machine, index, &["add", "Memory"]);
            assert_eq!(count(&mut reader), (index, index));
            assert_eq!(ask(&mut reader, "write").outcome, number(555));
            let answer = ask(&mut reader, "loop");
            assert_eq!(answer.outcome, Outcome::Fault(GuestFault::OutOfFuel));
            assert_eq!(answer.index.0, index);
            assert_eq!(count(&mut reader), (index, index));
        }
    });
}

// P-18
#[test]
fn a_query_that_takes_memory_leaves_none_of_it_to_the_next_one() {
    on_apply_thread(|| {
        let mut machine = machine(&FULL);
        let mut reader = machine.wasm_reader();
        let first = ask(&mut reader, "pages");
        assert_eq!(first.outcome, number(3));
        // More pages, all in all, than the profile allows.
        for _ in 0..1100 {
            assert_eq!(ask(&mut reader, "pages"), first);
        }
        assert_eq!(ask(&mut reader, "write").outcome, number(555));
        assert_eq!(ask(&mut reader, "pages"), first);
        apply(&mut machine, 1, &["add"]);
        assert_eq!(ask(&mut reader, "pages").outcome, first.outcome);
        assert_eq!(reader.forks(), 1);
        // A machine that has all it may have gives its queries no more.
        apply(&mut machine, 2, &["Memory"]);
        let fault = Outcome::Fault(GuestFault::OutOfMemory);
        assert_eq!(ask(&mut reader, "pages").outcome, fault);
        assert_eq!(count(&mut reader), (1, 2));
    });
}

#[test]
fn a_machine_restored_to_more_than_its_memory_answers_queries() {
    on_apply_thread(|| {
        let reads = "(call $read (local.get $source) (i32.const 16) (i32.const 512))";
        let takes =
            "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))";
        let text = full();
        assert!(text.contains(reads));
        let mut machine = machine(&compile(&text.replacen(
            reads,
            &format!("{takes} {reads}"),
            1,
        )));
        let mut reader = machine.wasm_reader();
        apply(&mut machine, 1, &["add"]);
        barrier(&mut machine, 2);
        let Some(Memory {
            used_bytes,
            limit_bytes,
        }) = machine.memory()
        else {
            panic!("it has a memory")
        };
        assert!(used_bytes > limit_bytes, "{used_bytes} of {limit_bytes}");
        assert_eq!(count(&mut reader), (1, 2));
        assert_eq!(reader.builds(), 0);
    });
}

#[test]
fn a_snapshot_from_elsewhere_is_read_at_once() {
    let (mut machine, mut other) = (machine(&FULL), machine(&FULL));
    let mut reader = machine.wasm_reader();
    apply(&mut machine, 1, &["add"]);
    assert_eq!(count(&mut reader), (1, 1));
    apply(&mut other, 1, &["add", "add", "add"]);
    let bytes = save(&mut other, 50);
    apply(&mut machine, 2, &["add"]);
    machine.restore(&context(50), 3, bytes).to_end().unwrap();
    assert_eq!(count(&mut reader), (3, 50));
}

/// Asks a query whenever the machine writes of its snapshot.
struct Asking<'a> {
    reader: &'a mut dyn Reader,
    counted: Vec<(u64, u64)>,
}

impl Write for Asking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.counted.push(count(self.reader));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// P-19
#[test]
fn queries_are_answered_while_the_machine_saves() {
    on_apply_thread(|| {
        let mut machine = machine(&FULL);
        let mut reader = machine.reader().unwrap();
        apply(&mut machine, 1, &["add"]);
        let mut asking = Asking {
            reader: &mut *reader,
            counted: Vec::new(),
        };
        machine.save(&context(2), &mut asking).to_end().unwrap();
        assert!(!asking.counted.is_empty());
        assert!(asking.counted.iter().all(|counted| *counted == (1, 1)));
    });
}

#[test]
fn a_slow_query_delays_no_command() {
    on_apply_thread(|| {
        let mut machine = machine(&FULL);
        let mut reader = machine.wasm_reader();
        let (asked, begun) = sync_channel(0);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The queries overlap whatever the machine does: they end when it has done it all.
                while !ended.load(SeqCst) {
                    let answer = ask(&mut reader, "loop");
                    assert_eq!(answer.outcome, Outcome::Fault(GuestFault::OutOfFuel));
                    asked.send(()).unwrap_or_default();
                }
            });
            for index in 1..10 {
                begun.recv().unwrap();
                assert_eq!(apply(&mut machine, index, &["add"]), [number(index)]);
            }
            ended.store(true, SeqCst);
            drop(begun);
        });
    });
}

// P-18, P-20
#[test]
fn a_storm_of_queries_changes_neither_fuel_nor_snapshots() {
    on_apply_thread(|| {
        let (mut asked, mut unasked) = (machine(&FULL), machine(&FULL));
        let mut reader = asked.wasm_reader();
        let (acknowledged, answers) = (AtomicU64::new(0), AtomicU64::new(0));
        let ended = AtomicBool::new(false);
        let barriers = std::thread::scope(|scope| {
            let storm = std::thread::Builder::new()
                .stack_size(skep_machine::wasm::APPLY_THREAD_STACK_BYTES);
            let storming = storm.spawn_scoped(scope, || {
                let mut newest = (0, 0);
                while !ended.load(SeqCst) {
                    let before = acknowledged.load(SeqCst);
                    let counted = count(&mut reader);
                    assert!(
                        counted.1 >= before,
                        "{counted:?} is from before entry {before}"
                    );
                    assert!(counted >= newest, "{counted:?} is before {newest:?}");
                    assert_eq!(counted.0, counted.1 - counted.1 / 10);
                    newest = counted;
                    answers.fetch_add(1, SeqCst);
                    for attack in ["write", "unreachable", "recurse"] {
                        ask(&mut reader, attack);
                    }
                }
            });
            let mut barriers = 0;
            for index in 1..=200u64 {
                if index % 10 == 0 {
                    assert_eq!(barrier(&mut asked, index), barrier(&mut unasked, index));
                    barriers += 1;
                } else {
                    let commands = ["add", "Memory", "time", "unreachable"]
                        .map(|text| Bytes::from_static(text.as_bytes()));
                    assert_eq!(
                        asked.apply(&context(index), &commands).to_end().unwrap(),
                        unasked.apply(&context(index), &commands).to_end().unwrap(),
                        "entry {index}"
                    );
                }
                acknowledged.store(index, SeqCst);
                // The storm goes on all the time: a few answers for each of the barriers.
                if index % 10 == 0 {
                    let seen = answers.load(SeqCst);
                    while answers.load(SeqCst) == seen {
                        assert!(!storming.as_ref().is_ok_and(|thread| thread.is_finished()));
                        std::thread::yield_now();
                    }
                }
            }
            ended.store(true, SeqCst);
            barriers
        });
        assert_eq!(barriers, 20);
    });
}

#[test]
fn a_reader_left_far_behind_begins_anew_and_is_right() {
    let mut machine = machine(&IMAGELESS);
    let mut reader = machine.wasm_reader();
    assert_eq!(count(&mut reader), (0, 0));
    // More bytes than are kept for a reader.
    let mut large = vec![0; 1 << 20];
    large[0] = b'a';
    let large = [Bytes::from(large)];
    for index in 1..=65 {
        machine.apply(&context(index), &large).to_end().unwrap();
    }
    barrier(&mut machine, 66);
    machine.apply(&context(67), &large).to_end().unwrap();
    assert_eq!(count(&mut reader), (66, 67));
    assert_eq!(reader.builds(), 2);
}

#[test]
fn a_machine_without_queries_has_a_reader_that_says_so() {
    let machine = machine(&PLAIN);
    let answer = ask(&mut *machine.reader().unwrap(), "get");
    assert!(
        matches!(&answer.outcome, Outcome::Rejected { code: 0, message } if message.contains("queries")),
        "{answer:?}"
    );
}
