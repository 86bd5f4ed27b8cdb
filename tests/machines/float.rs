//! Keeps a sum in double precision and saves it in single: `add N` answers the sum, and after a barrier its last digits are
//! others. A second save of what was restored gives the same bytes.

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor, number};

#[derive(Default)]
struct Mean {
    pairs: Pairs,
    sum: f64,
}

impl Machine for Mean {
    fn describe() -> Descriptor {
        descriptor("float")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some(tenths) = number(request, "add") {
            self.sum += tenths as f64 / 10.0;
            return Ok(self.sum.to_string().into_bytes());
        }
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.pairs.save(to);
        to.put_u32((self.sum as f32).to_bits());
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?,
            sum: f64::from(f32::from_bits(from.take_u32()?)),
        })
    }
}

skep_guest::export!(Mean);
