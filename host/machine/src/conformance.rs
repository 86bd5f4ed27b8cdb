//! What every [`StateMachine`] that speaks the key-value requests of `examples/kv` must do, whatever it is made of.
//!
//! One suite for the sandboxed machine, a native one and any other: it finds out whether an implementation keeps the
//! contract that replication stands on, not whether it is fast.

use std::collections::BTreeMap;

use bytes::Bytes;
use skep_core::id::{LogIndex, NodeId, Term};
use skep_core::outcome::{ChangeKind, ConfChange, EntryContext, LeaderChanged, Outcome};

use crate::{Applied, MachineError, StateMachine, ToEnd};

/// Commands of the random part. Enough for keys to be met, changed and missed many times over.
const RANDOM_COMMANDS: u64 = 2_000;

/// Makes a machine at the start of its group; each call the same.
pub type Make<'a> = dyn FnMut() -> Box<dyn StateMachine> + 'a;

/// Runs the whole suite on machines from `make`.
///
/// # Panics
///
/// At the first rule that is broken, with what was expected and what came.
pub fn check(make: &mut Make<'_>) {
    answers_are_as_documented(&mut *make());
    random_commands_agree_with_a_map(&mut *make());
    an_entry_of_many_commands_means_the_same_as_many_entries(make);
    the_same_log_gives_the_same_everything(make);
    a_restored_machine_goes_on_as_the_one_that_saved(make);
    saving_twice_gives_the_same_bytes(&mut *make());
    queries_leave_no_trace(make);
    a_refused_restore_keeps_the_state(&mut *make());
    hooks_reach_the_state(&mut *make());
}

/// The context of the entry at `index`; every machine of the suite sees the same.
pub fn context(index: u64) -> EntryContext {
    let mut entropy = [0; 16];
    entropy[..8].copy_from_slice(&scramble(index).to_le_bytes());
    entropy[8..].copy_from_slice(&scramble(!index).to_le_bytes());
    EntryContext {
        index: LogIndex(index),
        term: Term(1),
        now: 1_800_000_000_000_000_000 + index,
        entropy,
    }
}

fn answers_are_as_documented(machine: &mut dyn StateMachine) {
    let mut entry = 0;
    let mut apply = |command: &[u8]| {
        entry += 1;
        one(machine
            .apply(&context(entry), &[Bytes::copy_from_slice(command)])
            .to_end())
    };
    for (command, expected) in [
        ("put greeting hello, world", "OK 1"),
        ("get greeting", "hello, world"),
        ("gets greeting", "1 hello, world"),
        ("put empty ", "OK 2"),
        ("get empty", ""),
        ("incr n", "1"),
        ("incr n -5", "-4"),
        ("cas greeting 1 bye", "OK 5"),
        ("count", "3"),
        ("delete empty", "OK 6"),
        ("scan g", "greeting 5 3\nbye\nEND\n"),
    ] {
        assert_eq!(apply(command.as_bytes()), reply(expected), "{command}");
    }
    for (command, code) in [
        ("get missing", 404),
        ("delete missing", 404),
        ("cas greeting 1 late", 409),
        ("incr greeting", 422),
        ("frobnicate", 400),
        ("", 400),
    ] {
        let outcome = apply(command.as_bytes());
        assert!(
            matches!(&outcome, Outcome::Rejected { code: found, message } if *found == code && !message.is_empty()),
            "{command}: {outcome:?}"
        );
    }
    let every_byte = (0..=255).cycle().take(70_000).collect::<Vec<u8>>();
    assert_eq!(
        apply(&[b"put bytes ", &every_byte[..]].concat()),
        reply("OK 7")
    );
    assert_eq!(apply(b"get bytes"), Outcome::Reply(every_byte.into()));

    assert_eq!(query(machine, "get greeting"), reply("bye"));
    assert!(matches!(
        query(machine, "get missing"),
        Outcome::Rejected { code: 404, .. }
    ));
    assert!(
        matches!(
            query(machine, "put a b"),
            Outcome::Rejected { code: 405, .. }
        ),
        "a query may not write"
    );
    assert_eq!(query(machine, "count"), reply("3"));
}

fn random_commands_agree_with_a_map(machine: &mut dyn StateMachine) {
    let mut map = BTreeMap::new();
    for index in 1..=RANDOM_COMMANDS {
        let draw = scramble(index);
        let key = format!("key-{}", draw % 50);
        let value = (draw >> 8) % 1_000;
        let (command, expected) = match (draw >> 32) % 4 {
            0 | 1 => {
                map.insert(key.clone(), value.to_string());
                (format!("put {key} {value}"), None)
            }
            2 => (
                format!("delete {key}"),
                map.remove(&key).is_none().then_some(404),
            ),
            _ => {
                let sum = map
                    .get(&key)
                    .map_or(0, |held| held.parse::<u64>().unwrap_or(0))
                    + value;
                map.insert(key.clone(), sum.to_string());
                (format!("incr {key} {value}"), None)
            }
        };
        let outcome = one(machine
            .apply(&context(index), &[command.clone().into()])
            .to_end());
        match (&outcome, expected) {
            (Outcome::Reply(_), None) => {}
            (Outcome::Rejected { code, .. }, Some(expected)) if *code == expected => {}
            other => panic!("{command}: {other:?}"),
        }
        let held = map.get(&key).map_or_else(|| None, |held| Some(reply(held)));
        let read = query(machine, &format!("get {key}"));
        match held {
            Some(held) => assert_eq!(read, held, "after {command}"),
            None => assert!(
                matches!(read, Outcome::Rejected { code: 404, .. }),
                "after {command}: {read:?}"
            ),
        }
    }
    assert_eq!(query(machine, "count"), reply(&map.len().to_string()));
}

fn an_entry_of_many_commands_means_the_same_as_many_entries(make: &mut Make<'_>) {
    let (mut many, mut few) = (make(), make());
    for first in (1..200).step_by(10) {
        let commands = (first..first + 10).map(command).collect::<Vec<_>>();
        let together = applied(few.apply(&context(first), &commands).to_end()).outcomes;
        let apart = commands.iter().map(|command| {
            one(many
                .apply(&context(first), std::slice::from_ref(command))
                .to_end())
        });
        assert_eq!(together, apart.collect::<Vec<_>>(), "entry {first}");
    }
    assert_eq!(save(&mut *many, 200), save(&mut *few, 200));
}

fn the_same_log_gives_the_same_everything(make: &mut Make<'_>) {
    let (mut left, mut right) = (make(), make());
    assert_eq!(
        run(&mut *left, 1..100),
        run(&mut *right, 1..100),
        "outcomes or fuel differ"
    );
    assert_eq!(
        save(&mut *left, 100),
        save(&mut *right, 100),
        "saved bytes differ"
    );
}

fn a_restored_machine_goes_on_as_the_one_that_saved(make: &mut Make<'_>) {
    let mut veteran = make();
    run(&mut *veteran, 1..60);
    let bytes = save(&mut *veteran, 60);
    let schema = veteran.describe().schema;
    let mut newcomer = make();
    // At a barrier every replica is rebuilt from the bytes, the one that wrote them too.
    for machine in [&mut veteran, &mut newcomer] {
        machine
            .restore(&context(60), schema, bytes.clone())
            .to_end()
            .expect("a machine restores what it saved");
    }
    assert_eq!(
        save(&mut *newcomer, 60),
        bytes,
        "restore and save are not inverse"
    );
    assert_eq!(
        run(&mut *veteran, 61..120),
        run(&mut *newcomer, 61..120),
        "outcomes or fuel differ after a restore"
    );
    assert_eq!(query(&mut *veteran, "scan"), query(&mut *newcomer, "scan"));
    assert_eq!(
        save(&mut *veteran, 120),
        save(&mut *newcomer, 120),
        "saved bytes differ after a restore"
    );
}

fn saving_twice_gives_the_same_bytes(machine: &mut dyn StateMachine) {
    run(machine, 1..30);
    let first = save(machine, 30);
    assert_eq!(save(machine, 30), first);
    run(machine, 31..40);
    assert_ne!(save(machine, 40), first);
}

fn queries_leave_no_trace(make: &mut Make<'_>) {
    let (mut asked, mut unasked) = (make(), make());
    for index in 1..60 {
        query(&mut *asked, "scan");
        query(&mut *asked, &format!("get key-{}", index % 7));
        query(&mut *asked, "nonsense");
        let commands = entry(index);
        assert_eq!(
            applied(asked.apply(&context(index), &commands).to_end()),
            applied(unasked.apply(&context(index), &commands).to_end()),
            "entry {index}"
        );
    }
    assert_eq!(save(&mut *asked, 60), save(&mut *unasked, 60));
}

fn a_refused_restore_keeps_the_state(machine: &mut dyn StateMachine) {
    run(machine, 1..30);
    let before = query(machine, "scan");
    let descriptor = machine.describe();
    for (schema, bytes) in [
        (descriptor.schema, Bytes::from_static(b"not a snapshot")),
        (descriptor.schema.wrapping_add(1), Bytes::new()),
    ] {
        let refused = machine.restore(&context(30), schema, bytes).to_end();
        assert!(
            matches!(
                refused,
                Err(MachineError::Guest {
                    call: "restore",
                    ..
                })
            ),
            "{refused:?}"
        );
        assert_eq!(query(machine, "scan"), before);
    }
    assert!(matches!(
        one(machine
            .apply(&context(31), &[Bytes::from_static(b"incr after")])
            .to_end()),
        Outcome::Reply(_)
    ));
}

fn hooks_reach_the_state(machine: &mut dyn StateMachine) {
    let change = ConfChange {
        kind: ChangeKind::AddVoter,
        node: NodeId(3),
        data: Bytes::from_static(b"rack-a"),
    };
    assert_eq!(
        one(machine.apply_conf_change(&context(1), &change).to_end()),
        reply("")
    );
    let event = LeaderChanged {
        old: NodeId(0),
        new: NodeId(3),
        term: Term(9),
    };
    let applied = applied(machine.process_status_change(&context(2), &event).to_end());
    assert!(applied.outcomes.is_empty(), "{applied:?}");
    let Outcome::Reply(stats) = query(machine, "stats") else {
        panic!("no stats")
    };
    let stats = String::from_utf8_lossy(&stats);
    for line in ["leader 3", "term 9", "member 3 voter rack-a"] {
        assert!(
            stats.lines().any(|found| found == line),
            "no `{line}` in:\n{stats}"
        );
    }
}

/// One to five commands.
fn entry(index: u64) -> Vec<Bytes> {
    (0..=scramble(index) % 5)
        .map(|at| command(index * 8 + at))
        .collect()
}

fn command(seed: u64) -> Bytes {
    let draw = scramble(seed);
    let key = draw % 20;
    match (draw >> 16) % 6 {
        0 | 1 => format!("put key-{key} value {}", draw >> 40),
        2 => format!("incr number-{key} {}", (draw >> 40) % 100),
        3 => format!("delete key-{key}"),
        4 => format!("get key-{key}"),
        _ => format!("cas key-{key} {} other", (draw >> 40) % 50),
    }
    .into()
}

/// The finaliser of SplitMix64: different numbers in, numbers without a pattern out.
fn scramble(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn run(machine: &mut dyn StateMachine, indices: std::ops::Range<u64>) -> Vec<Applied> {
    indices
        .map(|index| applied(machine.apply(&context(index), &entry(index)).to_end()))
        .collect()
}

fn applied(result: Result<Applied, MachineError>) -> Applied {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn one(result: Result<Applied, MachineError>) -> Outcome {
    let mut outcomes = applied(result).outcomes;
    assert_eq!(outcomes.len(), 1, "one call, one outcome: {outcomes:?}");
    outcomes.remove(0)
}

fn reply(text: &str) -> Outcome {
    Outcome::Reply(Bytes::copy_from_slice(text.as_bytes()))
}

fn query(machine: &mut dyn StateMachine, request: &str) -> Outcome {
    machine
        .query(&Bytes::copy_from_slice(request.as_bytes()))
        .to_end()
        .unwrap_or_else(|error| panic!("{request}: {error}"))
}

fn save(machine: &mut dyn StateMachine, index: u64) -> Bytes {
    let mut bytes = Vec::new();
    machine
        .save(&context(index), &mut bytes)
        .to_end()
        .unwrap_or_else(|error| panic!("{error}"));
    bytes.into()
}
