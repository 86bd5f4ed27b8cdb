#![no_main]

#[path = "../../src/fuzz/segment.rs"]
#[allow(dead_code)]
mod segment;

libfuzzer_sys::fuzz_target!(|data: &[u8]| segment::run(data));
