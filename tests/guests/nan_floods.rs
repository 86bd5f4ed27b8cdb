//! Keeps floats in its state whose bits an implementation may choose: `flood` makes NaNs in every way that arithmetic
//! has, out of NaNs with payloads, mixes them into eight sums and answers with the bits of those. The bits are saved.

use std::hint::black_box;

use skep_guest::{Context, Rejection, Sink, Source};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct NanFloods {
    sums: [f64; 8],
}

impl Attack for NanFloods {
    const NAME: &'static str = "nan-floods";

    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        if request != b"flood" {
            return None;
        }
        for step in 0..100 {
            let payload = ctx.index.wrapping_mul(0x9e37_79b9).wrapping_add(step);
            self.mix(payload);
        }
        let bits: Vec<u64> = self.sums.iter().map(|sum| sum.to_bits()).collect();
        Some(Ok(format!("{bits:x?}").into_bytes()))
    }

    fn save(&self, to: &mut Sink<'_>) {
        for sum in self.sums {
            to.put_u64(sum.to_bits());
        }
    }

    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut sums = [0.0; 8];
        for sum in &mut sums {
            *sum = f64::from_bits(from.take_u64()?);
        }
        Ok(NanFloods { sums })
    }
}

impl NanFloods {
    fn mix(&mut self, payload: u64) {
        // Quiet and signalling NaNs, of both signs, with a payload of the caller's.
        let quiet = black_box(f64::from_bits(
            0x7ff8_0000_0000_0000 | payload & 0xffff_ffff,
        ));
        let signalling = black_box(f64::from_bits(0xfff0_0000_0000_0001 | payload & 0xffff));
        let zero = black_box(0.0f64);
        let infinite = black_box(f64::INFINITY);
        let (nothing, endless) = (black_box(0.0f64), black_box(f64::INFINITY));
        let made = [
            zero / nothing,
            infinite - endless,
            infinite * zero,
            (-1.0 - zero).sqrt(),
            quiet + signalling,
            signalling * quiet,
            f64::from(quiet as f32),
            f64::from(signalling as f32)
                .min(quiet)
                .max(zero)
                .copysign(signalling)
                + quiet,
        ];
        for (sum, made) in self.sums.iter_mut().zip(made) {
            *sum = black_box(*sum + made) - black_box(made * *sum);
        }
    }
}

skep_guest::export!(Guest<NanFloods>);
