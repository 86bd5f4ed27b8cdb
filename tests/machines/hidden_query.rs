//! Counts its commands in a static that `save` knows nothing of, and shows the count to nobody but the query `count`.

use std::cell::Cell;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

thread_local! {
    static COMMANDS: Cell<u64> = const { Cell::new(0) };
}

#[derive(Default)]
struct Hidden {
    pairs: Pairs,
}

impl Machine for Hidden {
    fn describe() -> Descriptor {
        descriptor("hidden_query")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        COMMANDS.set(COMMANDS.get() + 1);
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request == b"count" {
            return Ok(COMMANDS.get().to_string().into_bytes());
        }
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

skep_guest::export!(Hidden);
