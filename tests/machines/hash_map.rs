//! Keeps its state in the standard library's hash map and lets the order of iteration show in replies, so replies
//! depend on the hash seed and on the order of insertions. `save` writes in the order of the keys.
//!
//! `put KEY N` stores N bytes, `del KEY` removes, `first N` answers the first N keys, `spin N` looks N keys up and answers
//! how many there were. `first` is a query as well, and so is `len`.

use std::collections::HashMap;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{UNKNOWN, descriptor, number, put};

#[derive(Default)]
struct Hashed(HashMap<Vec<u8>, Vec<u8>>);

impl Machine for Hashed {
    fn describe() -> Descriptor {
        descriptor("hash_map")
    }

    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some((key, len)) = put(request) {
            let len: usize = std::str::from_utf8(len)
                .ok()
                .and_then(|len| len.parse().ok())
                .ok_or_else(|| Rejection::new(UNKNOWN, "put KEY N, N a number"))?;
            self.0.insert(key.to_vec(), vec![b'x'; len]);
            return Ok(self.0.len().to_string().into_bytes());
        }
        if let Some(key) = request.strip_prefix(b"del ") {
            self.0.remove(key);
            return Ok(self.0.len().to_string().into_bytes());
        }
        if let Some(times) = number(request, "spin") {
            let found =
                (0..times).filter(|n| self.0.contains_key(format!("k{}", n % 512).as_bytes()));
            return Ok(found.count().to_string().into_bytes());
        }
        self.query(ctx, request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request == b"len" {
            return Ok(self.0.len().to_string().into_bytes());
        }
        let count = number(request, "first").ok_or_else(|| {
            Rejection::new(UNKNOWN, "one of: put KEY N, del KEY, first N, spin N, len")
        })?;
        let first: Vec<_> = self
            .0
            .keys()
            .take(count as usize)
            .map(Vec::as_slice)
            .collect();
        Ok(first.join(&b' '))
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        let mut pairs: Vec<_> = self.0.iter().collect();
        pairs.sort_unstable();
        to.put_u32(pairs.len() as u32);
        for (key, value) in pairs {
            to.put_bytes(key);
            to.put_bytes(value);
        }
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut pairs = HashMap::new();
        for _ in 0..from.take_u32()? {
            pairs.insert(from.take_bytes()?, from.take_bytes()?);
        }
        Ok(Self(pairs))
    }
}

skep_guest::export!(Hashed);
