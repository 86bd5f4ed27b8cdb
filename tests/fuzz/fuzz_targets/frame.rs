#![no_main]

#[path = "../../src/fuzz/frame.rs"]
#[allow(dead_code)]
mod frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::run(data));
