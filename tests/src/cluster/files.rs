//! The files of a node.

use std::path::{Path, PathBuf};

/// The files under a directory, with their sizes, largest first. What a running node removes meanwhile is not among them.
pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    assert!(dir.is_dir(), "{} is no directory", dir.display());
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in there_still(std::fs::read_dir(&dir)).into_iter().flatten() {
            let Some(entry) = there_still(entry) else {
                continue;
            };
            let Some(metadata) = there_still(entry.metadata()) else {
                continue;
            };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    found
}

fn there_still<T>(found: std::io::Result<T>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("the files of a node: {error}"),
    }
}
