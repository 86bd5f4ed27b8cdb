//! Ends the process on `exit` (with code 3), `exit-well` (with code 0) and `abort`, as commands and as queries.

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct Exits;

impl Attack for Exits {
    const NAME: &'static str = "exits";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        leave(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        leave(request)
    }
}

fn leave(request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
    match request {
        b"exit" => std::process::exit(3),
        b"exit-well" => std::process::exit(0),
        b"abort" => std::process::abort(),
        _ => None,
    }
}

skep_guest::export!(Guest<Exits>);
