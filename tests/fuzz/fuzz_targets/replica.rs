#![no_main]

#[path = "../../src/fuzz/replica.rs"]
#[allow(dead_code)]
mod replica;

libfuzzer_sys::fuzz_target!(|data: &[u8]| replica::run(data));
