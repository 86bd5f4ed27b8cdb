//! The memory of machines inside a running node, seen from outside: where a cosmic ray would hit.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

/// The linear memories of a process's machines: parts of files in memory.
pub struct Heap {
    parts: Vec<Part>,
}

/// A part that a machine has mapped.
#[derive(Clone)]
struct Part {
    file: Arc<File>,
    offset: u64,
    len: usize,
}

/// A byte of the memories.
#[derive(Clone)]
pub struct Place {
    file: Arc<File>,
    offset: u64,
}

impl Heap {
    /// The machines' memories of a process of ours.
    pub fn of(process: u32) -> Self {
        let maps = format!("/proc/{process}/maps");
        let maps = fs::read_to_string(maps).expect("a running process has mappings");
        let files = files(process);
        let parts = maps.lines().filter_map(|line| Part::of(line, &files));
        Self {
            parts: parts.collect(),
        }
    }

    /// Where these bytes stand now.
    pub fn find(&self, bytes: &[u8]) -> Vec<Place> {
        let mut found = Vec::new();
        for Part { file, offset, len } in &self.parts {
            let mut content = vec![0; *len];
            // A file may end before a mapping of it does.
            let read = file.read_at(&mut content, *offset).unwrap_or(0);
            let windows = content[..read].windows(bytes.len()).enumerate();
            let here = windows.filter(|(_, window)| *window == bytes);
            found.extend(here.map(|(at, _)| Place {
                file: Arc::clone(file),
                offset: offset + at as u64,
            }));
        }
        found
    }
}

impl Place {
    /// Turns over the lowest bit.
    pub fn flip(&self) {
        let mut byte = [0];
        let read = self.file.read_exact_at(&mut byte, self.offset);
        read.expect("a byte was found there");
        byte[0] ^= 1;
        let written = self.file.write_all_at(&byte, self.offset);
        written.expect("the file is ours to write");
    }
}

/// The files for memories that a process has open, by their inodes.
fn files(process: u32) -> BTreeMap<u64, Arc<File>> {
    let descriptors = format!("/proc/{process}/fd");
    let descriptors = fs::read_dir(descriptors).expect("a running process has descriptors");
    let paths = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    let memories =
        paths.filter(|path| fs::read_link(path).is_ok_and(|to| is_heap(&to.to_string_lossy())));
    let opened = memories.map(|path| {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.expect("our own process's file");
        let inode = file.metadata().expect("it is open").ino();
        (inode, Arc::new(file))
    });
    opened.collect()
}

impl Part {
    /// That of a line such as `7f1c-7f2c rw-s 00010000 00:01 42 /memfd:skep-memories (deleted)`, if it is one.
    fn of(line: &str, files: &BTreeMap<u64, Arc<File>>) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (range, access, offset) = (words.next()?, words.next()?, words.next()?);
        let inode = words.nth(1)?.parse().ok()?;
        if !access.ends_with('s') || !is_heap(line) {
            return None;
        }
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (from, to) = range.split_once('-')?;
        Some(Self {
            file: Arc::clone(files.get(&inode)?),
            offset: number(offset)?,
            len: (number(to)? - number(from)?) as usize,
        })
    }
}

fn is_heap(name: &str) -> bool {
    name.contains("/memfd:skep-memories")
}
