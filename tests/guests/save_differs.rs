//! Writes other bytes each time it saves: how often it has, the time, chance, an address, and the order of a hash map.
//! All replicas must still write the same.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use skep_guest::{Rejection, Sink, Source, entropy};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct SaveDiffers {
    saved: Cell<u64>,
    /// What the last snapshot held, so that it goes into the next.
    before: Vec<u8>,
}

impl Attack for SaveDiffers {
    const NAME: &'static str = "save-differs";

    fn save(&self, to: &mut Sink<'_>) {
        self.saved.set(self.saved.get() + 1);
        let here = Box::new(7u64);
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let map: HashMap<u64, ()> = (0..16).map(|key| (key, ())).collect();
        let text = format!(
            "{} {} {} {:p} {:?} {}",
            self.saved.get(),
            time.as_nanos(),
            entropy::next_u64(),
            &raw const *here,
            map.keys(),
            self.before.len()
        );
        to.put_bytes(text.as_bytes());
    }

    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        Ok(SaveDiffers {
            saved: Cell::default(),
            before: from.take_bytes()?,
        })
    }
}

skep_guest::export!(Guest<SaveDiffers>);
