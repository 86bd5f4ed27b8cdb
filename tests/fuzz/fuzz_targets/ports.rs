#![no_main]

#[path = "../../src/clock.rs"]
#[allow(dead_code)]
mod clock;
#[path = "../../src/fuzz/frame/mod.rs"]
#[allow(dead_code, unused_imports)]
mod frame;
#[path = "../../src/fuzz/ports.rs"]
#[allow(dead_code)]
mod ports;

libfuzzer_sys::fuzz_target!(|data: &[u8]| ports::run(data));
