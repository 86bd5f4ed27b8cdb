//! Loops for ever on `loop`, as a command and as a query.

use std::hint::black_box;

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct Loops;

impl Attack for Loops {
    const NAME: &'static str = "loops";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        (request == b"loop").then(spin)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        (request == b"loop").then(spin)
    }
}

fn spin() -> Result<Vec<u8>, Rejection> {
    let mut turns = 0u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

skep_guest::export!(Guest<Loops>);
