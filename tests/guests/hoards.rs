//! Allocates without end on `hoard`, touching every page; `hoard N` takes and keeps N MiB, so that a limit can be
//! approached.

use std::hint::black_box;

use skep_guest::{Context, Rejection, Sink, Source};
use skep_test_guests::{Attack, Guest, number};

const MIB: usize = 1024 * 1024;
const PAGE: usize = 64 * 1024;

#[derive(Default)]
struct Hoards {
    hoard: Vec<Vec<u8>>,
}

impl Attack for Hoards {
    const NAME: &'static str = "hoards";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        let wanted = if request == b"hoard" {
            u64::MAX
        } else {
            number(request, "hoard")?.try_into().ok()?
        };
        for _ in 0..wanted {
            self.take_one();
        }
        Some(Ok(self.hoard.len().to_string().into_bytes()))
    }

    fn save(&self, to: &mut Sink<'_>) {
        to.put_u64(self.hoard.len() as u64);
    }

    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut hoards = Hoards::default();
        for _ in 0..from.take_u64()? {
            hoards.take_one();
        }
        Ok(hoards)
    }
}

impl Hoards {
    fn take_one(&mut self) {
        let mut block = vec![0; MIB];
        for page in block.chunks_mut(PAGE) {
            page[0] = 1;
        }
        self.hoard.push(black_box(block));
    }
}

skep_guest::export!(Guest<Hoards>);
