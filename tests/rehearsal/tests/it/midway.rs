//! Why canonical points exist: a machine with a hash map, and one replica of it that was restored midway.

use bytes::Bytes;
use skep_machine::wasm::{Profile, WasmMachine};
use skep_machine::{StateMachine, ToEnd};
use skep_rehearsal_tests::HASH_MAP;

use crate::support::{Random, compile, context, machine, on_apply_thread, save};

/// Entries before the one replica is restored, and after.
const BEFORE: u64 = 2_000;
const AFTER: u64 = 2_000;

/// How two replicas differ over the same entries.
#[derive(Default, PartialEq, Eq, Debug)]
struct Differences {
    fuel: u64,
    replies: u64,
    snapshots_equal: bool,
}

/// Puts and removals, and now and then a reply that shows the order of iteration.
fn command(random: &mut Random) -> Bytes {
    let key = random.below(3_000);
    let text = match random.below(7) {
        0..4 => format!("put k{key} {}", random.below(40)),
        4..6 => format!("del k{key}"),
        _ => "first 3".into(),
    };
    text.into()
}

fn run(
    machine: &mut WasmMachine,
    seed: u64,
    indices: std::ops::Range<u64>,
) -> Vec<(Vec<skep_core::outcome::Outcome>, u64)> {
    let mut random = Random(seed);
    let entry = |index| {
        let applied = machine
            .apply(&context(index), &[command(&mut random)])
            .to_end()
            .unwrap();
        (applied.outcomes, applied.fuel)
    };
    indices.map(entry).collect()
}

/// Two replicas of one log; both save at `BEFORE`, the second is restored from the bytes, and the first as well if
/// `canonical`.
fn compare(canonical: bool) -> Differences {
    let component = compile(HASH_MAP);
    let profile = Profile::default();
    let mut veteran = machine(&component, &profile);
    run(&mut veteran, 1, 1..BEFORE);
    let bytes = save(&mut veteran, &context(BEFORE));
    if canonical {
        veteran
            .restore(&context(BEFORE), 1, bytes.clone())
            .to_end()
            .unwrap();
    }
    let mut restored = machine(&component, &profile);
    restored
        .restore(&context(BEFORE), 1, bytes)
        .to_end()
        .unwrap();
    let end = BEFORE + AFTER;
    let lived = run(&mut veteran, 2, BEFORE + 1..end + 1);
    let replayed = run(&mut restored, 2, BEFORE + 1..end + 1);
    let mut differences = Differences {
        snapshots_equal: save(&mut veteran, &context(end + 1))
            == save(&mut restored, &context(end + 1)),
        ..Differences::default()
    };
    for (one, other) in lived.iter().zip(&replayed) {
        differences.replies += u64::from(one.0 != other.0);
        differences.fuel += u64::from(one.1 != other.1);
    }
    differences
}

// P-21
#[test]
fn a_replica_restored_midway_differs_without_canonical_points_and_not_with_them() {
    let (without, with) = on_apply_thread(|| (compare(false), compare(true)));
    println!(
        "of {AFTER} entries after one replica was restored midway:\n\
         without canonical points {} used other fuel, {} gave another reply; the snapshots at the end were {}\n\
         with canonical points    {} used other fuel, {} gave another reply; the snapshots at the end were {}",
        without.fuel,
        without.replies,
        equal(&without),
        with.fuel,
        with.replies,
        equal(&with),
    );
    assert!(
        without.fuel > AFTER / 10 && without.replies > AFTER / 20,
        "{without:?}"
    );
    assert!(
        without.snapshots_equal,
        "comparing snapshots alone would have seen it: {without:?}"
    );
    assert_eq!(
        with,
        Differences {
            snapshots_equal: true,
            ..Differences::default()
        }
    );
}

fn equal(differences: &Differences) -> &'static str {
    if differences.snapshots_equal {
        "equal"
    } else {
        "different"
    }
}
