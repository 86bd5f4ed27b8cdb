//! Keeps a generator that is seeded when the instance starts, as the standard libraries of many languages do, and puts what it
//! draws into the state: `draw` answers `ok`, the query `show` lists what was drawn. `save` writes all of that, not the generator.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{UNKNOWN, descriptor};

thread_local! {
    static GENERATOR: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
}

#[derive(Default)]
struct Drawn(Vec<u64>);

impl Machine for Drawn {
    fn describe() -> Descriptor {
        descriptor("draws")
    }

    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request != b"draw" {
            return self.query(ctx, request);
        }
        let word = GENERATOR
            .get()
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(1);
        GENERATOR.set(word);
        // The last ones are enough.
        if self.0.len() == 16 {
            self.0.remove(0);
        }
        self.0.push(word >> 33);
        Ok(b"ok".to_vec())
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request != b"show" {
            return Err(Rejection::new(UNKNOWN, "one of: draw, show"));
        }
        let drawn: Vec<_> = self.0.iter().map(u64::to_string).collect();
        Ok(drawn.join(" ").into_bytes())
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        to.put_u32(self.0.len() as u32);
        for word in &self.0 {
            to.put_u64(*word);
        }
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut drawn = Vec::new();
        for _ in 0..from.take_u32()? {
            drawn.push(from.take_u64()?);
        }
        Ok(Self(drawn))
    }
}

skep_guest::export!(Drawn);
