//! Builds guest crates into WebAssembly components from a build script.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), skep_guest_build::Error> {
//!     let built = skep_guest_build::Guests::new().package("my-machine").build()?;
//!     built.export_env(); // include_bytes!(env!("GUEST_MY_MACHINE")) in the crate
//!     Ok(())
//! }
//! ```
//!
//! The same cargo and rustc that build the caller run once more, for the target `wasm32-wasip2` in release mode, into
//! `<target directory>/guests`, which all callers of one workspace share. Nothing of the outer build (wrappers, flags,
//! profiles, coverage, Miri, Clippy) reaches the inner one, so `cargo clippy`, `cargo doc` and `cargo test` embed the
//! same bytes as `cargo build --release`. The caller is rebuilt when a source file, manifest or WIT file of a guest
//! changes.

mod depinfo;
mod environment;
mod error;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use error::Error;

/// The one target guests are built for.
pub const TARGET: &str = "wasm32-wasip2";

/// What to build: packages (their `cdylib`) and examples (of crate type `cdylib`) of one workspace.
#[derive(Clone, Debug, Default)]
pub struct Guests {
    workspace: Option<PathBuf>,
    sources: Vec<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    package: String,
    example: Option<String>,
}

impl Guests {
    /// Nothing yet, of the workspace the calling package belongs to.
    pub fn new() -> Self {
        Guests::default()
    }

    /// Builds from the workspace around `directory` instead.
    pub fn workspace(mut self, directory: impl Into<PathBuf>) -> Self {
        self.workspace = Some(directory.into());
        self
    }

    /// Adds the `cdylib` of a package.
    pub fn package(mut self, package: impl Into<String>) -> Self {
        self.sources.push(Source {
            package: package.into(),
            example: None,
        });
        self
    }

    /// Adds an example of a package.
    pub fn example(mut self, package: impl Into<String>, example: impl Into<String>) -> Self {
        self.sources.push(Source {
            package: package.into(),
            example: Some(example.into()),
        });
        self
    }

    /// Adds several examples of a package.
    pub fn examples<'a>(self, package: &str, examples: impl IntoIterator<Item = &'a str>) -> Self {
        examples
            .into_iter()
            .fold(self, |guests, example| guests.example(package, example))
    }

    /// Builds, and tells cargo when to run the build script again. To be called in a build script.
    ///
    /// # Errors
    ///
    /// Outside a build script, when the target is not installed, and when the inner cargo fails (its own messages are
    /// on standard error).
    pub fn build(self) -> Result<Built, Error> {
        let rustc = variable("RUSTC")?;
        check_target(&rustc)?;
        let target_dir = guests_dir(Path::new(&variable("OUT_DIR")?), &variable("TARGET")?)?;
        let workspace = match self.workspace {
            Some(directory) => directory,
            None => variable("CARGO_MANIFEST_DIR")?.into(),
        };

        // Libraries are built one by one and examples together, since cargo takes a crate type for one target only.
        let mut with_examples: Vec<&str> = Vec::new();
        for source in &self.sources {
            let package = source.package.as_str();
            if source.example.is_none() {
                // Without the `rlib` that a guest's own tests use: link-time optimisation only works on the `cdylib`
                // alone.
                cargo(
                    &workspace,
                    &target_dir,
                    "rustc",
                    package,
                    &["--lib", "--crate-type", "cdylib"],
                )?;
            } else if !with_examples.contains(&package) {
                with_examples.push(package);
            }
        }
        for package in with_examples {
            let examples = self
                .sources
                .iter()
                .filter(|source| source.package == package);
            let arguments: Vec<&str> = examples
                .filter_map(|source| source.example.as_deref())
                .flat_map(|name| ["--example", name])
                .collect();
            cargo(&workspace, &target_dir, "build", package, &arguments)?;
        }

        let mut built = Built { guests: Vec::new() };
        let mut inputs = BTreeSet::new();
        for source in &self.sources {
            let artifact = source.artifact(&target_dir);
            if !artifact.is_file() {
                return Err(Error::NoArtifact {
                    name: source.name().to_owned(),
                    artifact,
                });
            }
            inputs.extend(depinfo::inputs(&artifact.with_extension("d"))?);
            built.guests.push(Guest {
                name: source.name().to_owned(),
                path: artifact,
            });
        }
        for file in inputs {
            println!("cargo:rerun-if-changed={}", file.display());
        }
        Ok(built)
    }
}

impl Source {
    fn name(&self) -> &str {
        self.example.as_deref().unwrap_or(&self.package)
    }

    fn artifact(&self, target_dir: &Path) -> PathBuf {
        let release = target_dir.join(TARGET).join("release");
        match &self.example {
            Some(example) => release.join("examples").join(format!("{example}.wasm")),
            None => release.join(format!("{}.wasm", self.package.replace('-', "_"))),
        }
    }
}

/// The components that were built, in the order they were asked for.
#[derive(Clone, Debug)]
pub struct Built {
    guests: Vec<Guest>,
}

/// One component.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The package's or example's name.
    pub name: String,
    /// The component file.
    pub path: PathBuf,
}

impl Guest {
    /// The name as a Rust constant: `skep-example-kv` is `SKEP_EXAMPLE_KV`.
    pub fn constant(&self) -> String {
        self.name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_uppercase()
                } else {
                    '_'
                }
            })
            .collect()
    }
}

impl Built {
    /// The components.
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Gives the crate one environment variable per component, `GUEST_` and its name in capitals: its absolute path,
    /// for `include_bytes!(env!("GUEST_MY_MACHINE"))`.
    pub fn export_env(&self) {
        for guest in &self.guests {
            println!(
                "cargo:rustc-env=GUEST_{}={}",
                guest.constant(),
                guest.path.display()
            );
        }
    }

    /// Writes `$OUT_DIR/guests.rs`, for `include!(concat!(env!("OUT_DIR"), "/guests.rs"));` in the crate: one
    /// `pub const NAME: &[u8]` per component, and `pub const ALL: &[(&str, &[u8])]` with their names as asked for.
    ///
    /// # Errors
    ///
    /// Outside a build script, and when the file cannot be written.
    pub fn write_constants(&self) -> Result<(), Error> {
        let path = Path::new(&variable("OUT_DIR")?).join("guests.rs");
        fs::write(&path, self.constants()).map_err(|source| Error::File { path, source })
    }

    fn constants(&self) -> String {
        let mut text = String::new();
        let mut all = String::new();
        for guest in &self.guests {
            let (name, constant) = (&guest.name, guest.constant());
            let _ = writeln!(text, "/// The component `{name}`.");
            let _ = writeln!(
                text,
                "pub const {constant}: &[u8] = include_bytes!({:?});",
                guest.path
            );
            let _ = writeln!(all, "    ({name:?}, {constant}),");
        }
        let _ = write!(
            text,
            "/// Every component, by name.\npub const ALL: &[(&str, &[u8])] = &[\n{all}];\n"
        );
        text
    }
}

fn cargo(
    workspace: &Path,
    target_dir: &Path,
    verb: &str,
    package: &str,
    targets: &[&str],
) -> Result<(), Error> {
    let mut command = Command::new(variable("CARGO")?);
    environment::isolate(&mut command, workspace);
    command.current_dir(workspace);
    command.args([
        verb,
        "--release",
        "--locked",
        "--target",
        TARGET,
        "--package",
        package,
    ]);
    command.arg("--target-dir").arg(target_dir).args(targets);
    // Cargo reads a build script's standard output as instructions to itself.
    command.stdout(std::io::stderr());
    let status = command.status().map_err(|source| Error::Start {
        program: "cargo",
        source,
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Cargo {
            package: package.to_owned(),
            status,
        })
    }
}

fn check_target(rustc: &str) -> Result<(), Error> {
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|source| Error::Start {
            program: "rustc",
            source,
        })?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // rustc names the directory of any target it knows, installed or not.
    let installed = output.status.success()
        && fs::read_dir(&libraries).is_ok_and(|mut files| files.next().is_some());
    if installed {
        Ok(())
    } else {
        Err(Error::TargetMissing)
    }
}

/// `<target>/guests`, from `OUT_DIR` = `<target>/[<triple>/]<profile>/build/<package>/out`.
fn guests_dir(out_dir: &Path, triple: &str) -> Result<PathBuf, Error> {
    let profile = out_dir
        .ancestors()
        .find(|directory| directory.file_name() == Some(OsStr::new("build")))
        .and_then(Path::parent);
    let root = match profile.and_then(Path::parent) {
        Some(directory) if directory.file_name() == Some(OsStr::new(triple)) => directory.parent(),
        other => other,
    };
    match root {
        Some(root) => Ok(root.join("guests")),
        None => Err(Error::OutDir {
            out_dir: out_dir.to_owned(),
        }),
    }
}

fn variable(name: &'static str) -> Result<String, Error> {
    env::var(name).map_err(|_| Error::NotABuildScript { variable: name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_profiles_and_triples_share_one_directory() {
        for out_dir in [
            "/w/target/debug/build/skep-tests-0123/out",
            "/w/target/release/build/skep-tests-0123/out",
            "/w/target/x86_64-unknown-linux-gnu/release/build/skep-tests-0123/out",
            "/w/target/debug/build/skep-tests/0123/out",
        ] {
            let dir = guests_dir(Path::new(out_dir), "x86_64-unknown-linux-gnu").unwrap();
            assert_eq!(dir, Path::new("/w/target/guests"), "{out_dir}");
        }
        let inside_build =
            guests_dir(Path::new("/home/build/t/debug/build/p-1/out"), "any").unwrap();
        assert_eq!(inside_build, Path::new("/home/build/t/guests"));
        assert!(guests_dir(Path::new("/nowhere/out"), "any").is_err());
    }

    #[test]
    fn artifacts_are_where_cargo_puts_them() {
        let package = Source {
            package: "skep-example-kv".into(),
            example: None,
        };
        assert_eq!(
            package.artifact(Path::new("/g")),
            Path::new("/g/wasm32-wasip2/release/skep_example_kv.wasm")
        );
        let example = Source {
            package: "skep-test-guests".into(),
            example: Some("giant_reply".into()),
        };
        assert_eq!(
            example.artifact(Path::new("/g")),
            Path::new("/g/wasm32-wasip2/release/examples/giant_reply.wasm")
        );
    }

    #[test]
    fn constants_name_and_list_every_guest() {
        let guest = |name: &str, path: &str| Guest {
            name: name.into(),
            path: path.into(),
        };
        let built = Built {
            guests: vec![
                guest("loops", "/g/loops.wasm"),
                guest("my-kv", "/g/a \"b\".wasm"),
            ],
        };
        assert_eq!(
            built.constants(),
            "/// The component `loops`.\n\
             pub const LOOPS: &[u8] = include_bytes!(\"/g/loops.wasm\");\n\
             /// The component `my-kv`.\n\
             pub const MY_KV: &[u8] = include_bytes!(\"/g/a \\\"b\\\".wasm\");\n\
             /// Every component, by name.\n\
             pub const ALL: &[(&str, &[u8])] = &[\n    (\"loops\", LOOPS),\n    (\"my-kv\", MY_KV),\n];\n"
        );
    }
}
