//! The inner cargo's environment: nothing of the outer build, so that every outer command yields the same bytes.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variables by which an outer build, or the tool around it, would steer the inner one.
const CLEARED: &[&str] = &[
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "LLVM_PROFILE_FILE",
];

/// The same, by the beginning of the name. Most are what cargo tells a build script about its own package and profile.
const CLEARED_PREFIXES: &[&str] = &[
    "CARGO_CFG_",
    "CARGO_FEATURE_",
    "CARGO_LLVM_COV",
    "__CARGO_LLVM_COV",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_TARPAULIN",
    "CLIPPY_",
    "DEP_",
    "MIRI",
];

/// Guests are small and are compiled once, so they get the slow and thorough build, without debug information: a
/// component is copied to every node and hashed into its name.
const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    ("CARGO_INCREMENTAL", "0"),
];

/// Rids `command` of the outer build.
pub(crate) fn isolate(command: &mut Command, workspace: &Path) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_cleared) {
            command.env_remove(name);
        }
    }
    command.envs(PROFILE.iter().copied());
    // This variable goes before every other source of flags, those of configuration files included.
    command.env("CARGO_ENCODED_RUSTFLAGS", remapped_paths(workspace));
}

fn is_cleared(name: &str) -> bool {
    CLEARED.contains(&name)
        || CLEARED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Panic messages name source files. Without this their absolute paths, and so the component's digest, would differ
/// between two checkouts of the same sources.
fn remapped_paths(workspace: &Path) -> OsString {
    let mut flags = OsString::new();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let root = workspace
        .ancestors()
        .filter(|directory| directory.join("Cargo.toml").is_file())
        .last();
    for (from, to) in [(cargo_home.as_deref(), "/cargo"), (root, "/guest")] {
        let Some(from) = from else { continue };
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_do_not_reach_the_guests_and_the_toolchain_does() {
        for name in [
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_CFG_TARGET_OS",
            "CARGO_FEATURE_STD",
            "CLIPPY_ARGS",
            "MIRIFLAGS",
            "LLVM_PROFILE_FILE",
        ] {
            assert!(is_cleared(name), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
        ] {
            assert!(!is_cleared(name), "{name}");
        }
    }

    #[test]
    fn flags_are_separated_as_cargo_wants_them() {
        let flags = remapped_paths(Path::new(env!("CARGO_MANIFEST_DIR")));
        let flags = flags.to_str().unwrap();
        assert_eq!(flags.split('\x1f').count(), 2, "{flags:?}");
        assert!(
            flags
                .split('\x1f')
                .all(|flag| flag.starts_with("--remap-path-prefix=")),
            "{flags:?}"
        );
    }
}
