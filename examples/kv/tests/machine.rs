//! The machine as its clients and its host see it.

use skep_example_kv::{Kv, MAX_KEY, MAX_REPLY, MAX_VALUE, code};
use skep_guest::testing::{Harness, Step, replay_matches};
use skep_guest::{ChangeKind, ConfChange, LeaderChanged};

fn kv() -> Harness<Kv> {
    Harness::initialised("").expect("an empty configuration is accepted")
}

fn text(reply: Vec<u8>) -> String {
    String::from_utf8(reply).expect("the reply is text")
}

#[track_caller]
fn apply(kv: &mut Harness<Kv>, request: &str) -> String {
    text(
        kv.apply(request)
            .unwrap_or_else(|rejection| panic!("{request}: {rejection}")),
    )
}

#[track_caller]
fn query(kv: &Harness<Kv>, request: &str) -> String {
    text(
        kv.query(request)
            .unwrap_or_else(|rejection| panic!("{request}: {rejection}")),
    )
}

#[track_caller]
fn rejects(kv: &mut Harness<Kv>, request: &str, code: u32) {
    let before = kv.save().expect("kv saves");
    assert_eq!(
        kv.apply(request).expect_err(request).code,
        code,
        "{request}"
    );
    assert_eq!(
        kv.save().expect("kv saves"),
        before,
        "{request} was rejected and changed the state"
    );
}

#[test]
fn values_come_back_byte_for_byte() {
    let mut kv = kv();
    let every_byte: Vec<u8> = (0..=255).cycle().take(4096).collect();
    kv.apply([b"put bin ".as_slice(), &every_byte].concat())
        .unwrap();
    assert_eq!(kv.query("get bin").unwrap(), every_byte);
    assert_eq!(
        kv.query("gets bin").unwrap(),
        [b"1 ".as_slice(), &every_byte].concat()
    );
    apply(&mut kv, "put empty ");
    assert_eq!(query(&kv, "get empty"), "");
}

#[test]
fn versions_count_changes_and_guard_them() {
    let mut kv = kv();
    assert_eq!(apply(&mut kv, "put a one"), "OK 1");
    assert_eq!(apply(&mut kv, "put b x"), "OK 2");
    assert_eq!(query(&kv, "gets a"), "1 one");
    assert_eq!(apply(&mut kv, "cas a 1 two words"), "OK 3");
    assert_eq!(query(&kv, "get a"), "two words");
    rejects(&mut kv, "cas a 1 three", code::VERSION_MISMATCH);
    rejects(&mut kv, "cas a 0 three", code::VERSION_MISMATCH);
    rejects(&mut kv, "cas new 1 x", code::VERSION_MISMATCH);
    assert_eq!(apply(&mut kv, "cas new 0 x"), "OK 4");
    // A key that was deleted and made again has a version it never had, so an old reader's `cas` fails.
    assert_eq!(apply(&mut kv, "delete a"), "OK 5");
    assert_eq!(apply(&mut kv, "put a one"), "OK 6");
    rejects(&mut kv, "cas a 3 late", code::VERSION_MISMATCH);
}

#[test]
fn missing_keys_are_not_found() {
    let mut kv = kv();
    for request in ["get a", "gets a", "delete a"] {
        rejects(&mut kv, request, code::NOT_FOUND);
    }
    assert_eq!(kv.query("get a").unwrap_err().code, code::NOT_FOUND);
}

#[test]
fn counters_count_and_refuse_what_is_no_number() {
    let mut kv = kv();
    assert_eq!(apply(&mut kv, "incr n"), "1");
    assert_eq!(apply(&mut kv, "incr n 41"), "42");
    assert_eq!(apply(&mut kv, "incr n -50"), "-8");
    assert_eq!(query(&kv, "get n"), "-8");
    apply(&mut kv, "put n 9223372036854775807");
    rejects(&mut kv, "incr n", code::NOT_A_NUMBER);
    apply(&mut kv, "put n -9223372036854775808");
    rejects(&mut kv, "incr n -1", code::NOT_A_NUMBER);
    apply(&mut kv, "put n twelve");
    rejects(&mut kv, "incr n", code::NOT_A_NUMBER);
    rejects(&mut kv, "incr m x", code::BAD_REQUEST);
}

#[test]
fn scans_are_ordered_and_continue_where_they_ended() {
    let mut kv = kv();
    for key in ["b/2", "a", "b/1", "b/3", "c", "b"] {
        apply(&mut kv, &format!("put {key} <{key}\n>"));
    }
    assert_eq!(
        query(&kv, "scan b/ 2"),
        "b/1 3 6\n<b/1\n>\nb/2 1 6\n<b/2\n>\nMORE b/2\n"
    );
    assert_eq!(query(&kv, "scan b/ 2 b/2"), "b/3 4 6\n<b/3\n>\nEND\n");
    assert_eq!(query(&kv, "scan b/ 3"), query(&kv, "scan b/"));
    assert_eq!(query(&kv, "scan b/ 3 a"), query(&kv, "scan b/"));
    assert_eq!(query(&kv, "scan zzz"), "END\n");
    assert_eq!(query(&kv, "scan  1"), "a 2 4\n<a\n>\nMORE a\n");
    assert_eq!(
        (
            query(&kv, "count"),
            query(&kv, "count b"),
            query(&kv, "count b/")
        ),
        ("6".into(), "4".into(), "3".into())
    );
}

#[test]
fn a_scan_of_the_largest_items_fits_a_reply_and_reaches_them_all() {
    let mut kv = kv();
    let keys: Vec<String> = (0..3)
        .map(|n| format!("{n}{}", "k".repeat(MAX_KEY - 1)))
        .collect();
    for key in &keys {
        kv.apply([format!("put {key} ").as_bytes(), &vec![b'v'; MAX_VALUE]].concat())
            .unwrap();
    }
    let mut request = "scan".to_owned();
    for (number, key) in keys.iter().enumerate() {
        let reply = text(kv.query(&request).unwrap());
        assert!(reply.len() <= MAX_REPLY);
        assert!(reply.starts_with(&format!("{key} {} {MAX_VALUE}\n", number + 1)));
        let end = if number == 2 {
            "\nEND\n".to_owned()
        } else {
            format!("\nMORE {key}\n")
        };
        assert!(reply.ends_with(&end));
        request = format!("scan  100 {key}");
    }
}

#[test]
fn queries_change_nothing() {
    let mut kv = kv();
    apply(&mut kv, "put a 1");
    let before = kv.save().unwrap();
    for request in ["put a 2", "cas a 1 2", "delete a", "incr a"] {
        assert_eq!(
            kv.query(request).unwrap_err().code,
            code::NOT_A_QUERY,
            "{request}"
        );
    }
    for request in ["get a", "gets a", "scan", "count", "stats"] {
        query(&kv, request);
    }
    assert_eq!(kv.save().unwrap(), before);
}

#[test]
fn stats_show_keys_leaders_and_members() {
    let mut kv = kv();
    apply(&mut kv, "put key value");
    apply(&mut kv, "put key val");
    apply(&mut kv, "get key");
    rejects(&mut kv, "get nothing", code::NOT_FOUND);
    kv.leader_changed(LeaderChanged {
        old: 0,
        new: 1,
        term: 2,
    });
    kv.leader_changed(LeaderChanged {
        old: 1,
        new: 3,
        term: 5,
    });
    for (kind, node, data) in [
        (ChangeKind::AddVoter, 1, "10.0.0.1:7000"),
        (ChangeKind::AddLearner, 2, "100% new\n"),
        (ChangeKind::AddVoter, 3, ""),
        (ChangeKind::AddLearner, 4, "gone"),
        (ChangeKind::Remove, 4, ""),
        (ChangeKind::Promote, 2, ""),
        (ChangeKind::AddLearner, 5, "x"),
    ] {
        kv.conf_change(&ConfChange {
            kind,
            node,
            data: data.into(),
        })
        .unwrap();
    }
    assert_eq!(
        query(&kv, "stats"),
        "keys 1\nbytes 6\nrevision 2\napplied 3\nleader 3\nterm 5\nleader-changes 2\n\
         member 1 voter 10.0.0.1:7000\nmember 2 voter 100%25%20new%0A\nmember 3 voter\nmember 5 learner x\n"
    );
    apply(&mut kv, "delete key");
    assert!(query(&kv, "stats").starts_with("keys 0\nbytes 0\nrevision 3\napplied 4\n"));
}

#[test]
fn a_configuration_is_refused_loudly() {
    let refusal = Harness::<Kv>::initialised("ttl=3").map(|_| ()).unwrap_err();
    assert_eq!(refusal.code, code::BAD_REQUEST);
}

#[test]
fn replicas_agree_from_every_snapshot() {
    let mut steps = vec![
        Step::LeaderChanged(LeaderChanged {
            old: 0,
            new: 2,
            term: 3,
        }),
        Step::ConfChange(ConfChange {
            kind: ChangeKind::AddVoter,
            node: 1,
            data: b"one".to_vec(),
        }),
    ];
    // A small generator, so that the mix is broad and yet the same on every run.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..120 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let key = (random >> 8) % 9;
        steps.push(Step::apply(match random % 8 {
            0 | 1 => format!("put k{key} {}", random % 1000),
            2 => format!("delete k{key}"),
            3 => format!("incr k{key} {}", random % 50),
            4 => format!("cas k{key} {} new", random % 60),
            5 => format!("gets k{key}"),
            6 => format!("put k{key} not a number"),
            _ => "scan k 5".to_owned(),
        }));
    }
    let replies = replay_matches::<Kv>(&steps).unwrap();
    assert!(replies.iter().any(Result::is_err) && replies.iter().any(Result::is_ok));
}

#[test]
fn damaged_snapshots_are_refused() {
    let mut kv = kv();
    for request in ["put a 1", "put b 2"] {
        apply(&mut kv, request);
    }
    kv.conf_change(&ConfChange {
        kind: ChangeKind::AddVoter,
        node: 1,
        data: b"one".to_vec(),
    })
    .unwrap();
    let saved = kv.save().unwrap();
    let restore =
        |bytes: &[u8]| Harness::<Kv>::restored(1, bytes, kv.context()).map(|kv| kv.save().unwrap());
    assert_eq!(restore(&saved).unwrap(), saved);
    for len in 0..saved.len() {
        assert!(restore(&saved[..len]).is_err(), "cut at {len}");
    }
    assert!(restore(&[saved.as_slice(), b"!"].concat()).is_err());
    // Bytes changed anywhere: never a panic, whatever comes of it.
    for at in 0..saved.len() {
        let mut damaged = saved.clone();
        damaged[at] ^= 0xff;
        let _ = restore(&damaged);
    }
}

#[test]
fn the_snapshot_format_is_the_documented_one() {
    let mut kv = kv();
    apply(&mut kv, "put k v");
    kv.leader_changed(LeaderChanged {
        old: 0,
        new: 7,
        term: 8,
    });
    kv.conf_change(&ConfChange {
        kind: ChangeKind::AddVoter,
        node: 7,
        data: b"d".to_vec(),
    })
    .unwrap();
    let mut expected = Vec::new();
    for number in [1u64, 7, 8, 1, 1, 7] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend(b"\x01\x01\0\0\0d");
    for number in [1u64, 1] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend(b"\x01\0\0\0k");
    expected.extend(1u64.to_le_bytes());
    expected.extend(b"\x01\0\0\0v");
    assert_eq!(kv.save().unwrap(), expected);
}
