//! Makes NaNs with payloads and signs in every way that comes to mind and answers `nan N` with their bits, and keeps them. The
//! sandbox makes one NaN of them all, so there is nothing to find.

use std::hint::black_box;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor, number};

#[derive(Default)]
struct Nan {
    pairs: Pairs,
    last: f64,
}

impl Machine for Nan {
    fn describe() -> Descriptor {
        descriptor("nan")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some(payload) = number(request, "nan") {
            let made = f64::from_bits(0x7ff0_0000_0000_0001 | (payload << 1 & 0xf_ffff));
            let zero = black_box(0.0f64);
            let sum = [
                black_box(made) + self.last,
                -(zero / black_box(0.0)),
                black_box(-made).sqrt(),
                zero * f64::INFINITY,
            ];
            self.last = sum[0];
            return Ok(sum
                .map(|nan| format!("{:016x}", nan.to_bits()))
                .join(" ")
                .into_bytes());
        }
        self.pairs.apply(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.pairs.save(to);
        to.put_u64(self.last.to_bits());
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?,
            last: f64::from_bits(from.take_u64()?),
        })
    }
}

skep_guest::export!(Nan);
