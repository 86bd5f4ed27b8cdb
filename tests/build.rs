//! Builds the hostile guests, and the library that stands between a node and its clock and disk.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// One file for each attack: `.rs` is an example of the package, `.wat` is assembled by `src/guests/text.rs`.
const GUESTS: &str = "guests";

fn main() -> Result<(), skep_guest_build::Error> {
    shim();
    println!("cargo::rerun-if-changed={GUESTS}");
    let texts = files("wat");
    let mut constant =
        "/// Every guest in the text format, by name.\npub const TEXTS: &[(&str, &str)] = &[\n"
            .to_owned();
    for (name, path) in &texts {
        constant.push_str(&format!("    ({name:?}, include_str!({path:?})),\n"));
    }
    constant.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a directory"));
    std::fs::write(out.join("guest_texts.rs"), constant).expect("the directory can be written");

    let sources = files("rs");
    skep_guest_build::Guests::new()
        .examples(
            "skep-test-guests",
            sources.iter().map(|(name, _)| name.as_str()),
        )
        .build()?
        .write_constants()
}

/// The guests whose files have this suffix, sorted by name.
fn files(suffix: &str) -> Vec<(String, PathBuf)> {
    let directory = std::fs::canonicalize(GUESTS).expect("the directory of the guests");
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .expect("the directory can be read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|found| found == suffix))
        .map(|path| {
            let name = path.file_stem().and_then(|name| name.to_str());
            (
                name.expect("guests have plain names").to_owned(),
                path.clone(),
            )
        })
        .collect();
    found.sort();
    found
}

/// Compiles `tests/preload.rs` where it can be used. Elsewhere its path is empty, and the tests that need it say so.
fn shim() {
    println!("cargo::rerun-if-changed=preload.rs");
    let target = env::var("TARGET").expect("cargo names the target");
    let usable = matches!(
        target.as_str(),
        "x86_64-unknown-linux-gnu" | "aarch64-unknown-linux-gnu"
    );
    let mut library = PathBuf::new();
    if usable {
        library = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a directory"))
            .join("libskep_preload.so");
        let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
        let status = Command::new(rustc)
            .args(["--crate-type", "cdylib", "--edition", "2024", "-O"])
            .args(["-C", "panic=abort", "--target", &target, "-o"])
            .arg(&library)
            .arg("preload.rs")
            .status();
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "preload.rs does not compile: {status:?}"
        );
    }
    println!("cargo::rustc-env=SKEP_PRELOAD={}", library.display());
}
