//! The counter of README.md, word for word: it has no mistake.

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};

#[derive(Default)]
struct Counter(u64);

#[rustfmt::skip]
impl Machine for Counter {
    fn describe() -> Descriptor { Descriptor { name: "counter", version: "0.1.0", schema: 1, oldest_schema: 1 } }
    fn apply(&mut self, _: &Context, _: &[u8]) -> Result<Vec<u8>, Rejection> { self.0 += 1; Ok(self.0.to_string().into()) }
    fn query(&self, _: &Context, _: &[u8]) -> Result<Vec<u8>, Rejection> { Ok(self.0.to_string().into()) }
    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> { to.put_u64(self.0); Ok(()) }
    fn restore(_: u32, from: &mut Source<'_>) -> Result<Self, Rejection> { Ok(Counter(from.take_u64()?)) }
}

skep_guest::export!(Counter);
