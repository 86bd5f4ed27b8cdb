//! Remembers when its instance started and answers `age` with the time since, in nanoseconds: the start is not in `save`, so
//! a barrier makes the machine young again.

use std::time::SystemTime;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{Pairs, descriptor};

thread_local! {
    static STARTED: SystemTime = SystemTime::now();
}

#[derive(Default)]
struct Clock {
    pairs: Pairs,
}

impl Machine for Clock {
    fn describe() -> Descriptor {
        descriptor("clock")
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request == b"age" {
            let age = STARTED.with(|started| SystemTime::now().duration_since(*started));
            return Ok(age.unwrap_or_default().as_nanos().to_string().into_bytes());
        }
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
        Ok(Self {
            pairs: Pairs::restore(from)?,
        })
    }
}

skep_guest::export!(Clock);
