//! Prints to both streams and sleeps in every call, so it holds handles of the host's wherever it is asked; its state is as it should be.

use std::thread::sleep;
use std::time::Duration;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Prints {
    pairs: Pairs,
}

/// The first of them takes a stream, each takes and drops a pollable.
fn print(request: &[u8]) {
    println!("{}", request.escape_ascii());
    sleep(Duration::from_micros(3));
    if request.len().is_multiple_of(3) {
        eprintln!("again: {}", request.escape_ascii());
    }
}

impl Machine for Prints {
    fn describe() -> Descriptor {
        descriptor("prints")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        print(request);
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        print(request);
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        print(b"save");
        self.pairs.save(to);
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        print(b"restore");
        Ok(Self {
            pairs: Pairs::restore(from)?,
        })
    }
}

skep_guest::export!(Prints);
