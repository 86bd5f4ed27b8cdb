//! Leaks a kilobyte with every command; its state stays as small as it should.

use std::hint::black_box;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Leaks {
    pairs: Pairs,
}

impl Machine for Leaks {
    fn describe() -> Descriptor {
        descriptor("leaks")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        black_box(Box::leak(vec![1u8; 1024].into_boxed_slice()));
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.pairs.save(to);
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?,
        })
    }
}

skep_guest::export!(Leaks);
