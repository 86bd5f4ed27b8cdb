//! Where things are: what the first commands of README do, and what an embedder and a client need not compile.
//!
//! It also has `cargo test --workspace` build the binary, which the tests of real processes run: cargo builds the binaries
//! of a package that has a test beside its sources.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const README: &str = include_str!("../../../../README.md");

/// What cargo says, run from the top of the repository.
fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let ended = Command::new(cargo)
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(top.expect("the crate lies in the repository"))
        .output()
        .expect("cargo runs");
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{arguments:?}: {complaint}");
    String::from_utf8(ended.stdout).expect("cargo says text")
}

fn workspace() -> Value {
    let said = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str(&said).expect("cargo says JSON")
}

fn package<'a>(workspace: &'a Value, name: &str) -> &'a Value {
    let packages = workspace["packages"].as_array().expect("packages");
    packages
        .iter()
        .find(|package| package["name"] == name)
        .unwrap_or_else(|| panic!("no package is called `{name}`"))
}

/// The names of a package's targets of this kind.
fn targets<'a>(package: &'a Value, kind: &str) -> BTreeSet<&'a str> {
    let targets = package["targets"].as_array().expect("targets");
    let of_kind = targets.iter().filter(|target| target["kind"][0] == kind);
    of_kind
        .filter_map(|target| target["name"].as_str())
        .collect()
}

/// The lines of README that are typed into a shell.
fn typed() -> Vec<&'static str> {
    let blocks = README.split("```sh\n").skip(1);
    blocks
        .filter_map(|block| block.split_once("```"))
        .flat_map(|(block, _)| block.lines())
        .collect()
}

#[test]
fn cargo_run_from_the_top_is_the_binary_skep() {
    let workspace = workspace();
    let members = workspace["workspace_default_members"].as_array();
    let [member] = members.expect("default members").as_slice() else {
        panic!("`cargo run` does not know which package is meant: {members:?}");
    };
    let packages = workspace["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["id"] == *member);
    let package = package.expect("the default member is a package");
    assert_eq!(targets(package, "bin"), BTreeSet::from(["skep"]));
}

#[test]
fn the_first_commands_of_the_readme_do_what_they_always_did() {
    assert_eq!(
        typed()[..3],
        [
            "rustup target add wasm32-wasip2",
            "cargo run --release -- demo",
            "cargo test --workspace --locked && cargo run --locked -p skep-sim --features planted -- --gate",
        ]
    );
    let skep = Path::new(env!("CARGO_BIN_EXE_skep"));
    let ended = Command::new(skep).args(["demo", "--help"]).output();
    assert!(ended.expect("it runs").status.success());
}

#[test]
fn what_the_commands_of_the_readme_name_exists() {
    let workspace = workspace();
    let mut named = 0;
    for line in typed() {
        for command in line.split("&&").filter(|part| part.contains("cargo ")) {
            let words: Vec<_> = command.split_whitespace().collect();
            let after = |flag| {
                let at = words.iter().position(|word| *word == flag)?;
                Some(words[at + 1])
            };
            let Some(name) = after("-p") else { continue };
            named += 1;
            let package = package(&workspace, name);
            for (flag, kind) in [("--test", "test"), ("--bench", "bench"), ("--bin", "bin")] {
                if let Some(target) = after(flag) {
                    assert!(targets(package, kind).contains(target), "{command}");
                }
            }
            if let Some(feature) = after("--features") {
                assert!(package["features"][feature].is_array(), "{command}");
            }
        }
    }
    assert!(named > 0, "no command names a package any more");
}

#[test]
fn an_embedder_and_a_client_compile_no_more_than_they_need() {
    let binary = [
        "axum",
        "clap",
        "hdrhistogram",
        "indicatif",
        "prometheus-client",
        "skep-examples",
        "skep-server",
        "tempfile",
        "toml",
        "tracing-subscriber",
    ];
    let raft = ["protobuf", "raft", "skep-core", "slog", "wasmtime"];
    for (package, absent) in [
        ("skep", &binary[..]),
        ("skep-example-embed", &binary[..]),
        ("skep-client", &[&binary[..], &raft[..]].concat()[..]),
        (
            "skep-types",
            &[&binary[..], &raft[..], &["prost", "tokio"]].concat()[..],
        ),
    ] {
        let tree = cargo(&["tree", "-p", package, "-e", "normal", "--prefix", "none"]);
        let compiled: BTreeSet<_> = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert!(compiled.contains(package), "{tree}");
        for name in absent {
            assert!(!compiled.contains(name), "{package} compiles {name}");
        }
    }
}
