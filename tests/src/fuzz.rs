//! What strangers, peers and disks may hand to Skep, as functions of bytes: the bodies of the fuzz targets.
//!
//! Each target has a `run`, which panics if a promise is broken, and `seeds`, the sound and the deliberately damaged
//! samples that its corpus is made of. `tests/fuzz` runs them under libFuzzer; `tests/it/fuzz_corpus.rs` runs every file of
//! `tests/fuzz/corpus` and a fixed number of mutations of each with the ordinary tests.

pub mod admin;
pub mod component;
pub mod frame;
pub mod mutate;
pub mod ports;
pub mod replica;
pub mod segment;
pub mod snapshot;

/// A fuzz target.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Tries the bytes; panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Names and contents of the samples that the corpus is made of, the same in every run.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// Whether the samples are a record of what the code does, which may change with it, and not of a format.
    pub recorded: bool,
    /// Mutations of each sample that a bounded run tries.
    pub mutations: u64,
}

/// All targets. Those whose samples cost more are mutated less often.
pub const TARGETS: [Target; 7] = [
    Target {
        name: "frame",
        run: frame::run,
        seeds: frame::seeds,
        recorded: false,
        mutations: 400,
    },
    Target {
        name: "replica",
        run: replica::run,
        seeds: replica::seeds,
        recorded: true,
        mutations: 200,
    },
    Target {
        name: "segment",
        run: segment::run,
        seeds: segment::seeds,
        recorded: false,
        mutations: 200,
    },
    Target {
        name: "snapshot",
        run: snapshot::run,
        seeds: snapshot::seeds,
        recorded: false,
        mutations: 200,
    },
    Target {
        name: "component",
        run: component::run,
        seeds: component::seeds,
        recorded: false,
        mutations: 40,
    },
    Target {
        name: "admin",
        run: admin::run,
        seeds: admin::seeds,
        recorded: false,
        mutations: 100,
    },
    Target {
        name: "ports",
        run: ports::run,
        seeds: ports::seeds,
        recorded: false,
        mutations: 8,
    },
];
