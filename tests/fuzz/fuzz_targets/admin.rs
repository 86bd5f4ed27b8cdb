#![no_main]

#[path = "../../src/fuzz/admin.rs"]
#[allow(dead_code)]
mod admin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| admin::run(data));
