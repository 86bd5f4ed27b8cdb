#![no_main]

#[path = "../../src/fuzz/snapshot.rs"]
#[allow(dead_code)]
mod snapshot;

libfuzzer_sys::fuzz_target!(|data: &[u8]| snapshot::run(data));
