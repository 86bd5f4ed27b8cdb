//! What was applied last: enough to do it again elsewhere, for a rehearsal.

use std::sync::Arc;

use skep_core::effect::Call;
use skep_core::outcome::{ConfChange, EntryContext, Outcome};
use skep_drive::CanonicalPoint;

/// Entries that are kept: a rehearsal says what another machine makes of typical commands, it proves nothing.
const ENTRIES_MAX: usize = 128;
/// Bytes of them, calls and outcomes together: what a group that is never upgraded pays for the possibility.
const BYTES_MAX: usize = 256 << 10;
/// Bytes of a base that are kept when nobody else keeps them. Who wants to try another machine on a larger state lets a snapshot be
/// taken first.
const BASE_BYTES_MAX: usize = 1 << 20;
/// What one command or outcome costs beside its bytes.
const ITEM_BYTES: usize = 64;

/// The bytes a machine was last rebuilt from, and the first entries that it applied since. Those after them are not kept: a
/// replay without what came before would say nothing.
#[derive(Default)]
pub(super) struct Recent {
    base: Option<CanonicalPoint>,
    entries: Vec<Arc<Past>>,
    bytes: usize,
    /// Entries since the base are missing.
    full: bool,
}

/// An entry, and what became of it.
pub(super) struct Past {
    pub(super) context: EntryContext,
    pub(super) calls: Vec<Call>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) fuel: u64,
}

/// Enough to do again what a machine did last.
pub struct Rehearsable {
    pub(super) base: CanonicalPoint,
    pub(super) entries: Vec<Arc<Past>>,
    pub(super) whole: bool,
}

impl Recent {
    /// The machine goes on from these bytes.
    pub(super) fn begin(&mut self, base: CanonicalPoint) {
        *self = Self {
            base: Some(base),
            ..Self::default()
        };
    }

    /// The machine goes on from what is not at hand.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The machine goes on, and is no longer built from these bytes itself.
    pub(super) fn let_go(&mut self) {
        if self
            .base
            .as_ref()
            .is_some_and(|base| base.guest.len() > BASE_BYTES_MAX)
        {
            self.forget();
        }
    }

    /// The calls of an entry that is to be kept, before it is applied.
    pub(super) fn keep(&mut self, calls: &[Call]) -> Option<Vec<Call>> {
        if self.full || self.base.is_none() {
            return None;
        }
        let bytes: usize = calls.iter().map(size).sum();
        if self.entries.len() >= ENTRIES_MAX || self.bytes + bytes > BYTES_MAX {
            self.full = true;
            return None;
        }
        Some(calls.to_vec())
    }

    /// An entry that is kept was applied.
    pub(super) fn add(
        &mut self,
        context: EntryContext,
        calls: Vec<Call>,
        outcomes: &[Outcome],
        fuel: u64,
    ) {
        if self.base.is_none() {
            return;
        }
        let calls_size: usize = calls.iter().map(size).sum();
        let outcomes_size: usize = outcomes.iter().map(outcome_size).sum();
        self.bytes += calls_size + outcomes_size;
        if self.bytes > BYTES_MAX {
            self.full = true;
            return;
        }
        self.entries.push(Arc::new(Past {
            context,
            calls,
            outcomes: outcomes.to_vec(),
            fuel,
        }));
    }

    /// All of it; none if it is not known which bytes the machine goes on from.
    pub(super) fn rehearsable(&self) -> Option<Rehearsable> {
        Some(Rehearsable {
            base: self.base.clone()?,
            entries: self.entries.clone(),
            whole: !self.full,
        })
    }
}

fn size(call: &Call) -> usize {
    ITEM_BYTES
        + match call {
            Call::Init(bytes) => bytes.len(),
            Call::Commands(commands) => commands.iter().map(|bytes| ITEM_BYTES + bytes.len()).sum(),
            Call::ConfChange(change) => conf_change_size(change),
            Call::StatusChange(_) => 0,
        }
}

fn conf_change_size(change: &ConfChange) -> usize {
    change.data.len()
}

fn outcome_size(outcome: &Outcome) -> usize {
    ITEM_BYTES + outcome.size()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use skep_core::form::Form;

    use super::*;

    fn apply(recent: &mut Recent, command: usize, reply: usize) {
        let calls = [Call::Commands(vec![vec![0; command].into()])];
        if let Some(calls) = recent.keep(&calls) {
            let outcomes = [Outcome::Reply(vec![0; reply].into())];
            recent.add(EntryContext::default(), calls, &outcomes, 1);
        }
    }

    fn begun() -> Recent {
        let mut recent = Recent::default();
        recent.begin(CanonicalPoint {
            context: EntryContext::default(),
            form: Form::Saved,
            schema: 1,
            guest: Bytes::new(),
        });
        recent
    }

    #[test]
    fn nothing_is_kept_without_the_bytes_it_follows() {
        let mut recent = Recent::default();
        apply(&mut recent, 1, 1);
        assert!(recent.rehearsable().is_none());
        let mut recent = begun();
        apply(&mut recent, 1, 1);
        assert_eq!(recent.rehearsable().unwrap().entries.len(), 1);
        recent.forget();
        assert!(recent.rehearsable().is_none());
    }

    #[test]
    fn a_large_base_is_let_go_when_only_this_keeps_it() {
        for (bytes, is_kept) in [(BASE_BYTES_MAX, true), (BASE_BYTES_MAX + 1, false)] {
            let mut recent = Recent::default();
            recent.begin(CanonicalPoint {
                context: EntryContext::default(),
                form: Form::Saved,
                schema: 1,
                guest: vec![0; bytes].into(),
            });
            recent.let_go();
            assert_eq!(recent.rehearsable().is_some(), is_kept);
        }
    }

    #[test]
    fn the_first_entries_are_kept_within_bounds_and_none_after_a_gap() {
        let mut recent = begun();
        for _ in 0..ENTRIES_MAX + 5 {
            apply(&mut recent, 1, 1);
        }
        let kept = recent.rehearsable().unwrap();
        assert_eq!((kept.entries.len(), kept.whole), (ENTRIES_MAX, false));

        for (command, reply) in [(BYTES_MAX, 0), (0, BYTES_MAX)] {
            let mut recent = begun();
            apply(&mut recent, 1, 1);
            apply(&mut recent, command, reply);
            apply(&mut recent, 1, 1);
            let kept = recent.rehearsable().unwrap();
            assert_eq!((kept.entries.len(), kept.whole), (1, false));
        }
    }
}
