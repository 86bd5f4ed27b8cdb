//! The fuzz targets in bounded form: every file of the corpora, and a fixed number of mutations of each.
//!
//! `SKEP_REWRITE=1 cargo test -p skep-tests --test it fuzz_corpus` writes the samples that the generators make; files
//! that a fuzzer found (`found-*`) stay. `SKEP_FUZZ_ROUNDS=100` makes the run so many times as long.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use skep_tests::fuzz::mutate::mutated;
use skep_tests::fuzz::{TARGETS, Target};
use skep_tests::seed::Seed;

/// Bytes of all corpora: they are part of every clone.
const CORPORA_BYTES: usize = 300 << 10;

fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name)
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn the_corpora_are_what_their_generators_make() {
    let rewrite = std::env::var_os("SKEP_REWRITE").is_some();
    let mut bytes = 0;
    for target in &TARGETS {
        let (dir, seeds) = (corpus(target), (target.seeds)());
        if rewrite {
            fs::create_dir_all(&dir).unwrap();
            for name in files(&dir)
                .keys()
                .filter(|name| !name.starts_with("found-"))
            {
                fs::remove_file(dir.join(name)).unwrap();
            }
            for (name, data) in &seeds {
                fs::write(dir.join(name), data).unwrap();
            }
        }
        let mut stored = files(&dir);
        bytes += stored.values().map(Vec::len).sum::<usize>();
        for (name, data) in seeds {
            let advice = "run again with SKEP_REWRITE=1 if the change is meant";
            let same = stored
                .remove(&name)
                .is_some_and(|file| target.recorded || file == data);
            assert!(same, "{}/{name}: {advice}", target.name);
        }
        let stray: Vec<_> = stored
            .keys()
            .filter(|name| !name.starts_with("found-"))
            .collect();
        assert!(
            stray.is_empty(),
            "{}: {stray:?} comes from nowhere",
            target.name
        );
    }
    assert!(bytes <= CORPORA_BYTES, "the corpora have {bytes} bytes");
}

#[test]
fn frames_and_messages() {
    bounded("frame");
}

#[test]
fn what_happens_to_a_replica() {
    bounded("replica");
}

#[test]
fn log_segments() {
    bounded("segment");
}

#[test]
fn snapshot_files() {
    bounded("snapshot");
}

#[test]
fn components() {
    bounded("component");
}

#[test]
fn administration() {
    bounded("admin");
}

#[test]
fn ports_of_a_running_node() {
    bounded("ports");
}

/// Tries every file of the target's corpus, and its mutations. A failure leaves the input in the temporary directory.
fn bounded(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target of this name");
    let rounds: u64 = std::env::var("SKEP_FUZZ_ROUNDS")
        .map_or(1, |rounds| rounds.parse().expect("a number of rounds"));
    let samples: Vec<_> = files(&corpus(target)).into_values().collect();
    let mut tried = 0;
    for (number, sample) in samples.iter().enumerate() {
        attempt(target, sample);
        let mut seed = Seed::new(number as u64 + 1);
        for _ in 0..target.mutations * rounds {
            let other = &samples[seed.below(samples.len() as u64) as usize];
            attempt(target, &mutated(sample, other, &mut seed));
            tried += 1;
        }
    }
    println!("{name}: {} samples, {tried} mutations", samples.len());
}

fn attempt(target: &Target, data: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(data))) {
        let path = std::env::temp_dir().join(format!("skep-found-{}", target.name));
        fs::write(&path, data).unwrap();
        eprintln!("the input is in {}", path.display());
        resume_unwind(panic);
    }
}
