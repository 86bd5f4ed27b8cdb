//! Entries that a newer release wrote: whoever does not know them whole stops, and passes over nothing.

use bytes::Bytes;
use prost::Message;
use raft::eraftpb::{Entry, EntryType};
use skep_core::deployment::DeploymentRecord;
use skep_core::payload::{
    Abort, Barrier, ChangeRecord, Commands, Impasse, Item, Kind, Pause, Payload, Report, Verdict,
};
use skep_core::status::Health;

use crate::cluster::{Cluster, anonymous};

const ENTROPY: Bytes = Bytes::from_static(&[7; 16]);

/// Field 99, a number: 1.
const ANOTHER_FIELD: [u8; 3] = [0x98, 0x06, 0x01];

/// Any message with one more field, as a newer release would write it.
fn with_another_field(message: &impl Message) -> Bytes {
    let mut bytes = message.encode_to_vec();
    bytes.extend(ANOTHER_FIELD);
    bytes.into()
}

fn payload(kind: Option<Kind>) -> Payload {
    Payload {
        now: 1,
        entropy: ENTROPY,
        kind,
    }
}

fn normal(data: impl Into<Bytes>) -> Entry {
    Entry {
        data: data.into(),
        ..Entry::default()
    }
}

fn kind(kind: Kind) -> Entry {
    normal(payload(Some(kind)).encode_to_vec())
}

fn change(record: &ChangeRecord) -> Entry {
    Entry {
        entry_type: EntryType::EntryConfChange,
        context: record.encode_to_vec().into(),
        ..Entry::default()
    }
}

/// A payload whose kind is of this tag, and holds these bytes.
fn of_tag(tag: u8, inner: &[u8]) -> Entry {
    let mut bytes = payload(None).encode_to_vec();
    bytes.extend([tag << 3 | 2, inner.len() as u8]);
    bytes.extend(inner);
    normal(bytes)
}

fn strange() -> Vec<(&'static str, Entry)> {
    let item = Item {
        data: Bytes::from_static(b"command"),
        ..Item::default()
    };
    let mut commands = vec![0x0a];
    let newer = with_another_field(&item);
    commands.push(newer.len() as u8);
    commands.extend(newer);
    let remove = ChangeRecord {
        kind: 3,
        node: 9,
        replica: 9,
        entropy: ENTROPY,
        ..ChangeRecord::default()
    };
    let report = |snapshot: usize, chain: usize| Verdict {
        index: 1,
        reports: vec![Report {
            replica: 1,
            snapshot: vec![1; snapshot].into(),
            chain: vec![1; chain].into(),
            unable: false,
        }],
        trusted: 0,
    };
    let named = |bytes: usize| DeploymentRecord {
        component: vec![5; bytes].into(),
        ..DeploymentRecord::default()
    };
    let context = Entry {
        context: Bytes::from_static(b"for Raft"),
        ..kind(Kind::Pause(Pause { on: false }))
    };
    let second_form = Entry {
        entry_type: EntryType::EntryConfChangeV2,
        ..change(&remove)
    };
    let newer_change = Entry {
        context: with_another_field(&remove),
        ..change(&remove)
    };
    let short = Payload {
        entropy: Bytes::from_static(&[7; 15]),
        ..payload(Some(Kind::Barrier(Barrier::default())))
    };
    let short_change = ChangeRecord {
        entropy: Bytes::new(),
        ..remove.clone()
    };
    let barrier = payload(Some(Kind::Barrier(Barrier::default())));
    vec![
        ("no kind", normal(payload(None).encode_to_vec())),
        ("another kind", of_tag(15, &[])),
        (
            "a field beside the kind",
            normal(with_another_field(&barrier)),
        ),
        ("a field of the kind", of_tag(5, &[0x18, 0x01])),
        ("a barrier's form", of_tag(5, &[0x08, 0x02])),
        ("a field of a command", of_tag(3, &commands)),
        (
            "a session",
            kind(Kind::Commands(Commands {
                items: vec![Item {
                    session: Bytes::from_static(&[7; 15]),
                    ..item.clone()
                }],
            })),
        ),
        ("entropy", normal(short.encode_to_vec())),
        ("a component", kind(Kind::Activate(named(31)))),
        ("no component", kind(Kind::Activate(named(0)))),
        (
            "an impasse's code",
            kind(Kind::Impasse(Impasse {
                index: 1,
                item: 0,
                code: 256,
            })),
        ),
        ("a field of an impasse", of_tag(11, &[0x20, 0x01])),
        ("a reason", kind(Kind::Abort(Abort { index: 1, code: 4 }))),
        (
            "a fault",
            kind(Kind::Abort(Abort {
                index: 1,
                code: 0x1ff,
            })),
        ),
        ("a snapshot's hash", kind(Kind::Verdict(report(31, 16)))),
        ("a chain", kind(Kind::Verdict(report(32, 17)))),
        ("a context", context),
        (
            "a change's kind",
            change(&ChangeRecord {
                kind: 4,
                ..remove.clone()
            }),
        ),
        ("a change's field", newer_change),
        ("a change's form", second_form),
        ("a change's entropy", change(&short_change)),
        ("garbage", normal(Bytes::from_static(&[0xff; 9]))),
    ]
}

// P-26
#[test]
fn what_a_newer_release_wrote_stops_the_replica_with_a_sentence() {
    for (what, entry) in strange() {
        let mut cluster = Cluster::new(1);
        cluster.elect(1);
        cluster.ask(1, anonymous("before")).expect("committed");
        let before = cluster.commands(1);
        cluster.crash(1);
        let entries = &mut cluster.node(1).disk.entries;
        let last = entries.last().expect("a command").clone();
        let strange = Entry {
            index: last.index + 1,
            term: last.term,
            ..entry
        };
        let behind = Entry {
            index: last.index + 2,
            ..last.clone()
        };
        entries.extend([strange, behind]);
        // A restart changes nothing.
        for _ in 0..2 {
            cluster.node(1).halted = None;
            cluster.boot(1);
            cluster.until("it has stopped", |cluster| cluster.node(1).halted.is_some());
            let reason = cluster.node(1).halted.clone().expect("halted");
            let place = format!("entry {}", last.index + 1);
            for word in [&place, "newer release", "start"] {
                assert!(reason.contains(word), "{what}: {reason}");
            }
            assert_eq!(
                cluster.commands(1),
                before,
                "{what}: nothing behind it is applied"
            );
            let health = cluster.status(1).expect("stopped, and here").health;
            assert!(
                matches!(health, Health::Faulted { .. }),
                "{what}: {health:?}"
            );
            cluster.crash(1);
        }
    }
}

/// So does the host's section of a snapshot; nothing of the snapshot is taken.
#[test]
fn a_snapshot_that_a_newer_release_wrote_stops_whoever_is_sent_it() {
    let mut cluster = Cluster::with(3, |config| config.snapshot_entries = 8);
    cluster.elect(1);
    for number in 0..40 {
        let command = anonymous(&number.to_string());
        cluster.ask(1, command).expect("committed");
    }
    cluster.tick(20);
    cluster.crash(3);
    cluster.node(3).disk.files.clear();
    for (_, section, _) in cluster.node(1).disk.files.values_mut() {
        *section = [&section[..], &ANOTHER_FIELD].concat().into();
    }
    cluster.boot(3);
    let before = cluster.status(3).expect("runs").applied;
    cluster.until("it has stopped", |cluster| cluster.node(3).halted.is_some());
    let reason = cluster.node(3).halted.clone().expect("halted");
    for word in ["is not taken", "newer release", "start"] {
        assert!(reason.contains(word), "{reason}");
    }
    let after = cluster.status(3).expect("stopped, and here");
    assert_eq!(after.applied, before, "nothing of it is taken");
    let goes_on = cluster.ask(1, anonymous("after"));
    goes_on.expect("the others are a majority");
}

#[test]
fn what_this_release_writes_it_reads_whole() {
    // The same entries without what is strange about them.
    let item = Item {
        session: skep_core::id::SessionId(1 << 100).to_bytes(),
        sequence: 300,
        acknowledged: 299,
        data: Bytes::from_static(b"command"),
        open: false,
    };
    let commands = Commands {
        items: vec![item, Item::default()],
    };
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.ask(1, anonymous("before")).expect("committed");
    cluster.crash(1);
    let entries = &mut cluster.node(1).disk.entries;
    let last = entries.last().expect("a command").clone();
    let good = [
        kind(Kind::Commands(commands)),
        kind(Kind::Pause(Pause { on: true })),
        normal(Bytes::new()),
        kind(Kind::Pause(Pause { on: false })),
    ];
    for (entry, index) in good.into_iter().zip(last.index + 1..) {
        let term = last.term;
        entries.push(Entry {
            index,
            term,
            ..entry
        });
    }
    cluster.boot(1);
    cluster.elect(1);
    cluster.ask(1, anonymous("behind")).expect("committed");
    // The session of the first is unknown; the second has no bytes, and is a command.
    assert_eq!(cluster.commands(1), ["before", "", "behind"]);
}
