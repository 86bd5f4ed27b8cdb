//! Each machine of `tests/machines` has one mistake, and the rehearsal finds it; the key-value machine has none.

use std::sync::Arc;

use skep_machine::wasm::{Component, Profile};
use skep_rehearsal::{Check, Class, History, Report, Severity, Verdict, generate, rehearse};
use skep_rehearsal_tests::{ALL, HASH_MAP};

use crate::support::{Random, compile, on_apply_thread};

/// What must be found in a machine.
struct Expected {
    name: &'static str,
    /// The commands that it is rehearsed with, beside puts, gets and pings.
    commands: &'static [&'static str],
    verdict: Verdict,
    check: Check,
    severity: Severity,
    /// A word of the reason.
    word: &'static str,
}

const fn expect(
    name: &'static str,
    commands: &'static [&'static str],
    verdict: Verdict,
    check: Check,
    severity: Severity,
    word: &'static str,
) -> Expected {
    Expected {
        name,
        commands,
        verdict,
        check,
        severity,
        word,
    }
}

/// What dispatchers are rehearsed with.
const DISPATCHES: &[&str] = &["?show", "work w1", "work w2", "work w3", "job j1", "job j2"];

const EXPECTED: [Expected; 17] = {
    use Check::*;
    use Severity::{Error, Warning};
    use Verdict::{Fail, Warnings};
    [
        expect(
            "addresses",
            DISPATCHES,
            Warnings,
            Barriers,
            Warning,
            "outside of its saved state",
        ),
        expect("batch_differs", &[], Fail, Batch, Error, "apply-batch"),
        expect("clock", &["age"], Fail, Barriers, Error, "loses something"),
        expect(
            "dispatcher",
            DISPATCHES,
            Fail,
            Answers,
            Error,
            "`save` writes",
        ),
        expect(
            "float",
            &["add 1", "add 123456789"],
            Fail,
            Barriers,
            Error,
            "loses something",
        ),
        expect(
            "forgetful",
            &["put gone "],
            Fail,
            RoundTrip,
            Error,
            "drops or changes",
        ),
        expect("grows", &[], Warnings, Growth, Warning, "state grows"),
        expect(
            "hash_map",
            &["first 3", "put k3 5", "put k4 5", "put k5 5", "put k6 5"],
            Warnings,
            Barriers,
            Warning,
            "hash map",
        ),
        expect(
            "hidden_query",
            &["?count"],
            Fail,
            Answers,
            Error,
            "`save` writes",
        ),
        expect(
            "hidden_state",
            &["count"],
            Fail,
            Barriers,
            Error,
            "loses something",
        ),
        expect("leaks", &[], Warnings, Growth, Warning, "leak"),
        expect(
            "mutating_save",
            &[],
            Fail,
            SaveIsReadOnly,
            Error,
            "second save",
        ),
        expect(
            "query_mutates",
            &["queries"],
            Fail,
            Queries,
            Error,
            "query changes",
        ),
        expect(
            "random",
            &["roll"],
            Fail,
            Barriers,
            Error,
            "loses something",
        ),
        expect(
            "rejects_late",
            &["put a 123456789"],
            Fail,
            Rejections,
            Error,
            "changes the state",
        ),
        expect(
            "save_order",
            &[],
            Warnings,
            RoundTrip,
            Warning,
            "another order",
        ),
        expect(
            "stale_cache",
            &["?len"],
            Fail,
            Answers,
            Error,
            "a query must change nothing",
        ),
    ]
};

/// Machines without a mistake that anybody could see.
const HARMLESS: [(&str, &[&str]); 4] = [
    ("counter", &[]),
    ("draws", &["?show", "draw", "draw"]),
    ("nan", &["nan 0", "nan 7", "nan 1048575"]),
    ("prints", &[]),
];

/// Puts, gets and pings, with these commands among them.
fn history(commands: &[&str]) -> History {
    let mut random = Random(11);
    let mut text = String::from("?get k1\n?ping\n");
    for round in 0..30 {
        for _ in 0..3 {
            let key = random.below(9);
            text += &match random.below(4) {
                0..2 => format!("put k{key} {}\n", random.below(1000)),
                2 => format!("get k{key}\n"),
                _ => "ping\n".to_owned(),
            };
        }
        for command in commands {
            text += command;
            text += "\n";
        }
        if round % 8 == 3 {
            text += "what\n";
        }
    }
    History::parse(text.as_bytes()).unwrap()
}

fn report(component: Arc<Component>, history: History) -> Report {
    on_apply_thread(move || rehearse(&component, &Profile::default(), &history).unwrap())
}

fn bytes(name: &str) -> &'static [u8] {
    let (_, bytes) = ALL
        .iter()
        .find(|(other, _)| *other == name)
        .expect("it is built");
    bytes
}

fn component(name: &str) -> Arc<Component> {
    compile(bytes(name))
}

/// The same machine, without images.
fn imageless(name: &str) -> Arc<Component> {
    let component = compile(&skep_rehearsal_tests::imageless(bytes(name)));
    assert!(component.inspection().no_image.is_some());
    component
}

fn print(name: &str, report: &Report) {
    println!("{name}: {:?}", report.verdict);
    for check in &report.checks {
        for finding in &check.findings {
            println!(
                "  {} {:?} {:?}: {}",
                check.check.name(),
                finding.severity,
                finding.at,
                finding.reason
            );
        }
    }
}

#[test]
fn every_planted_mistake_is_found() {
    let mut missed = Vec::new();
    for expected in &EXPECTED {
        let component = match expected.check {
            // Of others a query sees what the log has done, and what it writes is thrown away.
            Check::Answers | Check::Queries => imageless(expected.name),
            _ => component(expected.name),
        };
        let report = report(component, history(expected.commands));
        print(expected.name, &report);
        let found = report.check(expected.check).is_some_and(|check| {
            check.findings.iter().any(|finding| {
                finding.severity == expected.severity && finding.reason.contains(expected.word)
            })
        });
        let host = [Check::Replicas, Check::CanonicalPoints, Check::Faults].map(|check| {
            report
                .check(check)
                .is_none_or(|check| check.findings.is_empty())
        });
        if !found || report.verdict != expected.verdict || host != [true; 3] {
            missed.push((expected.name, found, report.verdict, host));
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn what_the_sandbox_makes_harmless_is_no_finding() {
    for (name, commands) in HARMLESS {
        let report = report(component(name), history(commands));
        print(name, &report);
        assert_eq!(report.verdict, Verdict::Pass);
    }
}

/// What is named in machines that have images, by class, and how bad it is.
#[test]
fn what_is_found_is_named_by_its_class() {
    use Check::{Barriers, Queries, RoundTrip, SaveIsReadOnly};
    use Severity::{Error, Note, Warning};
    use Verdict::{Fail, Pass, Warnings};
    let cases = [
        (
            Class::Unsaved,
            expect(
                "hidden_query",
                &["?count"],
                Fail,
                Barriers,
                Error,
                "`count` is answered",
            ),
        ),
        (
            Class::Unsaved,
            expect(
                "hidden_state",
                &["count"],
                Fail,
                Barriers,
                Error,
                "loses something",
            ),
        ),
        (
            Class::Unsaved,
            expect(
                "addresses",
                DISPATCHES,
                Warnings,
                Barriers,
                Warning,
                "an address",
            ),
        ),
        (
            Class::Seeded,
            expect(
                "dispatcher",
                DISPATCHES,
                Pass,
                Barriers,
                Note,
                "`show` is answered",
            ),
        ),
        (
            Class::Seeded,
            expect(
                "draws",
                &["?show", "draw", "draw"],
                Pass,
                Barriers,
                Note,
                "another state",
            ),
        ),
        (
            Class::Seeded,
            expect(
                "hash_map",
                &["?first 99", "put k3 5", "put k4 5"],
                Pass,
                Barriers,
                Note,
                "another order",
            ),
        ),
        (
            Class::Seeded,
            expect(
                "hash_map",
                &["?first 2", "put k3 5", "put k4 5"],
                Warnings,
                Barriers,
                Warning,
                "each barrier draws anew",
            ),
        ),
        (
            Class::Fuel,
            expect(
                "hash_map",
                &["put k3 5", "put k4 5"],
                Pass,
                Barriers,
                Note,
                "other fuel",
            ),
        ),
        (
            Class::RoundTrip,
            expect(
                "forgetful",
                &["put gone "],
                Fail,
                RoundTrip,
                Error,
                "drops or changes",
            ),
        ),
        (
            Class::SaveWrites,
            expect(
                "mutating_save",
                &[],
                Fail,
                SaveIsReadOnly,
                Error,
                "second save",
            ),
        ),
        (
            Class::QueryWrites,
            expect(
                "query_mutates",
                &["queries"],
                Pass,
                Queries,
                Note,
                "thrown away",
            ),
        ),
        (
            Class::QueryWrites,
            expect(
                "stale_cache",
                &["?len"],
                Pass,
                Queries,
                Note,
                "in a fork of the machine",
            ),
        ),
    ];
    for (class, expected) in cases {
        let name = expected.name;
        let report = report(component(name), history(expected.commands));
        print(name, &report);
        let found = &report.check(expected.check).unwrap().findings;
        let is_it = found.iter().any(|finding| {
            let kind = (finding.class, finding.severity) == (Some(class), expected.severity);
            kind && finding.reason.contains(expected.word)
        });
        assert!(is_it, "{name} {class:?}: {found:?}");
        assert_eq!(report.verdict, expected.verdict, "{name}");
    }
}

/// The order of a hash set of two is the same by chance where it is looked at once or twice.
#[test]
fn a_short_history_is_repeated() {
    let history = History::parse(b"?show\nwork w1\nwork w2\njob j1\n").unwrap();
    let report = report(component("dispatcher"), history);
    print("dispatcher", &report);
    let coverage = report.check(Check::Coverage).unwrap();
    assert!(
        coverage.compared.ends_with("50 calls in 16 rounds"),
        "{coverage:?}"
    );
    // It is told of as it is written.
    assert_eq!((report.events, report.commands, report.replies), (5, 3, 3));
    let barriers = &report.check(Check::Barriers).unwrap().findings;
    assert!(
        barriers
            .iter()
            .any(|finding| finding.class == Some(Class::Seeded)),
        "{barriers:?}"
    );
}

#[test]
fn the_counter_is_the_one_that_newcomers_copy() {
    let code = include_str!("../../../machines/counter.rs");
    let machine = code.find("impl Machine").expect("a machine");
    let end = code.find("\n}\n").expect("its end");
    let readme = include_str!("../../../../README.md");
    assert!(readme.contains(&code[machine..end]));
}

/// A history so short that no snapshot and no reply of it shows anything.
#[test]
fn ten_commands_show_that_queries_are_answered_from_another_state() {
    let text = "?show\nwork w1\nwork w2\nwork w3\nwork w4\nwork w5\nwork w6\nwork w7\njob j1\njob j2\njob j3\n";
    let history = History::parse(text.as_bytes()).unwrap();
    assert_eq!(
        report(component("dispatcher"), history.clone()).verdict,
        Verdict::Pass
    );
    let report = report(imageless("dispatcher"), history);
    print("dispatcher", &report);
    let answers = report.check(Check::Answers).unwrap();
    let [finding] = &answers.findings[..] else {
        panic!("{answers:?}");
    };
    assert_eq!(finding.severity, Severity::Error);
    let place = finding.at.as_ref().unwrap();
    assert!(place.request.starts_with("job j"), "{place:?}");
    for words in [
        "the query `show` is answered with `j1=w",
        "by a replica after this, and with `j1=w",
        "no replica's state",
        "the order of a hash map or set",
    ] {
        assert!(finding.reason.contains(words), "{words}: {finding:?}");
    }
    assert_eq!(report.verdict, Verdict::Fail);
}

/// Which check finds what a query lists in another order, and how bad that is.
#[test]
fn a_query_that_lists_in_the_order_of_a_hash_map_is_warned_of() {
    let text = "?first 9\nput k1 1\nput k2 1\nput k3 1\nput k4 1\nput k5 1\ndel k2\n";
    let history = History::parse(text.as_bytes()).unwrap();
    assert_eq!(
        report(component("hash_map"), history.clone()).verdict,
        Verdict::Pass
    );
    let report = report(imageless("hash_map"), history);
    print("hash_map", &report);
    let answers = report.check(Check::Answers).unwrap();
    let [finding] = &answers.findings[..] else {
        panic!("{answers:?}");
    };
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.reason.contains("another order"), "{finding:?}");
    assert_eq!(report.verdict, Verdict::Warnings);
}

#[test]
fn every_machine_has_its_expectation() {
    let mut expected: Vec<&str> = EXPECTED.iter().map(|expected| expected.name).collect();
    expected.extend(HARMLESS.map(|(name, _)| name));
    expected.sort_unstable();
    let built: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(built, expected);
}

/// Everything the key-value machine takes, wrong requests among it.
fn kv_history() -> History {
    let mut text =
        String::from("?get k1\n?count\n?scan k 5\n?stats\n!member add-learner 4 host:1\n");
    let mut random = Random(5);
    for at in 0..240 {
        let key = random.below(20);
        text += &match random.below(9) {
            0..3 => format!("put k{key} {}\n", random.word()),
            3 => format!("get k{key}\n"),
            4 => format!("delete k{key}\n"),
            5 => format!("incr n{key} {}\n", random.below(9)),
            6 => format!("cas k{key} {} new\n", random.below(40)),
            7 => "scan k 7\n".to_owned(),
            _ => "stats\n".to_owned(),
        };
        if at % 60 == 30 {
            text += "!leader 2\nnonsense\n!empty\nput \\xff\\x00 1\n";
        }
    }
    text += "!member promote 4\n!member remove 4\n";
    History::parse(text.as_bytes()).unwrap()
}

#[test]
fn the_key_value_machine_passes() {
    let report = report(compile(skep_examples::KV), kv_history());
    print("kv", &report);
    println!("{:#?}", report.costs);
    assert_eq!(report.verdict, Verdict::Pass);
    assert!(report.rejections > 10 && report.replies > 150, "{report:?}");
    assert!(report.checks.len() == 13, "{report:?}");
}

#[test]
fn a_machine_nobody_knows_is_asked_for_its_words() {
    let (first, again, report) = on_apply_thread(|| {
        let component = compile(skep_examples::KV);
        let profile = Profile::default();
        let first = generate(&component, &profile).unwrap();
        let again = generate(&component, &profile).unwrap();
        let report = rehearse(&component, &profile, &first).unwrap();
        (first, again, report)
    });
    print("kv, generated", &report);
    assert_eq!(first, again);
    let verbs = [
        "put ", "get ", "delete ", "cas ", "incr ", "scan", "count", "stats",
    ];
    let missing = verbs.iter().find(|verb| {
        !first
            .commands()
            .any(|command| command.starts_with(verb.as_bytes()))
    });
    assert_eq!(missing, None);
    assert!(report.replies * 3 > report.commands, "{report:?}");
    assert!(report.verdict <= Verdict::Warnings);
}

#[test]
fn the_same_rehearsal_gives_the_same_report() {
    let report = || report(compile(HASH_MAP), history(&["first 2", "put a 9"]));
    assert_eq!(report(), report());
}
