#![no_main]

#[path = "../../src/fuzz/frame/mod.rs"]
#[allow(dead_code, unused_imports)]
mod frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::run(data));
