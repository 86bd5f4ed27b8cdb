//! Real data that every machine which built Skep has: the sources of its crates, in chunks.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;

/// Bytes of one value: small enough that 50,000 of them are a quick download's worth.
const CHUNK_BYTES: usize = 1024;
/// Files above this are no sources.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Longest key the KV machine takes.
const KEY_BYTES_MAX: usize = 512;

/// One key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `path#chunk`, percent-encoded.
    pub key: String,
    /// The bytes of the chunk.
    pub value: Bytes,
}

/// The registry of this machine's cargo: `$CARGO_HOME/registry/src`, or `~/.cargo/registry/src`.
pub fn cargo_registry() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"))?;
            Some(PathBuf::from(home).join(".cargo"))
        });
    let path = home
        .context("neither CARGO_HOME nor HOME is set; give a path: `skep demo PATH`")?
        .join("registry/src");
    if !path.is_dir() {
        bail!(
            "{} is not there; give the path of any directory with files: `skep demo PATH`",
            path.display()
        );
    }
    Ok(path)
}

/// Up to `limit` chunks of the files under `root`, in the order of their paths.
pub fn read(root: &Path, limit: usize) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        if items.len() >= limit {
            break;
        }
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<std::io::Result<Vec<_>>>()
            });
            let mut entries = entries.with_context(|| format!("cannot list {}", path.display()))?;
            // The stack is taken from its end.
            entries.sort_by(|left, right| right.cmp(left));
            pending.extend(entries);
        } else if metadata.is_file() && metadata.len() <= FILE_BYTES_MAX {
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path);
            let name = if name.as_os_str().is_empty() {
                path.file_name().map(Path::new).unwrap_or(name)
            } else {
                name
            };
            push(&mut items, limit, name, Bytes::from(bytes));
        }
    }
    if items.is_empty() {
        bail!("{} holds no file to load", root.display());
    }
    Ok(items)
}

fn push(items: &mut Vec<Item>, limit: usize, path: &Path, bytes: Bytes) {
    let path = encode(path.as_os_str().as_encoded_bytes());
    for (number, start) in (0..bytes.len()).step_by(CHUNK_BYTES).enumerate() {
        let key = format!("{path}#{number}");
        if items.len() >= limit || key.len() > KEY_BYTES_MAX {
            return;
        }
        items.push(Item {
            key,
            value: bytes.slice(start..bytes.len().min(start + CHUNK_BYTES)),
        });
    }
}

/// Percent-encodes what a key may not hold.
fn encode(path: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'+' => {
                text.push(*byte as char)
            }
            _ => write!(text, "%{byte:02X}").expect("writing into a String does not fail"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_order_whole_and_under_their_own_keys() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b c")).unwrap();
        let long: Vec<u8> = (0..CHUNK_BYTES * 2 + 1).map(|at| at as u8).collect();
        std::fs::write(dir.path().join("b c/long#1"), &long).unwrap();
        std::fs::write(dir.path().join("a"), b"first").unwrap();
        std::fs::write(dir.path().join("empty"), b"").unwrap();
        let items = read(dir.path(), 100).unwrap();
        let keys: Vec<&str> = items.iter().map(|item| item.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "a#0",
                "b%20c/long%231#0",
                "b%20c/long%231#1",
                "b%20c/long%231#2"
            ]
        );
        let whole: Vec<u8> = items[1..]
            .iter()
            .flat_map(|item| item.value.to_vec())
            .collect();
        assert_eq!(whole, long);
        assert_eq!(read(dir.path(), 2).unwrap(), items[..2]);
        assert_eq!(read(&dir.path().join("a"), 9).unwrap(), items[..1]);
    }

    #[test]
    fn nothing_to_load_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path(), 1).is_err());
        assert!(read(&dir.path().join("absent"), 1).is_err());
    }
}
