//! Counts its queries, and shows the count in the reply to the command `queries`.

use std::cell::Cell;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Counted {
    pairs: Pairs,
    queries: Cell<u64>,
}

impl Machine for Counted {
    fn describe() -> Descriptor {
        descriptor("query_mutates")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request == b"queries" {
            return Ok(self.queries.get().to_string().into_bytes());
        }
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.queries.set(self.queries.get() + 1);
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.pairs.save(to);
        to.put_u64(self.queries.get());
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?,
            queries: Cell::new(from.take_u64()?),
        })
    }
}

skep_guest::export!(Counted);
