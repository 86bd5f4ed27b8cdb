//! Its `restore` drops the pair whose value is empty, which it takes for deleted.

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Forgetful {
    pairs: Pairs,
}

impl Machine for Forgetful {
    fn describe() -> Descriptor {
        descriptor("forgetful")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
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
        let mut pairs = Pairs::restore(from)?;
        pairs.0.retain(|_, value| !value.is_empty());
        Ok(Self { pairs })
    }
}

skep_guest::export!(Forgetful);
