//! Two replicas with the same log may not differ in anything a guest can see.

use bytes::Bytes;
use skep_core::outcome::Outcome;
use skep_machine::{Applied, StateMachine, ToEnd};

use crate::guest::{FULL, apply, context, machine, number, on_apply_thread, save};

const COMMANDS: [&str; 7] = ["time", "add", "Memory", "unreachable", "noise", "j", "get"];

/// Entries of one to four commands, some of which fail.
fn entry(index: u64) -> Vec<Bytes> {
    (0..=index % 4)
        .map(|at| {
            Bytes::from_static(
                COMMANDS[((index * 5 + at * 3) % COMMANDS.len() as u64) as usize].as_bytes(),
            )
        })
        .collect()
}

fn run(machine: &mut dyn StateMachine, indices: std::ops::Range<u64>) -> Vec<Applied> {
    indices
        .map(|index| {
            machine
                .apply(&context(index), &entry(index))
                .to_end()
                .unwrap()
        })
        .collect()
}

// P-21
#[test]
fn two_machines_with_the_same_log_agree_in_replies_and_fuel() {
    on_apply_thread(|| {
        let (mut one, mut two) = (machine(&FULL), machine(&FULL));
        assert_eq!(run(&mut one, 1..80), run(&mut two, 1..80));
    });
}

// P-21
#[test]
fn a_machine_restored_at_a_barrier_agrees_with_one_that_was_always_there() {
    on_apply_thread(|| {
        let mut veteran = machine(&FULL);
        run(&mut veteran, 1..40);
        // At the barrier the veteran is rebuilt from its own bytes; the newcomer gets them from it.
        let bytes = save(&mut veteran, 40);
        veteran
            .restore(&context(40), 3, bytes.clone())
            .to_end()
            .unwrap();
        let mut newcomer = machine(&FULL);
        newcomer.restore(&context(40), 3, bytes).to_end().unwrap();
        assert_eq!(run(&mut veteran, 41..80), run(&mut newcomer, 41..80));
        assert_eq!(save(&mut veteran, 80), save(&mut newcomer, 80));
    });
}

#[test]
fn an_instance_that_was_rebuilt_agrees_with_one_that_was_not() {
    let (mut rebuilt, mut whole) = (machine(&FULL), machine(&FULL));
    for index in 1..20 {
        // A save ends the instance; the next call builds it again from the journal.
        save(&mut rebuilt, index);
        let commands = [
            Bytes::from_static(b"time"),
            Bytes::from_static(b"add"),
            Bytes::from_static(b"Memory"),
        ];
        let expected = whole.apply(&context(index), &commands).to_end().unwrap();
        assert_eq!(
            rebuilt.apply(&context(index), &commands).to_end().unwrap(),
            expected,
            "entry {index}"
        );
    }
}

#[test]
fn time_and_randomness_come_from_the_entry() {
    let mut machine = machine(&FULL);
    let read = |machine: &mut dyn StateMachine, index| {
        let outcomes = apply(machine, index, &["time"]);
        let [Outcome::Reply(reply)] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        let words = reply
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect::<Vec<_>>();
        assert_eq!(reply.len(), 74);
        // The environment is an empty list, and a socket is refused with `access-denied`.
        assert_eq!(words[8] >> 32, 0);
        assert_eq!(reply[72..], [1, 1]);
        words
    };
    let first = read(&mut machine, 1);
    let stamp = context(1).now;
    assert_eq!(first[0], stamp + 1);
    // A sleep takes no time here and a second there.
    assert_eq!(first[1], stamp + 1 + 1_000_000_000 + 1);
    assert_eq!(first[2], (stamp + 1_000_000_003) / 1_000_000_000);
    let second = read(&mut machine, 2);
    assert!(second[0] > first[1], "time went back");
    for word in [4, 5] {
        assert_ne!(
            first[word], second[word],
            "randomness does not change with the entry"
        );
    }
    assert_ne!(first[4], first[5]);
    assert_eq!(
        first[6..8],
        second[6..8],
        "the seed belongs to the instance"
    );

    // The seed changes at a barrier, for all replicas alike.
    let bytes = save(&mut machine, 3);
    machine.restore(&context(3), 3, bytes).to_end().unwrap();
    assert_ne!(read(&mut machine, 4)[6..8], first[6..8]);
}

#[test]
fn two_commands_of_one_entry_draw_different_randomness() {
    let mut machine = machine(&crate::guest::PLAIN);
    let outcomes = apply(&mut machine, 1, &["time", "time"]);
    assert_ne!(outcomes[0], outcomes[1]);
    assert_eq!(apply(&mut machine, 2, &["add"]), [number(1)]);
}
