//! A machine that holds handles of the host's is forked and written down like any other.

use super::tests::{guest_with, on_apply_thread};
use super::*;
use crate::wasm::Engine;

/// Commands that take a handle, answer with the number that the guest has for it, and keep it; or give one back by its number.
/// `x`, of a query, runs the command behind it.
const VERBS: &str = r#"
    (local.set $pollable (if (result i32) (i32.gt_u (local.get $len) (i32.const 1))
      (then (i32.sub (i32.load8_u offset=1 (local.get $at)) (i32.const 48))) (else (i32.const 0))))
    (if (call $is (local.get $verb) (i32.const 79)) (then ;; O: standard output
      (return (call $number (i64.extend_i32_u (call $stdout))))))
    (if (call $is (local.get $verb) (i32.const 69)) (then ;; E: standard error
      (return (call $number (i64.extend_i32_u (call $stderr))))))
    (if (call $is (local.get $verb) (i32.const 83)) (then ;; S: something to wait for
      (return (call $number (i64.extend_i32_u (call $subscribe (i64.const 1000)))))))
    (if (call $is (local.get $verb) (i32.const 85)) (then ;; U: something to wait for at a stream
      (return (call $number (i64.extend_i32_u (call $stream-subscribe (local.get $pollable)))))))
    (if (call $is (local.get $verb) (i32.const 68)) (then ;; D: drops a stream
      (call $drop-stream (local.get $pollable))
      (return (call $number (i64.const 0)))))
    (if (call $is (local.get $verb) (i32.const 81)) (then ;; Q: drops a pollable
      (call $drop-pollable (local.get $pollable))
      (return (call $number (i64.const 0)))))
    (if (call $is (local.get $verb) (i32.const 75)) (then ;; K: waits for a pollable
      (call $block (local.get $pollable))
      (return (call $number (call $now)))))
    (if (call $is (local.get $verb) (i32.const 71)) (then ;; G: takes a page and writes to it; fails then, if told more
      (local.set $pollable (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)))
      (i64.store offset=8 (local.get $pollable) (call $now))
      (if (i32.gt_u (local.get $len) (i32.const 1)) (then unreachable))
      (return (call $number (i64.load offset=16 (local.get $pollable))))))
    (if (call $is (local.get $verb) (i32.const 87)) (then ;; W: writes to a page; fails then, if told more
      (local.set $pollable (i32.mul (local.get $pollable) (i32.const 65536)))
      (i64.store offset=4096 (local.get $pollable)
        (i64.add (i64.load offset=4096 (local.get $pollable)) (local.get $index)))
      (if (i32.gt_u (local.get $len) (i32.const 2)) (then
        (drop (call $stdout)) (global.set $counter (i64.const 77)) unreachable))
      (return (call $number (i64.load offset=4096 (local.get $pollable))))))
    (if (call $is (local.get $verb) (i32.const 88)) (then ;; X: adds up all that it has
      (local.set $pollable (i32.const 2048))
      (i64.store (i32.const 64) (i64.extend_i32_u (memory.size)))
      (loop $more
        (i64.store (i32.const 64) (i64.add (i64.mul (i64.load (i32.const 64)) (i64.const 31)) (i64.load (local.get $pollable))))
        (local.set $pollable (i32.add (local.get $pollable) (i32.const 8)))
        (br_if $more (i32.lt_u (local.get $pollable) (i32.mul (memory.size) (i32.const 65536)))))
      (return (call $number (i64.load (i32.const 64))))))
    (call $rejected (i32.const 0) (i32.const 1024) (i32.const 0)))

    (func $trap-if"#;

const IMPORTS: &str = r#"
  (import "wasi:io/streams@0.2.6" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer 1 $pollable (type $p)) (export "pollable" (type $pollable (eq $p)))
    (export "[method]output-stream.subscribe"
      (func (param "self" (borrow $stream)) (result (own $pollable))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:cli/stdout@0.2.6" (instance $stdout
    (alias outer 1 $stream (type $s)) (export "output-stream" (type $stream (eq $s)))
    (export "get-stdout" (func (result (own $stream))))))
  (import "wasi:cli/stderr@0.2.6" (instance $stderr
    (alias outer 1 $stream (type $s)) (export "output-stream" (type $stream (eq $s)))
    (export "get-stderr" (func (result (own $stream))))))
  (import "wasi:clocks/wall-clock@0.2.6""#;

/// `restore` runs this first.
fn holder(restore: &str) -> Vec<u8> {
    let query = "(instance $q (export \"query\" (func $query))) (export \"skep:machine/queries@0.1.0\" (instance $q))";
    let edits = [
        ("(import \"wasi:clocks/wall-clock@0.2.6\"", IMPORTS),
        (
            "(core func $socket ",
            "(core func $stdout (canon lower (func $stdout \"get-stdout\")))
             (core func $stderr (canon lower (func $stderr \"get-stderr\")))
             (core func $drop-stream (canon resource.drop $stream))
             (core func $stream-subscribe (canon lower (func $streams \"[method]output-stream.subscribe\")))
             (core func $socket ",
        ),
        (
            "(import \"host\" \"socket\"",
            "(import \"host\" \"stdout\" (func $stdout (result i32)))
             (import \"host\" \"stderr\" (func $stderr (result i32)))
             (import \"host\" \"drop-stream\" (func $drop-stream (param i32)))
             (import \"host\" \"stream-subscribe\" (func $stream-subscribe (param i32) (result i32)))
             (import \"host\" \"socket\"",
        ),
        (
            "(export \"socket\" (func $socket))",
            "(export \"stdout\" (func $stdout)) (export \"stderr\" (func $stderr))
             (export \"drop-stream\" (func $drop-stream))
             (export \"stream-subscribe\" (func $stream-subscribe))
             (export \"socket\" (func $socket))",
        ),
        (
            "(call $rejected (i32.const 0) (i32.const 1024) (i32.const 0)))

    (func $trap-if",
            VERBS,
        ),
        (
            "(if (call $is (local.get $verb) (i32.const 105)) (then (return (call $number (local.get $index)))))",
            "(if (call $is (local.get $verb) (i32.const 120)) (then (return (call $apply (local.get $index)
               (i64.const 0) (i64.const 0) (i32.add (local.get $at) (i32.const 1))
               (i32.sub (local.get $len) (i32.const 1))))))",
        ),
        (
            "(call $read (local.get $source)",
            restore,
        ),
    ];
    guest_with(query, |text| {
        edits.into_iter().fold(text, |text, (what, with)| {
            assert!(text.contains(what), "{what}");
            text.replacen(what, with, 1)
        })
    })
}

pub(super) const READS: &str = "(call $read (local.get $source)";

pub(super) fn component(restore: &str) -> Arc<Component> {
    let component = Component::compile(&Engine::new().unwrap(), &holder(restore));
    Arc::new(component.unwrap())
}

fn start(component: &Arc<Component>) -> WasmMachine {
    let (context, label) = (context(0), MachineLabel::default());
    WasmMachine::new(Arc::clone(component), Profile::default(), context, label).unwrap()
}

fn number(n: u64) -> Outcome {
    Outcome::Reply(Bytes::copy_from_slice(&n.to_le_bytes()))
}

fn context(index: u64) -> EntryContext {
    EntryContext {
        index: LogIndex(index),
        now: 1_700_000_000_000_000_000 + index,
        ..EntryContext::default()
    }
}

fn apply(machine: &mut WasmMachine, index: u64, command: &str) -> Applied {
    let command = [Bytes::copy_from_slice(command.as_bytes())];
    machine.apply(&context(index), &command).to_end().unwrap()
}

fn run<'a>(machine: &mut WasmMachine, commands: impl IntoIterator<Item = &'a str>) -> Vec<Applied> {
    let commands = (1..).zip(commands);
    commands
        .map(|(index, command)| apply(machine, index, command))
        .collect()
}

/// What the instance of a machine with this history would itself answer.
fn itself(component: &Arc<Component>, history: &[&str], query: &str) -> (Outcome, u64) {
    let mut machine = start(component);
    run(&mut machine, history.iter().copied());
    let context = context(history.len() as u64);
    let mut present = machine.present.writing().to_end();
    let mut instance = match present.get_mut().take() {
        Some(instance) => instance,
        None => machine.present.rebuild().to_end().unwrap(),
    };
    match instance.query(&context, query.as_bytes()).to_end() {
        Ok(answer) => answer,
        Err(Failure::Guest { fault, .. }) => (Outcome::Fault(fault), machine.profile().query_fuel),
        Err(other) => panic!("{other:?}"),
    }
}

/// Handles are held, given back in order and out of order, waited for, and in the end none is left.
const HISTORY: [&str; 22] = [
    "O",
    "E",
    "S",
    "xnone",
    "D1",
    "S",
    "Q3",
    "S",
    "O",
    "U2",
    "add",
    "unreachable",
    "D2",
    "K1",
    "Q1",
    "O",
    "u",
    "E",
    "D4",
    "Q5",
    "D1",
    "S",
];

const QUERIES: [&str; 9] = ["xO", "xE", "xS", "xK1", "xK3", "xU2", "xD1", "xQ1", "get"];

// P-20
#[test]
fn a_machine_that_holds_handles_answers_as_the_instance_itself_would() {
    on_apply_thread(|| {
        let component = component(READS);
        let mut machine = start(&component);
        let mut unasked = start(&component);
        let mut reader = machine.wasm_reader();
        for len in 0..=HISTORY.len() {
            let history = &HISTORY[..len];
            if let Some(command) = history.last() {
                let applied = apply(&mut machine, len as u64, command);
                assert_eq!(applied, apply(&mut unasked, len as u64, command));
            }
            for query in QUERIES {
                let expected = itself(&component, history, query);
                // A query may leave handles behind, which the next one must not find.
                for _ in 0..2 {
                    let asked = Bytes::from_static(query.as_bytes());
                    let answer = reader.query(&asked).to_end().unwrap();
                    assert_eq!(
                        (answer.outcome, answer.fuel),
                        expected,
                        "{query} after {history:?}"
                    );
                }
            }
        }
        assert_eq!(reader.builds(), 0);
        // Of the places that are free the one that was given back last is given next.
        let numbered = |query| itself(&component, &HISTORY[..7], query).0;
        assert_eq!([numbered("xO"), numbered("xS")], [number(3), number(3)]);
    });
}

#[test]
fn a_machine_that_took_handles_while_it_was_restored_is_forked_all_the_same() {
    on_apply_thread(|| {
        let take = "(drop (call $stdout))";
        let give_back = "(call $drop-pollable (call $subscribe (i64.const 5)))";
        for before in [take, give_back] {
            let restore = format!("{before} {READS}");
            let component = component(&restore);
            let mut machine = start(&component);
            run(&mut machine, ["S", "add"]);
            let mut saved = Vec::new();
            machine.save(&context(3), &mut saved).to_end().unwrap();
            let restored = |machine: &mut WasmMachine| {
                let saved = Bytes::from(saved.clone());
                machine.restore(&context(3), 3, saved).to_end().unwrap();
            };
            restored(&mut machine);
            let mut reader = machine.wasm_reader();
            for query in ["xO", "xS", "get"] {
                let asked = Bytes::from_static(query.as_bytes());
                let answer = reader.query(&asked).to_end().unwrap();
                let mut other = start(&component);
                restored(&mut other);
                let mut present = other.present.writing().to_end();
                let instance = present.get_mut().as_mut().unwrap();
                let expected = instance.query(&context(3), query.as_bytes()).to_end();
                assert_eq!(
                    (answer.outcome, answer.fuel),
                    expected.unwrap(),
                    "{query} {restore}"
                );
            }
            assert_eq!(reader.builds(), 0);
        }
    });
}

#[test]
fn queries_that_leave_handles_behind_never_use_them_up() {
    on_apply_thread(|| {
        let component = component(READS);
        let mut machine = start(&component);
        run(&mut machine, ["O", "E", "D1"]);
        let mut reader = machine.wasm_reader();
        let asked = Bytes::from_static(b"xS");
        let first = reader.query(&asked).to_end().unwrap();
        for _ in 0..1100 {
            assert_eq!(reader.query(&asked).to_end().unwrap(), first);
        }
        assert_eq!(reader.forks(), 1);
    });
}

#[test]
fn commands_that_run_in_a_fork_leave_the_machine_the_handles_that_they_took() {
    on_apply_thread(|| {
        let component = component(READS);
        let without = Component::compile_without_images(&Engine::new().unwrap(), &holder(READS));
        let without = Arc::new(without.unwrap());
        // After a command that fails, commands run in a fork for a while.
        let mut commands = Vec::new();
        for command in HISTORY {
            commands.extend(["unreachable", command]);
        }
        let [mut one, mut other] = [&component, &without].map(start);
        assert_eq!(
            run(&mut one, commands.iter().copied()),
            run(&mut other, commands)
        );
        assert!(
            one.present
                .guest
                .forks
                .load(std::sync::atomic::Ordering::Relaxed)
                > 0
        );
        assert!(one.present.rebuilds() < other.present.rebuilds());
    });
}

#[test]
fn an_image_has_the_handles_that_its_machine_holds() {
    on_apply_thread(|| {
        let component = component(READS);
        for len in [3, 5, 8, 13, 22] {
            let mut machine = start(&component);
            run(&mut machine, HISTORY[..len].iter().copied());
            let at = context(len as u64);
            let begun = machine.image(&at).to_end().unwrap();
            let image = begun.expect("it can have an image").finish().unwrap();
            let mut resumed = start(&component);
            apply(&mut resumed, 1, "S");
            resumed.resume(&at, image).to_end().unwrap();
            for (index, command) in (len as u64 + 1..).zip(HISTORY) {
                let [one, other] =
                    [&mut machine, &mut resumed].map(|machine| apply(machine, index, command));
                assert_eq!(one, other, "{command} after {:?}", &HISTORY[..len]);
            }
        }
    });
}
