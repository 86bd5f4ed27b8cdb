//! Bytes as a snapshot file, and as the host's section in one: what a disk or a peer may hand to a node.
//!
//! Byte 0: with bit 0 digest, checksum and lengths are made to fit, so that damage reaches the sections; the upper bits
//! say in what chunks the file arrives.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_core::effect::Effect;
use skep_core::form::Form;
use skep_core::id::{
    GroupId, Incarnation, LogIndex, NodeId, ReplicaId, RequestId, SessionId, Term,
};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_core::outcome::{ChangeKind, EntryContext, GuestFault, Outcome};
use skep_core::proposal::{Change, Proposal, Response};
use skep_core::sessions::Admission;
use skep_core::state::{HostState, Membership};
use skep_core::{Group, GroupConfig, Recovered};
use skep_log::vfs::Vfs;
use skep_log::{
    GroupKey, LogError, LogPosition, SimVfs, SnapshotFile, SnapshotMark, SnapshotMeta,
    SnapshotStore,
};

/// Bytes of a file before the host's section, and behind the guest's.
const HEADER: usize = 92;
const TRAILER: usize = 40;

/// What reading a snapshot may answer whatever it holds.
const CODES: [&str; 2] = ["snapshot-corrupt", "log-format"];

/// Reads the bytes as a snapshot file, lets them arrive as one, and starts a replica from its host's section.
///
/// # Panics
/// If any of it panics, if a file is taken that its mark does not describe, or if what was read is not what was written.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else {
        return;
    };
    let mut content = rest.to_vec();
    if mode & 1 != 0 {
        mend(&mut content);
    }
    let vfs = SimVfs::new(1);
    let dir = Path::new("/snap");
    vfs.create_dir_all(dir).expect("a sound disk");
    let store = SnapshotStore::open_dir(Arc::new(vfs.clone()), dir).expect("a sound disk");
    let path = dir.join("planted");
    vfs.plant(&path, content.clone());
    let step = usize::from(mode >> 1) + 1;
    let content = Bytes::from(content);
    match store.verify(&path) {
        Ok(file) => {
            whole(&file, &content);
            let (key, mark) = (file.meta().key, file.mark().clone());
            let arrived = arrive(&store, key, &mark, &content, step).expect("a sound file");
            whole(&arrived, &content);
            assert_eq!(arrived.meta(), file.meta());
            let (meta, guest) = store.read(key, &mark).expect("it has just arrived");
            assert_eq!(meta, *file.meta());
            assert_eq!(guest, file.guest().expect("it can be read"));
            store.open(key, &mark).expect("it has just arrived");
            let other = SnapshotMark {
                size: mark.size + 1,
                ..mark.clone()
            };
            assert!(
                store.open(key, &other).is_err() && store.read(key, &other).is_err(),
                "another mark's file was taken"
            );
            host_section(&file.meta().state, mark.position);
        }
        Err(error) => {
            known(&error);
            // Nor does it get in over the network, whatever the sender says that it is.
            let key = GroupKey {
                group: 1,
                incarnation: 1,
            };
            let mut digest = [0; 32];
            let tail = content.len().saturating_sub(32);
            digest[..content.len() - tail].copy_from_slice(&content[tail..]);
            let mark = SnapshotMark {
                position: LogPosition { index: 9, term: 4 },
                digest,
                size: content.len() as u64,
            };
            known(&arrive(&store, key, &mark, &content, step).expect_err("it is not sound"));
            assert!(store.list().expect("a sound disk").is_empty());
        }
    }
}

fn known(error: &LogError) {
    assert!(
        CODES.contains(&error.code().name()),
        "{}: {error}",
        error.code().name()
    );
}

fn whole(file: &SnapshotFile, content: &Bytes) {
    assert_eq!(file.size(), content.len() as u64);
    let sections = file.meta().state.len() + file.guest().expect("it can be read").len();
    assert_eq!(sections + HEADER + TRAILER, content.len());
    let mut read = Vec::new();
    loop {
        let chunk = file
            .read_chunk(read.len() as u64, 100)
            .expect("it can be read");
        if chunk.is_empty() {
            break;
        }
        read.extend_from_slice(&chunk);
    }
    assert_eq!(read, content[..]);
    assert!(
        file.read_chunk(u64::MAX, usize::MAX)
            .expect("it can be read")
            .is_empty()
    );
}

fn arrive(
    store: &SnapshotStore,
    key: GroupKey,
    mark: &SnapshotMark,
    content: &Bytes,
    step: usize,
) -> Result<SnapshotFile, LogError> {
    let too_large = store.receive(key, mark.clone(), mark.size.saturating_sub(1));
    assert!(
        mark.size == 0 || too_large.is_err(),
        "the limit was not kept"
    );
    drop(too_large);
    let mut receiver = store.receive(key, mark.clone(), mark.size)?;
    for (number, chunk) in content.chunks(step).enumerate() {
        let offset = (number * step) as u64;
        assert!(
            receiver.write_chunk(offset + 1, chunk).is_err(),
            "a gap was taken"
        );
        receiver.write_chunk(offset, chunk)?;
        // A repeated chunk is harmless.
        receiver.write_chunk(offset, chunk)?;
    }
    assert_eq!(receiver.received(), mark.size);
    receiver.finish()
}

/// The host's section: if it reads, it reads again the same, and a replica can live on it.
fn host_section(section: &Bytes, position: LogPosition) {
    let Ok((state, context)) = HostState::decode(section.clone()) else {
        return;
    };
    let written = state.encode(&context);
    let (again, same) = HostState::decode(written.clone()).expect("its own bytes");
    assert_eq!(same, context);
    assert_eq!(
        again.encode(&context),
        written,
        "the section changed on the way"
    );
    assert!(again.membership.voters().next().is_some());
    let name = SnapshotName {
        index: LogIndex(position.index),
        term: Term(position.term),
        digest: [0; 32],
        size: 1,
    };
    let mut replicas: Vec<_> = again.membership.members().keys().copied().take(2).collect();
    replicas.push(ReplicaId(7));
    for replica in replicas {
        let node = again
            .membership
            .member(replica)
            .map_or(NodeId(9), |member| member.node);
        let recovered = Recovered {
            replica,
            hard_state: Default::default(),
            entries: Vec::new(),
            truncated: (name.index, name.term),
            snapshot: Some((name.clone(), section.clone())),
        };
        let config = GroupConfig::new(GroupId(1), Incarnation(1), node);
        match Group::recover(config, recovered) {
            Ok(group) => {
                assert_eq!((context.index, context.term), (name.index, name.term));
                live(group, name.index);
            }
            Err(error) => assert!(
                ["snapshot", "log", "raft"].contains(&error.field),
                "{error}"
            ),
        }
    }
}

/// A while in the life of a replica that started from a snapshot.
fn live(mut group: Group, index: LogIndex) {
    let mut waiter = 0;
    let step = |group: &mut Group, input: Input| {
        group.handle(input);
        for _ in 0..8 {
            let mut effects = Vec::new();
            group.poll(&mut effects);
            let mut persisted = None;
            for effect in effects {
                match effect {
                    Effect::Persist(record) => persisted = Some(record.number),
                    Effect::Halt { reason } => assert!(!reason.contains("panicked"), "{reason}"),
                    _ => {}
                }
            }
            let Some(number) = persisted else { break };
            group.handle(Input::Persisted { number });
        }
    };
    step(
        &mut group,
        Input::Restored {
            index,
            memory: None,
        },
    );
    step(&mut group, Input::Campaign);
    let add = Change::Add {
        node: NodeId(u64::MAX),
        data: Bytes::new(),
    };
    for proposal in [
        Proposal::OpenSession,
        Proposal::Barrier,
        Proposal::Change(add),
    ] {
        waiter += 1;
        step(&mut group, Input::Propose { waiter, proposal });
    }
    for now in 0..40 {
        step(&mut group, Input::Tick { now });
    }
    drop(group.status());
}

/// Makes magic, version (unless it is of an image), lengths, checksum and digest right, whatever the rest says. The host's section keeps its length
/// if it fits.
fn mend(content: &mut [u8]) {
    if content.len() < HEADER + TRAILER {
        return;
    }
    let room = content.len() - HEADER - TRAILER;
    content[..8].copy_from_slice(b"SKEPSNAP");
    if content[8..12] != 2u32.to_le_bytes() {
        content[8..12].copy_from_slice(&1u32.to_le_bytes());
    }
    let said = u64::from_le_bytes(content[80..88].try_into().expect("eight bytes"));
    let state = usize::try_from(said).unwrap_or(room).min(room);
    content[80..88].copy_from_slice(&(state as u64).to_le_bytes());
    let checksum = crc32c::crc32c(&content[..88]);
    content[88..92].copy_from_slice(&checksum.to_le_bytes());
    let covered = content.len() - 32;
    content[covered - 8..covered].copy_from_slice(&((room - state) as u64).to_le_bytes());
    let digest = Sha256::digest(&content[..covered]);
    content[covered..].copy_from_slice(&digest);
}

/// A snapshot as a replica makes it, as bytes and mended, and what damage makes of one.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let full = file(section());
    let bare = file(Bytes::new());
    let seed = |mode: u8, content: &[u8]| [&[mode][..], content].concat();
    let mut lengths = full.clone();
    lengths[80..88].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut flipped = full.clone();
    flipped[HEADER + 3] ^= 1;
    let mut version = full.clone();
    version[8] = 3;
    let mut image = full.clone();
    image[8] = 2;
    let cut = &full[..full.len() - 1];
    vec![
        ("full".into(), seed(64, &full)),
        ("full-mended".into(), seed(0xff, &full)),
        ("no-section".into(), seed(32, &bare)),
        ("lengths-mended".into(), seed(1, &lengths)),
        ("flipped".into(), seed(64, &flipped)),
        ("other-version-mended".into(), seed(65, &version)),
        ("other-version".into(), seed(64, &version)),
        ("image".into(), seed(64, &image)),
        ("image-mended".into(), seed(65, &image)),
        ("cut".into(), seed(64, cut)),
        ("short".into(), seed(64, &full[..HEADER])),
        ("empty".into(), seed(64, &[])),
    ]
}

fn file(state: Bytes) -> Vec<u8> {
    let vfs = SimVfs::new(1);
    let store =
        SnapshotStore::open_dir(Arc::new(vfs.clone()), Path::new("/snap")).expect("a sound disk");
    let meta = SnapshotMeta {
        key: GroupKey {
            group: 4,
            incarnation: 2,
        },
        position: LogPosition { index: 9, term: 4 },
        state,
        form: Form::Saved,
        schema: 1,
        component: [6; 32],
    };
    let guest = Bytes::from_static(b"the guest's bytes");
    let sealed = store.seal(meta, guest).expect("in memory");
    let file = sealed.place().expect("a sound disk");
    file.read_chunk(0, usize::MAX)
        .expect("it can be read")
        .to_vec()
}

/// Members of every role, and sessions with every kind of answer.
fn section() -> Bytes {
    let mut membership = Membership::default();
    let mut change = |kind, replica, promote| {
        let data = Bytes::from_static(b"address");
        assert!(membership.apply(kind, ReplicaId(replica), NodeId(replica), &data, promote));
    };
    for replica in 1..=3 {
        change(ChangeKind::AddVoter, replica, false);
    }
    change(ChangeKind::AddLearner, 4, true);
    change(ChangeKind::AddLearner, 5, false);
    change(ChangeKind::Remove, 3, false);
    let mut state = HostState {
        membership,
        leader: NodeId(1),
        now: 77,
        initialized: true,
        ..HostState::default()
    };
    let mut forgotten = Vec::new();
    let session = SessionId(7 << 64 | 9);
    state.sessions.open(session, LogIndex(4), &mut forgotten);
    let outcomes = [
        Outcome::Reply(Bytes::from_static(b"OK 1")),
        Outcome::Rejected {
            code: 404,
            message: "no such key".into(),
        },
        Outcome::Fault(GuestFault::OutOfFuel),
        Outcome::Refused {
            code: 422,
            message: "words that are not kept".into(),
        },
    ];
    for (outcome, sequence) in outcomes.into_iter().zip(1..) {
        let request = RequestId { session, sequence };
        let admission = state
            .sessions
            .admit(request, 0, LogIndex(5), &mut forgotten);
        assert_eq!(admission, Admission::Apply);
        state.sessions.answer(&Response {
            request,
            index: LogIndex(5),
            term: Term(4),
            outcome,
        });
    }
    state.encode(&EntryContext {
        index: LogIndex(9),
        term: Term(4),
        now: 77,
        entropy: [7; 16],
    })
}
