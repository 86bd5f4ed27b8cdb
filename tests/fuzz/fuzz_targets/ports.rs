#![no_main]

#[path = "../../src/clock.rs"]
#[allow(dead_code)]
mod clock;
#[path = "../../src/fuzz/frame.rs"]
#[allow(dead_code)]
mod frame;
#[path = "../../src/fuzz/ports.rs"]
#[allow(dead_code)]
mod ports;

libfuzzer_sys::fuzz_target!(|data: &[u8]| ports::run(data));
