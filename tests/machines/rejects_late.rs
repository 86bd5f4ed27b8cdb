//! Rejects a value that is too long after it has stored it.

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor, put};

#[derive(Default)]
struct Late {
    pairs: Pairs,
}

impl Machine for Late {
    fn describe() -> Descriptor {
        descriptor("rejects_late")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        let reply = self.pairs.apply(request)?;
        match put(request) {
            Some((_, value)) if value.len() > 8 => Err(Rejection::new(413, "at most 8 bytes")),
            _ => Ok(reply),
        }
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

skep_guest::export!(Late);
