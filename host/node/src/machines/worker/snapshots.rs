//! The snapshot files of a machine: written beside what it does next, again and again if need be.

use std::io;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use skep_core::deployment::Deployment;
use skep_core::id::{ComponentId, LogIndex};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_drive::{CanonicalPoint, Imaging, ReadImage, no_image};
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
    /// The machine keeps it in memory as long as it is in no file.
    image: Option<Imaging>,
    /// Ticks until it is tried again, and how many these were.
    left: u32,
    pause: u32,
}

/// What the machine has left at a barrier.
pub(super) enum Left {
    /// What it saved, and goes on from.
    Saved(CanonicalPoint),
    /// An image, which is not taken to its end.
    Image(Imaging),
}

/// A barrier that the machine has passed.
pub(super) struct Passed {
    pub(super) left: Left,
    /// The host's section of the snapshot.
    pub(super) state: Bytes,
    /// What the machine is of; none if that is never exchanged.
    pub(super) deployment: Option<Deployment>,
    /// Bytes of the memory that an image would be of, for the core.
    pub(super) memory: Option<u64>,
}

/// What a snapshot is to hold.
pub(crate) struct Saved {
    pub(crate) point: CanonicalPoint,
    /// The host's section.
    pub(crate) state: Bytes,
    pub(crate) component: ComponentId,
}

impl Actor {
    /// Makes the snapshot of a barrier durable, beside what the machine does next; then posts it. If that fails the machine goes on
    /// all the same, and the file is tried again later.
    ///
    /// What comes after the barrier is posted after it. Only an image keeps nobody waiting: it may take long.
    pub(super) fn settle(self: &Arc<Self>, passed: Passed) {
        let is_image = matches!(passed.left, Left::Image(_));
        self.lock().settling += 1;
        if !is_image {
            self.results().hold();
        }
        let actor = Arc::clone(self);
        self.pool.run(move || {
            let deployment = passed.deployment.clone();
            let (settled, image) = actor.write_down(passed);
            match is_image {
                true => actor.results().push(settled),
                false => actor.results().settle(settled),
            }
            actor.post();
            let mut queue = actor.lock();
            queue.settling -= 1;
            // For what had to wait.
            actor.schedule(queue);
            match (image, deployment) {
                (Some(image), Some(deployment)) => actor.exercise_if_due(&deployment, &image),
                _ if is_image => {}
                _ => actor.was_exercised(),
            }
        });
    }

    /// Takes the rest of an image, and writes the snapshot; with the image.
    fn write_down(&self, passed: Passed) -> (Input, Option<CanonicalPoint>) {
        let Passed {
            left,
            state,
            deployment,
            memory,
        } = passed;
        let (point, image) = match left {
            Left::Saved(point) => (point, None),
            Left::Image(mut image) => match image.finish() {
                Ok(point) => (point, Some(image)),
                Err(error) => {
                    let (group, name, index) =
                        (self.owner.key.group, &self.owner.name, image.index());
                    tracing::warn!(group, name, index = index.0, %error, "no image of the machine: the group goes on, and its log grows until the next snapshot");
                    return (no_image(index, &error), None);
                }
            },
        };
        let index = point.context.index;
        self.supersede_unwritten(index);
        let component = deployment.map_or(self.owner.component, |it| it.component);
        let kept = image.is_some().then(|| point.clone());
        let saved = Saved {
            point,
            state,
            component,
        };
        let input = match self.disk.seal_snapshot(self.owner.key, saved) {
            Ok(sealed) => self.write(index, sealed, image, memory),
            // The host's own section is too large, which it is on every replica alike.
            Err(error) => {
                let (group, name) = (self.owner.key.group, &self.owner.name);
                tracing::error!(group, name, index = index.0, %error, "no snapshot: the log of the group cannot be compacted");
                Input::Snapshotted {
                    index,
                    snapshot: None,
                    memory,
                }
            }
        };
        (input, kept)
    }

    fn write(
        &self,
        index: LogIndex,
        sealed: SealedSnapshot,
        image: Option<Imaging>,
        memory: Option<u64>,
    ) -> Input {
        let snapshot = convert::name(sealed.mark());
        match sealed.place() {
            Ok(_) => {
                self.keep_in_file(image, &snapshot);
                Input::Snapshotted {
                    index,
                    snapshot: Some(snapshot),
                    memory,
                }
            }
            Err(error) => {
                let (group, name) = (self.owner.key.group, &self.owner.name);
                tracing::warn!(group, name, index = index.0, %error, "a snapshot is in no file yet: the group goes on, its log grows, and the file is tried again");
                self.write_later(Unwritten {
                    index,
                    sealed,
                    image,
                    left: WRITE_AGAIN.0,
                    pause: WRITE_AGAIN.0,
                });
                Input::Unwritten {
                    index,
                    snapshot,
                    memory,
                    reason: format!("its file is not written yet: {error}"),
                }
            }
        }
    }

    /// The image of the machine is in a file, so it need not be in memory as well.
    fn keep_in_file(&self, image: Option<Imaging>, snapshot: &SnapshotName) {
        if let Some(image) = image {
            image.kept(self.image_in(snapshot));
        }
    }

    /// Reads the image in a snapshot.
    pub(super) fn image_in(&self, snapshot: &SnapshotName) -> ReadImage {
        let (disk, key, snapshot) = (Arc::clone(&self.disk), self.owner.key, snapshot.clone());
        Box::new(move || {
            let stored = disk.read_snapshot(key, &snapshot);
            Ok(stored.map_err(io::Error::other)?.guest)
        })
    }

    /// Unless a later barrier, or a restore, has taken its place meanwhile.
    fn write_later(&self, unwritten: Unwritten) {
        let mut queue = self.lock();
        if queue.newest == unwritten.index && !queue.halted {
            queue.unwritten = Some(unwritten);
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
            match placed {
                Ok(_) => {
                    let snapshot = convert::name(unwritten.sealed.mark());
                    actor.keep_in_file(unwritten.image, &snapshot);
                    tracing::info!(group = actor.owner.key.group, name = %actor.owner.name, index = index.0, "the snapshot is in a file now");
                    actor.push(Input::Written { index });
                    actor.post();
                }
                Err(error) => {
                    tracing::debug!(group = actor.owner.key.group, %error, "a snapshot is still in no file");
                    unwritten.pause = (2 * unwritten.pause).min(WRITE_AGAIN.1);
                    unwritten.left = unwritten.pause;
                    actor.write_later(unwritten);
                }
            }
            let mut queue = actor.lock();
            queue.settling -= 1;
            actor.schedule(queue);
        });
    }

    /// There is a newer snapshot, which may be a file already: nobody names one before that any more.
    pub(super) fn supersede_unwritten(&self, by: LogIndex) {
        let mut queue = self.lock();
        if queue.newest <= by {
            queue.unwritten = None;
            queue.newest = by;
        }
    }
}
