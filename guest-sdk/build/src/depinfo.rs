//! Which files a component was built from: cargo's dep-info beside it lists the sources of all path packages, WIT
//! files included; the manifests are added here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// The files whose change calls for another build.
pub(crate) fn inputs(dep_info: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let text = fs::read_to_string(dep_info).map_err(|source| Error::File {
        path: dep_info.to_owned(),
        source,
    })?;
    let mut files: BTreeSet<PathBuf> = parse(&text).into_iter().map(PathBuf::from).collect();
    let manifests: Vec<PathBuf> = files
        .iter()
        .flat_map(|file| manifests_above(file))
        .collect();
    files.extend(manifests);
    Ok(files)
}

/// The dependencies of a line `target: dependency dependency`, in which a space in a name is written `\ `.
fn parse(text: &str) -> Vec<String> {
    let Some(dependencies) = text
        .lines()
        .next()
        .and_then(|line| line.split_once(": "))
        .map(|(_, right)| right)
    else {
        return Vec::new();
    };
    let mut files = vec![String::new()];
    let mut characters = dependencies.chars().peekable();
    while let Some(character) = characters.next() {
        let file = files
            .last_mut()
            .expect("the list starts with one name and only grows");
        match character {
            '\\' if characters.peek() == Some(&' ') => file.extend(characters.next()),
            ' ' => files.push(String::new()),
            other => file.push(other),
        }
    }
    files.retain(|file| !file.is_empty());
    files
}

/// The manifest of the file's package, that of its workspace, and the lock file.
fn manifests_above(file: &Path) -> Vec<PathBuf> {
    let directories = file.ancestors().skip(1);
    directories
        .flat_map(|directory| [directory.join("Cargo.toml"), directory.join("Cargo.lock")])
        .filter(|manifest| manifest.is_file())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_survive() {
        let text = "/t/a\\ b.wasm: /w/src/lib.rs /w/my\\ crate/src/lib.rs\n\n/w/src/lib.rs:\n";
        assert_eq!(parse(text), ["/w/src/lib.rs", "/w/my crate/src/lib.rs"]);
        assert!(parse("").is_empty());
        assert!(parse("/t/a.wasm:").is_empty());
    }

    #[test]
    fn manifests_are_inputs_too() {
        let manifests = manifests_above(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/depinfo.rs"
        )));
        assert!(
            manifests.contains(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")),
            "{manifests:?}"
        );
    }
}
