//! Histories in text files. `histories/good` are accepted by every check. Each of `histories/bad` says in a comment
//! `# rejected-by:` which of the checks `blind`, `indexed` and `versions` reject it, and the others must accept it; a comment
//! `# stuck: N` says which operation the index-blind check must name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use skep_checker::{Limits, Verdict, kv, text};

/// Fewer would mean that files were lost.
const BAD_AT_LEAST: usize = 50;

fn histories(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("histories")
        .join(folder);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files
        .map(|file| {
            let path = file.expect("a file of the folder").path();
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read_to_string(&path).expect("a readable history"))
        })
        .collect()
}

fn judge(name: &str, history: &str) -> kv::Report {
    let operations = text::parse(history).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(!operations.is_empty(), "{name} is empty");
    kv::check(&operations, Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn directive<'a>(history: &'a str, name: &str) -> Option<&'a str> {
    let prefix = format!("# {name}:");
    history
        .lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .map(str::trim)
}

#[test]
fn good_histories_are_accepted() {
    let histories = histories("good");
    assert!(histories.len() >= 10, "only {}", histories.len());
    for (name, history) in histories {
        let report = judge(&name, &history);
        assert!(report.is_linearizable(), "{name}:\n{report}");
        assert_eq!(
            report.indexed.is_some(),
            directive(&history, "checked-by") != Some("blind"),
            "{name}: the check by index is made when every answer has an index"
        );
    }
}

#[test]
fn bad_histories_are_rejected_by_the_checks_that_can_see_it() {
    let histories = histories("bad");
    assert!(histories.len() >= BAD_AT_LEAST, "only {}", histories.len());
    for (name, history) in histories {
        let report = judge(&name, &history);
        let mut rejected = Vec::new();
        if matches!(report.blind, Verdict::NotLinearizable(_)) {
            rejected.push("blind");
        }
        if report
            .indexed
            .as_ref()
            .is_some_and(|indexed| !indexed.is_linearizable())
        {
            rejected.push("indexed");
        }
        if report.versions.is_some() {
            rejected.push("versions");
        }
        let expected =
            directive(&history, "rejected-by").unwrap_or_else(|| panic!("{name}: by whom?"));
        assert_eq!(rejected.join(" "), expected, "{name}:\n{report}");
        if let Some(stuck) = directive(&history, "stuck") {
            match &report.blind {
                Verdict::NotLinearizable(why) => {
                    assert_eq!(why.stuck.to_string(), stuck, "{name}:\n{report}")
                }
                other => panic!("{name}: {other}"),
            }
        }
    }
}
