//! Its `save` counts the saves and writes the count: a save changes what the next one writes.

use std::cell::Cell;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Generations {
    pairs: Pairs,
    saves: Cell<u64>,
}

impl Machine for Generations {
    fn describe() -> Descriptor {
        descriptor("mutating_save")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.saves.set(self.saves.get() + 1);
        self.pairs.save(to);
        to.put_u64(self.saves.get());
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?,
            saves: Cell::new(from.take_u64()?),
        })
    }
}

skep_guest::export!(Generations);
