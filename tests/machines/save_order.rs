//! Writes its state in the order of a hash map. Its replies show no order.

use std::collections::HashMap;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, UNKNOWN, descriptor, put};

#[derive(Default)]
struct Unsorted {
    pairs: HashMap<Vec<u8>, Vec<u8>>,
}

impl Machine for Unsorted {
    fn describe() -> Descriptor {
        descriptor("save_order")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some((key, value)) = put(request) {
            self.pairs.insert(key.to_vec(), value.to_vec());
            return Ok(self.pairs.len().to_string().into_bytes());
        }
        Err(Rejection::new(UNKNOWN, "put KEY VALUE"))
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        let key = request.strip_prefix(b"get ");
        let key = key.ok_or_else(|| Rejection::new(UNKNOWN, "get KEY"))?;
        Ok(self.pairs.get(key).cloned().unwrap_or_default())
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        to.put_u32(self.pairs.len() as u32);
        for (key, value) in &self.pairs {
            to.put_bytes(key);
            to.put_bytes(value);
        }
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(Self {
            pairs: Pairs::restore(from)?.0.into_iter().collect(),
        })
    }
}

skep_guest::export!(Unsorted);
