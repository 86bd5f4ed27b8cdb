//! Answers `probe` with what it can learn of its memory: the address of a fresh allocation and of a local, the bytes of
//! memory that was never written, and how many pages `memory.grow` gives before it refuses, which it keeps. All of that is
//! outside `save`; replicas must give the same answer.

use std::hint::black_box;

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct ProbesMemory;

impl Attack for ProbesMemory {
    const NAME: &'static str = "probes-memory";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        match request {
            b"probe" => Some(Ok(probe())),
            b"leak" => {
                std::mem::forget(black_box(vec![1u8; 10_007]));
                Some(Ok(b"leaked".to_vec()))
            }
            _ => None,
        }
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        (request == b"probe").then(|| Ok(probe()))
    }
}

fn probe() -> Vec<u8> {
    let heap = black_box(Box::new(7u64));
    let local = black_box(7u64);
    let before = pages(0);
    let mut gained = 0usize;
    while pages(1) > before + gained {
        gained += 1;
    }
    format!(
        "heap {:p} stack {:p} pages {before} gained {gained}",
        &raw const *heap, &raw const local
    )
    .into_bytes()
}

/// Asks for more pages; how many there are then.
#[cfg(target_family = "wasm")]
fn pages(more: usize) -> usize {
    std::arch::wasm32::memory_grow::<0>(more);
    std::arch::wasm32::memory_size::<0>()
}

/// A native build has no such memory.
#[cfg(not(target_family = "wasm"))]
fn pages(_: usize) -> usize {
    0
}

skep_guest::export!(Guest<ProbesMemory>);
