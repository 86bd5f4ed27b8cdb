#![no_main]

#[path = "../../src/fuzz/component.rs"]
#[allow(dead_code)]
mod component;

libfuzzer_sys::fuzz_target!(|data: &[u8]| component::run(data));
