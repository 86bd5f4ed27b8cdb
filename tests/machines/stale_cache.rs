//! Keeps what the query `len` found, and answers the next `len` from there, whatever was put meanwhile. No command and no
//! `save` looks at it.

use std::cell::Cell;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Cached {
    pairs: Pairs,
    len: Cell<Option<usize>>,
}

impl Machine for Cached {
    fn describe() -> Descriptor {
        descriptor("stale_cache")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request != b"len" {
            return self.pairs.query(request);
        }
        let len = self.len.get().unwrap_or(self.pairs.0.len());
        self.len.set(Some(len));
        Ok(len.to_string().into_bytes())
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.pairs.save(to);
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?,
            len: Cell::new(None),
        })
    }
}

skep_guest::export!(Cached);
