//! Recurses without end: `recurse` on the host's call stack (its frames use no linear memory, so that the engine's own
//! limit is reached first), `recurse-frames` on the guest's stack in linear memory (large frames, so that this one
//! overflows first).

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest, number};

/// Never set, as only the caller of `stop-at` knows: the optimiser cannot tell that the recursion has no end.
static STOP_AT: AtomicU32 = AtomicU32::new(0);

#[derive(Default)]
struct Recurses;

impl Attack for Recurses {
    const NAME: &'static str = "recurses";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        attack(request)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        attack(request)
    }
}

fn attack(request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
    let deepest = match request {
        b"recurse" => descend(1),
        b"recurse-frames" => descend_in_frames(1),
        _ => {
            STOP_AT.store(
                number(request, "stop-at")?.try_into().ok()?,
                Ordering::Relaxed,
            );
            0
        }
    };
    Some(Ok(deepest.to_string().into_bytes()))
}

/// What is done after the call keeps it from being a tail call, and is neither associative nor commutative, so that no
/// accumulator can replace the recursion.
#[inline(never)]
fn descend(depth: u32) -> u32 {
    if STOP_AT.load(Ordering::Relaxed) == depth {
        return depth;
    }
    descend(depth.wrapping_add(1)).rotate_left(5) ^ depth
}

#[inline(never)]
fn descend_in_frames(depth: u32) -> u32 {
    if STOP_AT.load(Ordering::Relaxed) == depth {
        return depth;
    }
    let mut frame = [depth; 4096];
    black_box(&mut frame);
    let below = descend_in_frames(depth.wrapping_add(1));
    black_box(&mut frame)[depth as usize % 4096] ^ below.rotate_left(5)
}

skep_guest::export!(Guest<Recurses>);
