//! The example does what it says, and does it again on what it left.

use std::path::Path;
use std::process::Command;

/// What the example prints.
fn run(dir: &Path) -> String {
    let ended = Command::new(env!("CARGO_BIN_EXE_skep-example-embed"))
        .arg(dir)
        .output()
        .expect("the example runs");
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{complaint}");
    String::from_utf8(ended.stdout).expect("it prints text")
}

#[test]
fn groups_answer_their_own_sums_and_a_second_run_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    for (apples, pears) in [(3, 5), (6, 10)] {
        assert_eq!(
            run(dir.path()).lines().collect::<Vec<_>>(),
            [
                format!("group 1: 3 more, {apples}"),
                format!("group 1: {apples}, says node 3"),
                format!("group 2: 5 more, {pears}"),
                format!("group 2: {pears}, says node 3"),
                "node 1 (embed) has stopped".into(),
                "node 2 (embed) has stopped".into(),
                "node 3 (embed) has stopped".into(),
            ]
        );
    }
}
