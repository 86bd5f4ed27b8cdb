//! Builds the hostile guests, and the library that stands between a node and its clock and disk.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// One file each in `tests/guests`.
const GUESTS: [&str; 9] = [
    "clockwork",
    "exits",
    "giant_reply",
    "hoards",
    "loops",
    "noisy",
    "recurses",
    "traps",
    "traps_describe",
];

fn main() -> Result<(), skep_guest_build::Error> {
    shim();
    skep_guest_build::Guests::new()
        .examples("skep-test-guests", GUESTS)
        .build()?
        .write_constants()
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
