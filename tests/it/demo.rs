//! The demonstration, in small.

use std::fmt::Write;
use std::path::Path;

use skep_tests::clock::{eventually, until};
use skep_tests::process::{self, Process};
use skep_tests::seed::Seed;

const KEYS: usize = 4000;
/// Few, so that few commands share an entry: the node that is killed must miss more entries than a group keeps for those
/// that are a little behind, or it would need no snapshot.
const IN_FLIGHT: &str = "4";

#[tokio::test]
async fn the_demonstration_reads_back_what_it_wrote() {
    let data = dataset();
    let path = data.path().to_str().expect("a plain name");
    let ended = process::run(&[
        "demo",
        path,
        "--keys",
        &KEYS.to_string(),
        "--in-flight",
        IN_FLIGHT,
    ])
    .await;
    assert_eq!(
        ended.code,
        Some(0),
        "stdout: {}\nstderr: {}",
        ended.stdout,
        ended.stderr
    );
    assert!(
        ended.stdout.contains(&format!("EQUAL: {KEYS} keys")),
        "{}",
        ended.stdout
    );
    for step in ["kill -9", "restart", "caught up"] {
        assert!(
            ended.stdout.contains(step) || ended.stderr.contains(step),
            "{step}: {}",
            ended.stdout
        );
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_demonstration_interrupted_leaves_nothing_behind() {
    let data = dataset();
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let outputs = tempfile::tempdir().expect("a temporary directory");
    let (stdout, stderr) = (outputs.path().join("stdout"), outputs.path().join("stderr"));
    let path = data.path().to_str().expect("a plain name");
    let environment = [("TMPDIR", temporary.path())];
    let mut demo = Process::start_with(&["demo", path], &environment, None, &stdout, &stderr);
    // Midway: one node is dead, two carry the load.
    let output = || {
        let read = |path: &Path| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        read(&stdout) + &read(&stderr)
    };
    until("a node was killed by the demonstration", || {
        output().contains("kill -9")
    })
    .await;
    let nodes = children(demo.id());
    assert!(!nodes.is_empty());
    assert_ne!(
        std::fs::read_dir(temporary.path())
            .expect("a directory")
            .count(),
        0
    );
    demo.signal(libc::SIGINT);
    let status = eventually("the demonstration ends", async || {
        demo.ended().ok_or_else(|| "it runs".to_owned())
    })
    .await;
    assert!(
        !status.success() && status.code().is_some(),
        "{status}\n{}",
        output()
    );
    assert!(output().contains("interrupted"), "{}", output());
    for node in nodes {
        assert!(
            !Path::new(&format!("/proc/{node}")).exists(),
            "node process {node} was left behind"
        );
    }
    let left: Vec<_> = std::fs::read_dir(temporary.path())
        .expect("a directory")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The processes that a process has started and that still run.
#[cfg(target_os = "linux")]
fn children(parent: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).expect("the process runs");
    let lists =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Files of many sizes, empty ones and ones with odd names among them.
fn dataset() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut seed = Seed::new(7);
    let mut chunks = 0;
    for number in 0.. {
        if chunks > KEYS * 2 {
            break;
        }
        let folder = dir.path().join(format!("folder {}", number % 7));
        std::fs::create_dir_all(&folder).expect("a directory");
        let mut text = String::new();
        for line in 0..seed.below(2000) {
            writeln!(text, "{number} {line} {}", seed.below(u64::MAX))
                .expect("writing into a String does not fail");
        }
        chunks += text.len() / 1024;
        std::fs::write(folder.join(format!("file #{number} é.txt")), text).expect("a file");
    }
    dir
}
