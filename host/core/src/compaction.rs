//! Which form the barriers have that nobody asked for.
//!
//! A barrier of the saved form stops every replica while its machine saves itself and is rebuilt: milliseconds for each
//! MiB. An image stops nobody, but it is of all the memory that the machine has ever needed, and what its code has freed or
//! leaks stays in it. So the saved form is the *compaction*, and the rule weighs both:
//!
//! - *Saved* where nobody knows yet what an image would save: before the first snapshot of that form.
//! - *Saved* where not all can have an image: the machine has none; a member had none at the last barrier; a member is to
//!   get its state from somebody else, which may be because it cannot go on from an image. A snapshot of the saved form is one that
//!   everybody can go on from.
//! - *Saved* where the memory is more than [`LIVE_SHARE`] times the state that is alive in it, and large.
//! - Otherwise an *image*, where the pause of the saved form is long, or the image is hardly larger than the state. A small
//!   state in much memory is saved: that pauses for a moment, and its file is small.
//!
//! What a leader goes by is its own machine's memory, which is the same on every replica, and the size of the last snapshot of the saved
//! form, which is in the log and in every snapshot. A leader that knows one of them from long ago chooses a form that is no
//! longer the best; either form is right for every replica, because the entry says it.

use crate::barrier::Sizes;
use crate::config::Limits;
use crate::form::{Barriers, Form};
use crate::group::Group;

/// Of a memory that is larger than this many times the saved state, most is not alive.
const LIVE_SHARE: u64 = 4;

/// An image of not more than this many times the saved state is hardly larger.
const HARDLY_LARGER: u64 = 2;

/// What a leader knows when it proposes a barrier.
#[derive(Clone, Copy, Debug)]
struct Situation {
    sizes: Sizes,
    /// A member could take no image, or needs a state that it can go on from.
    someone_needs_saved: bool,
}

impl Situation {
    fn form(self, barriers: Barriers, limits: &Limits) -> Form {
        let memory = self.sizes.memory.filter(|_| !self.someone_needs_saved);
        let Some(memory) = memory else {
            return Form::Saved;
        };
        let is_image = match barriers {
            Barriers::Saved => false,
            Barriers::Image => true,
            Barriers::Auto => self.sizes.saved != 0 && self.prefers_image(memory, limits),
        };
        match is_image {
            true => Form::Image,
            false => Form::Saved,
        }
    }

    fn prefers_image(self, memory: u64, limits: &Limits) -> bool {
        let saved = self.sizes.saved;
        let is_mostly_dead = memory > saved.saturating_mul(LIVE_SHARE);
        if is_mostly_dead && memory > limits.barrier_compaction_bytes {
            return false;
        }
        saved >= limits.barrier_image_bytes || memory <= saved.saturating_mul(HARDLY_LARGER)
    }
}

impl Group {
    /// The form of a barrier that is proposed now, and that nobody asked for.
    pub(crate) fn form_of_next_barrier(&self) -> Form {
        let members = self.state.membership.members();
        let situation = Situation {
            sizes: self.sizes,
            someone_needs_saved: self.needs_snapshot_after().is_some()
                || self.attestations.lacks_images()
                || members.keys().any(|member| self.is_ailing(*member)),
        };
        situation.form(self.barriers(), &self.config.limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn situation(saved: u64, memory: Option<u64>) -> Situation {
        Situation {
            sizes: Sizes { saved, memory },
            someone_needs_saved: false,
        }
    }

    #[test]
    fn a_large_state_and_a_memory_that_is_hardly_larger_are_left_as_images() {
        use Form::{Image, Saved};
        for (saved, memory, expected) in [
            // Nothing is known of it yet.
            (0, Some(MIB), Saved),
            // No images.
            (100 * MIB, None, Saved),
            // A small state in a small memory, and in a larger one.
            (MIB, Some(2 * MIB), Image),
            (MIB, Some(2 * MIB + 1), Saved),
            (MIB, Some(64 * MIB), Saved),
            // A large state is left in all the memory that it has.
            (4 * MIB, Some(16 * MIB), Image),
            (4 * MIB, Some(64 * MIB), Image),
            (200 * MIB, Some(254 * MIB), Image),
            (200 * MIB, Some(800 * MIB), Image),
            // Until most of it is not alive.
            (4 * MIB, Some(64 * MIB + 1), Saved),
            (200 * MIB, Some(800 * MIB + 1), Saved),
            (u64::MAX, Some(u64::MAX), Image),
        ] {
            let form = situation(saved, memory).form(Barriers::Auto, &Limits::default());
            assert_eq!(form, expected, "{saved} in {memory:?}");
        }
    }

    #[test]
    fn a_group_may_have_images_never_or_whenever_there_can_be_one() {
        use Form::{Image, Saved};
        let limits = Limits::default();
        let form = |situation: Situation, barriers| situation.form(barriers, &limits);
        let (large, new) = (situation(MIB, Some(900 * MIB)), situation(0, Some(MIB)));
        assert_eq!(form(situation(MIB, Some(MIB)), Barriers::Saved), Saved);
        assert_eq!(
            (form(large, Barriers::Image), form(new, Barriers::Image)),
            (Image, Image)
        );
        assert_eq!(form(situation(MIB, None), Barriers::Image), Saved);
        for barriers in Barriers::ALL {
            let needed = Situation {
                someone_needs_saved: true,
                ..situation(MIB, Some(MIB))
            };
            assert_eq!(form(needed, barriers), Saved, "{barriers}");
        }
    }
}
