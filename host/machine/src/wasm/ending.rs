//! Ends the calls of a machine whose group has gone from this node.
//!
//! Fuel bounds every call, the same on every replica; it may be minutes. Nobody waits any more for a machine that was let go,
//! so its node need not. Code looks at the engine's epoch where it may loop. The epoch moves only when a machine is to end:
//! every machine that runs then asks its own ending and goes on, and that takes no fuel. Looking has a price in time: a tenth of
//! what a machine takes that only computes, much less of usual commands.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, fence};

use wasmtime::{Store, UpdateDeadline};

use super::fault::Failure;
use super::host::Host;
use crate::{Interrupter, LocalCode};

/// Whether the calls of one machine are to end, in all of its instances.
#[derive(Debug)]
pub(super) struct Ending {
    engine: wasmtime::Engine,
    has_come: AtomicBool,
}

impl Ending {
    /// For a machine whose code was compiled by this engine.
    pub(super) fn new(engine: &wasmtime::Engine) -> Arc<Self> {
        Arc::new(Self {
            engine: engine.clone(),
            has_come: AtomicBool::new(false),
        })
    }

    /// Before anything runs in the store; fails if there is nothing to run any more.
    pub(super) fn watch(self: &Arc<Self>, store: &mut Store<Host>) -> Result<(), Failure> {
        store.set_epoch_deadline(1);
        let ending = Arc::clone(self);
        store.epoch_deadline_callback(move |_| {
            Ok(match ending.has_come.load(Relaxed) {
                true => UpdateDeadline::Interrupt,
                false => UpdateDeadline::Continue(1),
            })
        });
        // With the fence of whoever interrupts: a deadline beyond its step of the epoch has its flag.
        fence(SeqCst);
        match self.has_come.load(Relaxed) {
            true => Err(Failure::local(
                LocalCode::Interrupted,
                "its group has gone from this node",
            )),
            false => Ok(()),
        }
    }
}

impl Interrupter for Ending {
    fn interrupt(&self) {
        self.has_come.store(true, Relaxed);
        fence(SeqCst);
        self.engine.increment_epoch();
    }
}
