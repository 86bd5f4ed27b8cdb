//! Seeds a generator of its own once in the life of an instance and forgets it in `save`: `roll` answers one number before a
//! barrier and would have answered another without it.

use std::cell::Cell;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source, entropy};
use skep_test_machines::{Pairs, descriptor};

thread_local! {
    static GENERATOR: Cell<u64> = Cell::new(entropy::next_u64());
}

#[derive(Default)]
struct Dice {
    pairs: Pairs,
}

impl Machine for Dice {
    fn describe() -> Descriptor {
        descriptor("random")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request == b"roll" {
            let word = GENERATOR
                .get()
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(1);
            GENERATOR.set(word);
            return Ok((1 + (word >> 33) % 6_000_000).to_string().into_bytes());
        }
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

skep_guest::export!(Dice);
