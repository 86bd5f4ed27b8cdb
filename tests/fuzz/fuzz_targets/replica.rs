#![no_main]

#[path = "../../src/fuzz/replica/mod.rs"]
#[allow(dead_code, unused_imports)]
mod replica;

libfuzzer_sys::fuzz_target!(|data: &[u8]| replica::run(data));
