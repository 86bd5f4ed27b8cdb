//! A bad clock and a bad disk beneath one node: a small library that is loaded into its process before the C library
//! (`tests/preload.rs`), and does what it is told while the node runs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::Cluster;

/// What the build script compiled; empty where it cannot be used.
const LIBRARY: &str = env!("SKEP_PRELOAD");

/// How many words the library reads.
const WORDS: u64 = 4;

/// What is wrong with one node's clock and disk. All is well at first.
#[derive(Debug)]
pub struct Shim {
    words: File,
}

impl Shim {
    /// Puts the library under a node, from its next start on; `None` on systems where there is none.
    ///
    /// # Panics
    /// If its control file cannot be written.
    pub fn install(cluster: &mut Cluster, node: u64) -> Option<Self> {
        if LIBRARY.is_empty() {
            return None;
        }
        let node = cluster.node_mut(node);
        let path = node.home.join("shim");
        let mut options = OpenOptions::new();
        let words = options.read(true).write(true).create(true).open(&path);
        let words = words.expect("a control file");
        words.set_len(WORDS * 8).expect("its words");
        node.environment.extend([
            ("LD_PRELOAD", PathBuf::from(LIBRARY)),
            ("SKEP_PRELOAD_WORDS", path),
        ]);
        Some(Self { words })
    }

    /// The node's wall clock is off by this many milliseconds from now on. Its monotonic clock is right.
    pub fn shift_clock(&self, milliseconds: i64) {
        self.say(0, milliseconds * 1_000_000);
    }

    /// Every `fdatasync` of the node fails with this error number from now on.
    pub fn fail_syncs(&self, errno: libc::c_int) {
        self.say(1, errno.into());
    }

    /// Every write at an offset, which is how the log writes, fails with this error number from now on.
    pub fn fail_writes(&self, errno: libc::c_int) {
        self.say(2, errno.into());
    }

    /// Every `fdatasync` of the node takes so much longer from now on.
    pub fn slow_syncs(&self, by: Duration) {
        let nanos = i64::try_from(by.as_nanos()).expect("a time that a test can wait");
        self.say(3, nanos);
    }

    /// All is well from now on.
    pub fn heal(&self) {
        for word in 0..WORDS {
            self.say(word, 0);
        }
    }

    fn say(&self, word: u64, value: i64) {
        let written = self.words.write_all_at(&value.to_ne_bytes(), word * 8);
        written.expect("the control file");
    }
}
