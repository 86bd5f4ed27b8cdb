//! Answers `order` with the keys of a hash map in the map's own order, which depends on the seed of the process and on
//! everything the map has been through. `order` grows the map by eight keys and takes four of the older ones out. As a
//! query it answers without a change.

use std::collections::HashMap;

use skep_guest::{Context, Rejection, Sink, Source};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct HashOrder {
    next: u64,
    map: HashMap<u64, u64>,
}

impl Attack for HashOrder {
    const NAME: &'static str = "hash-order";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        if request != b"order" {
            return None;
        }
        for _ in 0..8 {
            self.map.insert(self.next, self.next * 3);
            self.next += 1;
        }
        let oldest = self.next.saturating_sub(20);
        self.map.retain(|key, _| *key >= oldest || key % 2 == 0);
        Some(Ok(self.order()))
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        (request == b"order").then(|| Ok(self.order()))
    }

    fn save(&self, to: &mut Sink<'_>) {
        let mut keys: Vec<(&u64, &u64)> = self.map.iter().collect();
        keys.sort_unstable();
        to.put_u64(self.next);
        to.put_u64(keys.len() as u64);
        for (key, value) in keys {
            to.put_u64(*key);
            to.put_u64(*value);
        }
    }

    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let next = from.take_u64()?;
        let mut map = HashMap::new();
        for _ in 0..from.take_u64()? {
            map.insert(from.take_u64()?, from.take_u64()?);
        }
        Ok(HashOrder { next, map })
    }
}

impl HashOrder {
    fn order(&self) -> Vec<u8> {
        format!("{:?}", self.map.keys().collect::<Vec<_>>()).into_bytes()
    }
}

skep_guest::export!(Guest<HashOrder>);
