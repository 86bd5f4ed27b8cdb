//! Keeps every request it has answered for ever, in its state.

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

#[derive(Default)]
struct Grows {
    pairs: Pairs,
    requests: Vec<Vec<u8>>,
}

impl Machine for Grows {
    fn describe() -> Descriptor {
        descriptor("grows")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        let reply = self.pairs.apply(request)?;
        self.requests.push(request.to_vec());
        Ok(reply)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.pairs.query(request)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        self.pairs.save(to);
        to.put_u32(self.requests.len() as u32);
        for request in &self.requests {
            to.put_bytes(request);
        }
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        let pairs = Pairs::restore(from)?;
        let mut requests = Vec::new();
        for _ in 0..from.take_u32()? {
            requests.push(from.take_bytes()?);
        }
        Ok(Self { pairs, requests })
    }
}

skep_guest::export!(Grows);
