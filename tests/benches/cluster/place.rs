//! Where the benchmark runs: what its figures depend on most.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use skep::clock::Stopwatch;

/// Syncs that are tried; the median of so few is steady enough to be told apart from another disk's.
const SYNCS: usize = 50;
/// Bytes written before each: a page, the least a disk writes.
const PAGE: [u8; 4096] = [0x5a; 4096];

/// Cores, load, file system, and how long it takes to sync.
pub fn describe() -> anyhow::Result<String> {
    let cores = std::thread::available_parallelism()?;
    let load = match std::fs::read_to_string("/proc/loadavg") {
        Ok(text) => text.split(' ').next().unwrap_or_default().to_owned(),
        Err(_) => "unknown".to_owned(),
    };
    let dir = std::env::temp_dir();
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot use {}", dir.display()))?;
    let sync = sync_time(&dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    Ok(format!(
        "{cores} cores with a load of {load} before; data in {} on {}, where a sync of 4 KiB takes {:.2} ms (median of {SYNCS})",
        dir.display(),
        file_system(&dir),
        sync.as_secs_f64() * 1e3
    ))
}

/// The type of the file system a directory is on, and its device.
fn file_system(dir: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
        dir.starts_with(point)
            .then_some((point.len(), device, kind))
    });
    // Of mounts at one place the last is seen; `max_by_key` gives the last of equals.
    match mounts.max_by_key(|(len, ..)| *len) {
        Some((_, device, kind)) => format!("{kind} ({device})"),
        None => "an unknown file system".to_owned(),
    }
}

fn sync_time(dir: &Path) -> std::io::Result<Duration> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let watch = Stopwatch::start();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        times.push(watch.elapsed());
    }
    times.sort_unstable();
    Ok(times[SYNCS / 2])
}
