//! Histories as text and as JSON lines.

use std::path::PathBuf;

use skep_checker::{
    CheckerError, History, Limits, Outcome, Place, RawOperation, Reply, Via, jsonl, kv, text,
};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn one_of_each() -> Vec<RawOperation> {
    let history = History::new();
    history.call(1, Via::Log, "put a 1", 10).returned(
        Reply::ok("OK 1"),
        Some(Place::new(7, 2)),
        20,
    );
    history.call(2, Via::Read, "get b", 11).returned(
        Reply::rejected(404, "there is no key \"b\""),
        Some(Place::of_index(7)),
        21,
    );
    history
        .call(3, Via::Stale, "get a", 12)
        .returned(Reply::ok("1"), None, 22);
    history.call(4, Via::Log, "incr a", 13).failed(23);
    history.call(5, Via::Log, "incr a", 14).unknown(24);
    drop(history.call(6, Via::Log, "incr a", 15));
    history.operations()
}

#[test]
fn json_lines_keep_everything() {
    let mut operations = one_of_each();
    let history = History::new();
    history
        .call(9, Via::Log, b"put a \xff\0\n".as_slice(), 30)
        .returned(Reply::ok(b"\xfe".as_slice()), None, 31);
    operations.extend(history.operations());
    let path = file("keeps-everything.jsonl");
    jsonl::write(&path, &operations).unwrap();
    assert_eq!(jsonl::read(&path).unwrap(), operations);
}

#[test]
fn a_damaged_line_is_named() {
    let path = file("damaged.jsonl");
    jsonl::write(&path, &one_of_each()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        format!("\n{}", text.replace("\"read\"", "\"guess\"")),
    )
    .unwrap();
    match jsonl::read(&path) {
        Err(CheckerError::Line { line: 3, reason }) => {
            assert!(reason.contains("guess"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_printed_can_be_parsed() {
    let operations = one_of_each();
    let printed: Vec<_> = operations.iter().map(ToString::to_string).collect();
    assert_eq!(text::parse(&printed.join("\n")).unwrap(), operations);
    assert_eq!(printed[0], "#1 1 10..20 log@7.2 put a 1 -> OK 1");
    assert_eq!(
        printed[1],
        "#2 2 11..21 read@7 get b !! 404 there is no key \"b\""
    );
    assert_eq!(printed[5], "#6 6 15..15 log incr a ??");
}

#[test]
fn malformed_text_is_named() {
    for (line, reason) in [
        ("", None),
        ("# a comment", None),
        ("1 2..3 put a  -> OK 1", None),
        ("1 2..3 read get a ->", None),
        ("1", Some("too early")),
        ("x 2..3 put a 1 ??", Some("not a client")),
        ("1 2-3 put a 1 ??", Some("CALL..RETURN")),
        ("1 2..x put a 1 ??", Some("not a time")),
        ("1 2..3 log@x put a 1 ??", Some("not an index")),
        ("1 2..3 log@1.x put a 1 ??", Some("not an offset")),
        ("1 2..3 put a 1", Some("no outcome")),
        ("1 2..3 put a 1 ?? OK", Some("nothing follows")),
        ("1 2..3 get a !! gone", Some("not a code")),
    ] {
        match (text::parse(&format!("# first\n{line}\n")), reason) {
            (Ok(_), None) => {}
            (Err(CheckerError::Line { line: 2, reason }), Some(part)) => {
                assert!(reason.contains(part), "{line}: {reason}");
            }
            (result, _) => panic!("{line}: {result:?}"),
        }
    }
}

#[test]
fn what_the_model_does_not_know_is_an_error_and_no_verdict() {
    for (line, in_request) in [
        ("1 0..1 count -> 0", true),
        ("1 0..1 stats -> keys 0", true),
        ("1 0..1 drop a -> OK 1", true),
        ("1 0..1 put a !! 400 the request has the form", true),
        ("1 0..1 put a\u{7} 1 ??", true),
        ("1 0..1 cas a 1 ??", true),
        ("1 0..1 cas a x 1 ??", true),
        ("1 0..1 incr a x ??", true),
        ("1 0..1 get a b ??", true),
        ("1 0..1 scan a 1 b c -> END", true),
        ("1 0..1 read put a 1 -> OK 1", true),
        ("1 0..1 put a 1 -> OK", false),
        ("1 0..1 put a 1 -> OK 0", false),
        ("1 0..1 put a 1 -> OK x", false),
        ("1 0..1 put a 1 !! 404 there is no key", false),
        ("1 0..1 put a 1 !! 413 too large", false),
        ("1 0..1 delete a -> 1", false),
        ("1 0..1 incr a -> OK 1", false),
        ("1 0..1 incr a !! 404 there is no key", false),
        ("1 0..1 get a !! 500 broken", false),
        ("1 0..1 gets a -> 1", false),
        ("1 0..1 gets a -> 0 x", false),
        ("1 0..1 cas a 1 x !! 409 conflict", false),
        (
            "1 0..1 cas a 1 x !! 409 \"b\" has version 2, not 1; read it again with `gets`",
            false,
        ),
        ("1 0..1 scan !! 400 no", false),
        ("1 0..1 scan -> END", false),
    ] {
        let history = text::parse(line).unwrap();
        match (kv::check(&history, Limits::default()), in_request) {
            (Err(CheckerError::Request { id: 1, .. }), true) => {}
            (Err(CheckerError::Reply { id: 1, .. }), false) => {}
            (result, _) => panic!("{line}: {result:?}"),
        }
    }
    let mut history = one_of_each();
    history[0].ret = 9;
    assert!(matches!(
        kv::check(&history, Limits::default()),
        Err(CheckerError::Interval {
            id: 1,
            call: 10,
            ret: 9
        })
    ));
}

#[test]
fn the_largest_numbers_are_judged_like_others() {
    let text = "1 0..1 log@18446744073709551615 put a 1 -> OK 18446744073709551615\n\
                1 2..3 log@18446744073709551615 incr a -> 2\n\
                1 4..18446744073709551615 incr a ??\n\
                1 5..18446744073709551615 read@18446744073709551615 get a -> 3\n";
    let history = text::parse(text).unwrap();
    let report = kv::check(&history, Limits::default()).unwrap();
    // The second command may not have the index of the first.
    assert!(report.blind.is_linearizable(), "{report}");
    assert!(!report.is_linearizable(), "{report}");
}

#[test]
fn a_scan_is_read_page_by_page() {
    let scan = |request: &'static str, reply: &'static str| {
        let history = History::new();
        for (key, version) in [("a", "OK 1"), ("b", "OK 2"), ("c", "OK 3")] {
            let put = history.call(1, Via::Log, format!("put {key} x"), 0);
            put.returned(Reply::ok(version), None, 1);
        }
        let call = history.call(2, Via::Read, request, 2);
        call.returned(Reply::ok(reply), None, 3);
        kv::check(&history.operations(), Limits::default()).map(|report| report.is_linearizable())
    };
    for (request, reply) in [
        ("scan", "a 1 1\nx\nb 2 1\nx\nc 3 1\nx\nEND\n"),
        ("scan  2", "a 1 1\nx\nb 2 1\nx\nMORE b\n"),
        ("scan  2 b", "c 3 1\nx\nEND\n"),
        ("scan b", "b 2 1\nx\nEND\n"),
        ("scan d", "END\n"),
        ("scan b 5 a", "b 2 1\nx\nEND\n"),
        ("scan b 5 c", "END\n"),
    ] {
        assert!(scan(request, reply).unwrap(), "{request} {reply:?}");
    }
    for (request, reply) in [
        ("scan", "a 1 1\nx\nc 3 1\nx\nEND\n"),
        ("scan", "a 1 1\nx\nb 2 1\ny\nc 3 1\nx\nEND\n"),
        ("scan", "a 1 1\nx\nb 2 1\nx\nEND\n"),
        ("scan  2", "a 1 1\nx\nc 3 1\nx\nMORE c\n"),
        ("scan", "a 1 1\nx\nb 2 1\nx\nc 3 1\nx\nd 4 1\nx\nEND\n"),
    ] {
        assert!(!scan(request, reply).unwrap(), "{request} {reply:?}");
    }
    for (request, reply) in [
        ("scan", "a 1 1\nx\nEND\nmore"),
        ("scan", "a 1 9\nx\nEND\n"),
        ("scan", "a 0 1\nx\nEND\n"),
        ("scan", "b 2 1\nx\na 1 1\nx\nEND\n"),
        ("scan b", "a 1 1\nx\nEND\n"),
        ("scan  2 b", "b 2 1\nx\nEND\n"),
        ("scan  1", "a 1 1\nx\nb 2 1\nx\nMORE b\n"),
        ("scan  1", "a 1 1\nx\nMORE b\n"),
        ("scan", "a 1 1\nx\n"),
    ] {
        assert!(
            matches!(scan(request, reply), Err(CheckerError::Reply { id: 4, .. })),
            "{request} {reply:?}"
        );
    }
}

#[test]
fn many_tasks_share_one_history() {
    let history = History::new();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let history = history.clone();
            scope.spawn(move || {
                for at in 0..500 {
                    let call = history.call(client, Via::Log, "incr a", at);
                    if at % 2 == 0 {
                        call.failed(at + 1);
                    }
                }
            });
        }
    });
    let operations = history.operations();
    assert_eq!(operations.len(), 4000);
    assert!(
        operations
            .iter()
            .zip(1..)
            .all(|(operation, id)| operation.id == id)
    );
    let failed = operations
        .iter()
        .filter(|operation| operation.outcome == Outcome::Failed);
    assert_eq!(failed.count(), 2000);
}
