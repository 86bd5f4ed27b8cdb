//! Scenario scripts: each rule of the core, and each defect of raft-rs that a rule answers to, as a text that shows it.
//!
//! A script (`tests/scripts/*.txt`, in the manner of etcd-io/raft's `testdata`) is a sequence of blocks: comments and
//! commands, a line `----`, and what the commands print, up to a blank line. `commands` has those for replicas of the core,
//! `bare` those for raft-rs by itself. With `SKEP_REWRITE=1` the expectations are written anew; read each
//! change, because an expectation is a claim about the core, not a record of it. `SKEP_SCRIPT=rule-03` runs the scripts
//! whose names contain the words.

mod bare;
mod commands;
mod script;
mod show;
mod stage;
mod tamper;
mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use script::Script;
use stage::Stage;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

/// The scripts, by name.
fn scripts() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(directory()).expect("the directory of the scripts is there");
    let mut scripts: Vec<_> = entries
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| {
            let name = path.file_stem().unwrap_or_default();
            (name.to_string_lossy().into_owned(), path)
        })
        .collect();
    scripts.sort();
    scripts
}

/// Runs a script; gives what it prints, as a script, or what is wrong with it.
fn play(text: &str) -> Result<String, String> {
    let script = Script::parse(text)?;
    let mut stage = Stage::default();
    script.play(|line, command| {
        catch_unwind(AssertUnwindSafe(|| stage.command(command)))
            .unwrap_or_else(|_| Err("the command panicked, see above".into()))
            .map_err(|error| format!("line {line}: `{command}`: {error}"))
    })
}

#[test]
fn scripts_print_what_they_say() {
    let only = std::env::var("SKEP_SCRIPT").unwrap_or_default();
    let rewrite = std::env::var("SKEP_REWRITE").is_ok_and(|value| value == "1");
    let mut failures = Vec::new();
    let mut ran = 0;
    for (name, path) in scripts() {
        if !name.contains(&only) {
            continue;
        }
        ran += 1;
        let text = std::fs::read_to_string(&path).expect("a script is text");
        match play(&text) {
            Ok(printed) if printed == text => {}
            Ok(printed) if rewrite => {
                std::fs::write(&path, printed).expect("the script can be written");
            }
            Ok(printed) => failures.push(format!("{name}.txt:\n{}", script::diff(&text, &printed))),
            Err(error) => failures.push(format!("{name}.txt: {error}")),
        }
    }
    assert!(ran > 0, "no script is named like `{only}`");
    assert!(
        failures.is_empty(),
        "{} of {ran} scripts differ (- the script, + the core); SKEP_REWRITE=1 writes them anew\n\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Every rule of the core has its script, and every script says at its head what it shows.
#[test]
fn every_rule_has_a_script() {
    let scripts = scripts();
    for rule in 1..=12 {
        let prefix = format!("rule-{rule:02}-");
        assert!(
            scripts.iter().any(|(name, _)| name.starts_with(&prefix)),
            "no script for rule {rule}"
        );
    }
    for (name, path) in scripts {
        let text = std::fs::read_to_string(&path).expect("a script is text");
        let head: Vec<_> = text
            .lines()
            .take_while(|line| line.starts_with('#'))
            .collect();
        for part in ["# What would go wrong: ", "# From: "] {
            assert!(
                head.iter().any(|line| line.starts_with(part)),
                "{name}.txt has no line `{part}…` at its head"
            );
        }
    }
}

#[test]
fn a_script_that_says_something_else_is_not_what_is_printed() {
    let right = "cluster voters=1\nstatus 1\n----\n1: follower term=1 leader=- commit=1 applied=0 log=1..1 snapshot=0\n";
    assert_eq!(play(right).as_deref(), Ok(right));
    let wrong = right.replace("term=1", "term=2");
    let printed = play(&wrong).expect("it runs");
    assert_eq!(printed, right);
    let diff = script::diff(&wrong, &printed);
    assert!(
        diff.contains("- 1: follower term=2") && diff.contains("+ 1: follower term=1"),
        "{diff}"
    );
}

#[test]
fn a_malformed_script_is_named_with_its_line() {
    for (text, reason) in [
        ("cluster voters=1\n", "no ----"),
        ("# only words\n----\n", "no command"),
        ("cluster voters=1\n----\nok\n\nfly 1\n----\n", "line 5"),
        ("turn 1\n----\n", "no node 1"),
        ("cluster voters=x\n----\n", "voters"),
        ("cluster voters=1 height=3\n----\n", "height"),
    ] {
        let error = play(text).expect_err(text);
        assert!(error.contains(reason), "{error}");
    }
}

/// The scripts are worth what they would notice: each defect that is switched on in the core makes its script differ.
#[cfg(feature = "planted")]
#[test]
fn a_planted_defect_makes_its_script_differ() {
    use skep_core::planted::{Defect, plant};
    let noticed = [
        (Defect::TermGateOff, "rule-01-term-gate"),
        (Defect::VoteNotPersisted, "rule-01-term-gate"),
        (Defect::SendBeforeSync, "rule-02-asynchronous-appends"),
        (Defect::AckBeforeSync, "rule-02-asynchronous-appends"),
        (Defect::ReadWithoutQuorum, "rule-03-read-index"),
        (Defect::ReadBeforeApplied, "rule-03-read-index"),
        (Defect::SupersededIsDone, "rule-05-one-change"),
        (Defect::RemovedLeaderServes, "rule-06-removed-leader"),
        (Defect::StaleIncarnationAccepted, "rule-07-screening"),
        (
            Defect::SnapshotWithoutConfState,
            "rule-09-snapshot-configuration",
        ),
        (
            Defect::TruncatesAboveSnapshot,
            "rule-09-snapshot-configuration",
        ),
        (
            Defect::DoubleApplyAfterRestart,
            "rule-09-snapshot-configuration",
        ),
    ];
    for (defect, name) in noticed {
        let path = directory().join(name).with_extension("txt");
        let text = std::fs::read_to_string(path).expect("a script is text");
        assert_eq!(play(&text).as_ref(), Ok(&text), "without a defect");
        plant(Some(defect));
        let printed = play(&text);
        plant(None);
        assert_ne!(
            printed.as_ref(),
            Ok(&text),
            "{name}.txt passes with {defect:?}"
        );
    }
}
