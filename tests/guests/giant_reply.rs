//! Replies beyond any limit: `giant` is 64 MiB, `giant N` is N bytes, `giant-rejection N` is a rejection whose message
//! has N bytes. As commands and as queries.

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest, number};

const GIANT: usize = 64 * 1024 * 1024;

#[derive(Default)]
struct GiantReply;

impl Attack for GiantReply {
    const NAME: &'static str = "giant-reply";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        giant(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        giant(request)
    }
}

fn giant(request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
    let len = |word| number(request, word).and_then(|len| usize::try_from(len).ok());
    if let Some(len) = len("giant-rejection") {
        return Some(Err(Rejection::new(1, "!".repeat(len))));
    }
    let len = if request == b"giant" {
        GIANT
    } else {
        len("giant")?
    };
    Some(Ok(vec![b'!'; len]))
}

skep_guest::export!(Guest<GiantReply>);
