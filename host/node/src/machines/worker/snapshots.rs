//! The snapshot files of a machine: written beside what it does next, again and again if need be.

use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use skep_core::id::{ComponentId, LogIndex};
use skep_core::input::Input;
use skep_drive::CanonicalPoint;
use skep_log::SealedSnapshot;
use skep_store::convert;

use super::Actor;
use super::Queue;

/// Ticks before a file that could not be written is tried again: the first pause, and the longest, which is some six seconds.
const WRITE_AGAIN: (u32, u32) = (2, 64);

/// The snapshot of a barrier that is in no file yet.
pub(super) struct Unwritten {
    index: LogIndex,
    sealed: SealedSnapshot,
    /// Ticks until it is tried again, and how many these were.
    left: u32,
    pause: u32,
}

/// What a snapshot is to hold.
pub(crate) struct Saved {
    pub(crate) point: CanonicalPoint,
    /// The host's section.
    pub(crate) state: Bytes,
    pub(crate) component: ComponentId,
    /// For the core.
    pub(crate) memory: Option<u64>,
}

impl Actor {
    /// Makes the snapshot of a barrier durable, beside what the machine does next; then posts it, and what came after it. If
    /// that fails the machine goes on all the same, from the same bytes, and the file is tried again later.
    pub(super) fn settle(self: &Arc<Self>, saved: Saved) {
        {
            let mut queue = self.lock();
            queue.settling += 1;
            queue.newest = saved.point.context.index;
            // What was in no file need not be any more.
            queue.unwritten = None;
        }
        self.results().hold();
        let actor = Arc::clone(self);
        self.pool.run(move || {
            let (index, memory) = (saved.point.context.index, saved.memory);
            let (settled, unwritten) = match actor.disk.seal_snapshot(actor.owner.key, saved) {
                Ok(sealed) => actor.write(index, sealed, memory),
                // The host's own section is too large, which it is on every replica alike.
                Err(error) => {
                    let (group, name) = (actor.owner.key.group, &actor.owner.name);
                    tracing::error!(group, name, index = index.0, %error, "no snapshot: the log of the group cannot be compacted");
                    let settled = Input::Snapshotted {
                        index,
                        snapshot: None,
                        memory,
                    };
                    (settled, None)
                }
            };
            let mut queue = actor.lock();
            queue.settling -= 1;
            // A later barrier, or a restore, has taken its place meanwhile.
            if queue.newest == index && !queue.halted {
                queue.unwritten = unwritten;
            }
            actor.results().settle(settled);
            actor.post();
            // For what had to wait.
            actor.schedule(queue);
        });
    }

    fn write(
        &self,
        index: LogIndex,
        sealed: SealedSnapshot,
        memory: Option<u64>,
    ) -> (Input, Option<Unwritten>) {
        let snapshot = convert::name(sealed.mark());
        match sealed.place() {
            Ok(_) => (
                Input::Snapshotted {
                    index,
                    snapshot: Some(snapshot),
                    memory,
                },
                None,
            ),
            Err(error) => {
                let (group, name) = (self.owner.key.group, &self.owner.name);
                tracing::warn!(group, name, index = index.0, %error, "a snapshot is in no file yet: the group goes on, its log grows, and the file is tried again");
                let reason = format!("its file is not written yet: {error}");
                let unwritten = Unwritten {
                    index,
                    sealed,
                    left: WRITE_AGAIN.0,
                    pause: WRITE_AGAIN.0,
                };
                (
                    Input::Unwritten {
                        index,
                        snapshot,
                        memory,
                        reason,
                    },
                    Some(unwritten),
                )
            }
        }
    }

    /// Time passes for a snapshot that is in no file.
    pub(super) fn write_again_if_due(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        let is_due = |unwritten: &mut Unwritten| {
            unwritten.left = unwritten.left.saturating_sub(1);
            unwritten.left == 0
        };
        let Some(mut unwritten) = queue.unwritten.take_if(is_due) else {
            return;
        };
        queue.settling += 1;
        drop(queue);
        let actor = Arc::clone(self);
        self.pool.run(move || {
            let index = unwritten.index;
            let placed = unwritten.sealed.place();
            let mut queue = actor.lock();
            queue.settling -= 1;
            match placed {
                Ok(_) => {
                    tracing::info!(group = actor.owner.key.group, name = %actor.owner.name, index = index.0, "the snapshot is in a file now");
                    actor.push(Input::Written { index });
                    actor.post();
                }
                Err(error) => {
                    tracing::debug!(group = actor.owner.key.group, %error, "a snapshot is still in no file");
                    unwritten.pause = (2 * unwritten.pause).min(WRITE_AGAIN.1);
                    unwritten.left = unwritten.pause;
                    if queue.newest == index && !queue.halted {
                        queue.unwritten = Some(unwritten);
                    }
                }
            }
            actor.schedule(queue);
        });
    }

    /// The machine goes on from another snapshot: nobody names one before that any more.
    pub(super) fn supersede_unwritten(&self, by: LogIndex) {
        let mut queue = self.lock();
        queue.unwritten = None;
        queue.newest = by;
    }
}
