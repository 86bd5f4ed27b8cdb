//! What the instances of a machine are built from: a base, and the calls since.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use skep_core::attestation::Deed;
use skep_core::outcome::EntryContext;
use skep_types::shared::lock;

use super::base::Base;
use super::call::{Call, Ran};
use crate::ReadImage;

/// Records handed out at once, so that the lock is short: some 20 µs of copying for entries of many commands.
const READ_MAX: usize = 256;

/// Bytes of records from before the base that are kept for a reader that has yet to run them: as much as a replica holds
/// of entries that wait for its machine.
pub(crate) const LAG_BYTES_MAX: u64 = 64 << 20;

/// Fuel of the records from before the base that are kept for a reader: about five seconds of running. Beyond it,
/// beginning again at the base is likely to be the faster way to the present.
pub(crate) const LAG_FUEL_MAX: u64 = 4_000_000_000;

/// Bytes a record takes beside its commands.
const RECORD_BYTES: u64 = 160;

/// A moment of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    /// How many bases there were.
    bases: u64,
    /// Number of the next record.
    pub(super) next: u64,
    /// Of all records before it.
    pub(super) fuel: u64,
}

/// A call that returned.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) context: EntryContext,
    pub(crate) call: Call,
    fuel: u64,
    answers: Deed,
}

impl Record {
    pub(crate) fn new(context: &EntryContext, call: Call, ran: &Ran) -> Self {
        Self {
            context: *context,
            call,
            fuel: ran.fuel,
            answers: answers(ran),
        }
    }

    /// Whether another run of the call answered the same.
    pub(crate) fn answered(&self, ran: &Ran) -> bool {
        answers(ran) == self.answers
    }

    /// Whether another run of the call was the same in all that can be seen of it.
    pub(crate) fn is(&self, ran: &Ran) -> bool {
        self.fuel == ran.fuel && self.answered(ran)
    }

    fn weight(&self) -> Weight {
        Weight {
            bytes: RECORD_BYTES + self.call.bytes(),
            fuel: self.fuel,
        }
    }
}

/// The calls of a machine in the order of the log, and the base they start from.
///
/// One machine writes; its own rebuilds, and readers on other threads, take batches of records. Records are numbered over
/// the whole life of the journal. Those from before the base stay only while a [`Place`] stands at or before them, and
/// only within [`LAG_BYTES_MAX`] and [`LAG_FUEL_MAX`]: whoever is further behind has lost its place.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    base: Base,
    /// How many there were before it.
    bases: u64,
    /// Number of the first record after the base.
    base_at: u64,
    /// Number of the first record that is kept.
    first: u64,
    records: VecDeque<Record>,
    /// Records before this number belong to whole entries: what readers may see.
    published: u64,
    /// The entry up to which that is.
    last: EntryContext,
    before_base: Weight,
    since_base: Weight,
    /// Of all records there ever were.
    fuel: u64,
    /// Another base, from the moment on at which nobody builds an instance.
    next_base: Option<(Moment, Base)>,
    /// Number of the next record for each place.
    places: BTreeMap<u64, u64>,
    next_place: u64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Weight {
    bytes: u64,
    fuel: u64,
}

impl Journal {
    pub(crate) fn new(base: Base) -> Self {
        Self(Mutex::new(Inner {
            last: base.context,
            base,
            bases: 0,
            base_at: 0,
            first: 0,
            records: VecDeque::new(),
            published: 0,
            before_base: Weight::default(),
            since_base: Weight::default(),
            fuel: 0,
            next_base: None,
            places: BTreeMap::new(),
            next_place: 0,
        }))
    }

    /// Adds a call of the entry in hand.
    pub(crate) fn push(&self, record: Record) {
        let mut inner = self.lock();
        inner.settle();
        inner.fuel = inner.fuel.saturating_add(record.fuel);
        inner.since_base.add(record.weight());
        inner.records.push_back(record);
    }

    /// The entry is whole: readers may see it. Answers which moment it is.
    pub(crate) fn publish(&self, context: &EntryContext) -> Moment {
        let mut inner = self.lock();
        inner.published = inner.end();
        inner.last = *context;
        inner.moment()
    }

    /// How far readers may see, and the entry up to which that is.
    pub(crate) fn published(&self) -> (u64, EntryContext) {
        let inner = self.lock();
        (inner.published, inner.last)
    }

    /// The context under which the machine's instance was started.
    pub(crate) fn start(&self) -> EntryContext {
        self.lock().base.start()
    }

    /// Now, between two entries.
    pub(crate) fn moment(&self) -> Moment {
        self.lock().moment()
    }

    /// The image of this moment is kept elsewhere, unless there is another base by now.
    pub(crate) fn keep_elsewhere(&self, moment: Moment, read: ReadImage) {
        let inner = &mut *self.lock();
        match &mut inner.next_base {
            Some((at, base)) if *at == moment => base.keep_elsewhere(read),
            _ if inner.bases == moment.bases + 1 => inner.base.keep_elsewhere(read),
            _ => {}
        }
    }

    /// The image that the machine begins with is kept elsewhere.
    pub(crate) fn keep_base_elsewhere(&self, read: ReadImage) {
        self.lock().base.keep_elsewhere(read);
    }

    /// Starts from another base, which is the state of this moment, as soon as nobody builds an instance. Nothing changes if there
    /// was another base since then.
    pub(crate) fn rebase_at(&self, moment: Moment, base: Base) {
        self.lock().next_base = Some((moment, base));
    }

    /// Nobody builds an instance.
    pub(crate) fn settle(&self) {
        self.lock().settle();
    }

    /// The base, and the number of the first record after it. Whoever asks is the only one to build an instance.
    pub(crate) fn base(&self) -> (Base, u64) {
        let mut inner = self.lock();
        inner.settle();
        (inner.base.clone(), inner.base_at)
    }

    /// Starts from another base. If it `follows`, being the state that the records lead to, places keep theirs.
    pub(crate) fn rebase(&self, base: Base, follows: bool) {
        let mut inner = self.lock();
        inner.next_base = None;
        inner.last = base.context;
        inner.base = base;
        inner.bases += 1;
        inner.base_at = inner.end();
        inner.published = inner.base_at;
        let since = std::mem::take(&mut inner.since_base);
        inner.before_base.add(since);
        if !follows {
            inner.lose_places();
        }
        inner.let_go();
    }

    /// Records from `number` on, a batch at most; empty at the end. For the machine itself, after the base.
    pub(crate) fn read(&self, number: u64) -> Vec<Record> {
        let inner = self.lock();
        let end = inner.end();
        inner.copy(number, end)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

impl Inner {
    fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    fn moment(&self) -> Moment {
        Moment {
            bases: self.bases,
            next: self.end(),
            fuel: self.fuel,
        }
    }

    /// Goes over to the base that is next.
    fn settle(&mut self) {
        let Some((moment, base)) = self.next_base.take() else {
            return;
        };
        if self.bases != moment.bases {
            return;
        }
        let until = (moment.next - self.first) as usize;
        let from = (self.base_at - self.first) as usize;
        let mut passed = Weight::default();
        (self.records.range(from..until)).for_each(|record| passed.add(record.weight()));
        self.since_base.subtract(passed);
        self.before_base.add(passed);
        self.base = base;
        self.bases += 1;
        self.base_at = moment.next;
        self.let_go();
    }

    fn copy(&self, from: u64, to: u64) -> Vec<Record> {
        let from = from.saturating_sub(self.first) as usize;
        let to = (to.saturating_sub(self.first) as usize).min(self.records.len());
        let to = to.min(from.saturating_add(READ_MAX));
        if from < to {
            self.records.range(from..to).cloned().collect()
        } else {
            Vec::new()
        }
    }

    /// Drops what nobody needs since there is another base. Readers that would need too much begin anew.
    fn let_go(&mut self) {
        self.trim();
        let Weight { bytes, fuel } = self.before_base;
        if bytes > LAG_BYTES_MAX || fuel > LAG_FUEL_MAX {
            tracing::debug!(
                target: "skep::machine", bytes, fuel, places = self.places.len(),
                "readers that have not come to the barrier begin anew"
            );
            self.lose_places();
            self.trim();
        }
    }

    /// Those before the base.
    fn lose_places(&mut self) {
        let base_at = self.base_at;
        self.places.retain(|_, next| *next >= base_at);
    }

    /// Drops what is before the base and before every place.
    fn trim(&mut self) {
        let keep = self.places.values().copied().min().unwrap_or(u64::MAX);
        let keep = keep.min(self.base_at);
        while self.first < keep
            && let Some(record) = self.records.pop_front()
        {
            self.first += 1;
            self.before_base.subtract(record.weight());
        }
    }
}

/// Where a reader stands in a journal. Records from there on are kept for it, within the limits; dropping it lets them go.
#[derive(Debug)]
pub(crate) struct Place {
    journal: Arc<Journal>,
    id: u64,
}

impl Place {
    /// A place at the base, or the one that is next, with that base.
    pub(crate) fn at_base(journal: &Arc<Journal>) -> (Self, Base) {
        let mut inner = journal.lock();
        let id = inner.next_place;
        inner.next_place += 1;
        let (base_at, base) = match &inner.next_base {
            Some((moment, base)) if moment.bases == inner.bases => (moment.next, base),
            _ => (inner.base_at, &inner.base),
        };
        let base = base.clone();
        inner.places.insert(id, base_at);
        let journal = Arc::clone(journal);
        (Self { journal, id }, base)
    }

    /// The next records before number `to`, a batch at most, and empty when there are none; the place then stands behind
    /// them. `None` if the place is lost.
    pub(crate) fn take(&mut self, to: u64) -> Option<Vec<Record>> {
        let mut inner = self.journal.lock();
        let next = *inner.places.get(&self.id)?;
        let records = inner.copy(next, to);
        inner.places.insert(self.id, next + records.len() as u64);
        inner.trim();
        Some(records)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.journal.lock();
        inner.places.remove(&self.id);
        inner.trim();
    }
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.fuel = self.fuel.saturating_add(other.fuel);
    }

    fn subtract(&mut self, other: Weight) {
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.fuel = self.fuel.saturating_sub(other.fuel);
    }
}

fn answers(ran: &Ran) -> Deed {
    Deed::of(&[], &ran.outcomes, 0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skep_core::id::LogIndex;

    use super::*;
    use crate::wasm::run::base::Origin;

    fn context(index: u64) -> EntryContext {
        EntryContext {
            index: LogIndex(index),
            ..EntryContext::default()
        }
    }

    fn base(index: u64) -> Base {
        Base {
            context: context(index),
            origin: Origin::Founding,
        }
    }

    fn journal() -> Arc<Journal> {
        Arc::new(Journal::new(base(0)))
    }

    fn push(journal: &Journal, index: u64, bytes: usize, fuel: u64) {
        let ran = Ran {
            outcomes: Vec::new(),
            fuel,
        };
        let call = Call::Apply(0, Bytes::from(vec![0; bytes]));
        journal.push(Record::new(&context(index), call, &ran));
        journal.publish(&context(index));
    }

    /// Indices of the records that come; `None` if the place is lost.
    fn all(place: &mut Place, to: u64) -> Option<Vec<u64>> {
        let mut indices = Vec::new();
        loop {
            let records = place.take(to)?;
            if records.is_empty() {
                return Some(indices);
            }
            indices.extend(records.iter().map(|record| record.context.index.0));
        }
    }

    fn kept(journal: &Journal) -> (usize, u64, u64) {
        let inner = journal.lock();
        let Weight { bytes, fuel } = inner.before_base;
        (inner.records.len(), bytes, fuel)
    }

    #[test]
    fn a_place_follows_over_barriers_and_what_nobody_needs_goes() {
        let journal = journal();
        let (mut place, _) = Place::at_base(&journal);
        for index in 1..=600 {
            push(&journal, index, 10, 5);
        }
        journal.rebase(base(601), true);
        push(&journal, 602, 10, 5);
        assert_eq!(kept(&journal), (601, 600 * (10 + RECORD_BYTES), 3000));
        assert_eq!(all(&mut place, 100), Some((1..=100).collect()));
        assert_eq!(kept(&journal), (501, 500 * (10 + RECORD_BYTES), 2500));
        let (end, last) = journal.published();
        assert_eq!((end, last.index.0), (601, 602));
        let rest: Vec<_> = (101..=600).chain([602]).collect();
        assert_eq!(all(&mut place, end), Some(rest));
        assert_eq!(kept(&journal), (1, 0, 0));
        // What is after the base stays for the machine's own rebuilds.
        assert_eq!(journal.read(journal.base().1).len(), 1);
        journal.rebase(base(603), true);
        assert_eq!(kept(&journal), (0, 0, 0));
        assert_eq!(all(&mut place, journal.published().0), Some(vec![]));
    }

    #[test]
    fn without_a_place_a_barrier_forgets_all() {
        let journal = journal();
        let (place, _) = Place::at_base(&journal);
        push(&journal, 1, 10, 5);
        journal.rebase(base(2), true);
        assert_eq!(kept(&journal).0, 1);
        drop(place);
        assert_eq!(kept(&journal), (0, 0, 0));
        push(&journal, 3, 10, 5);
        journal.rebase(base(4), true);
        assert_eq!(kept(&journal), (0, 0, 0));
    }

    #[test]
    fn who_is_too_far_behind_loses_its_place() {
        for (bytes, fuel, lost) in [
            (LAG_BYTES_MAX - RECORD_BYTES, LAG_FUEL_MAX, false),
            (LAG_BYTES_MAX - RECORD_BYTES + 1, 0, true),
            (0, LAG_FUEL_MAX + 1, true),
        ] {
            let journal = journal();
            let (mut late, _) = Place::at_base(&journal);
            push(&journal, 1, bytes as usize, fuel);
            let (mut early, _) = Place::at_base(&journal);
            assert_eq!(all(&mut early, 1), Some(vec![1]));
            journal.rebase(base(2), true);
            push(&journal, 3, 0, 0);
            assert_eq!(
                all(&mut late, 2),
                (!lost).then(|| vec![1, 3]),
                "{bytes} bytes, {fuel} fuel"
            );
            assert_eq!(all(&mut early, 2), Some(vec![3]));
        }
    }

    #[test]
    fn a_base_from_elsewhere_takes_every_place() {
        let journal = journal();
        let (mut place, _) = Place::at_base(&journal);
        push(&journal, 1, 10, 5);
        journal.rebase(base(50), false);
        assert_eq!(all(&mut place, journal.published().0), None);
        let (mut anew, from) = Place::at_base(&journal);
        assert_eq!(from.context.index.0, 50);
        assert_eq!(all(&mut anew, journal.published().0), Some(vec![]));
    }

    #[test]
    fn a_base_that_is_next_is_the_base_once_nobody_builds_an_instance() {
        let journal = journal();
        (1..=3).for_each(|index| push(&journal, index, 10, 5));
        let moment = journal.moment();
        (4..=5).for_each(|index| push(&journal, index, 10, 5));
        // Somebody builds an instance from the base before.
        let (from, number) = journal.base();
        journal.rebase_at(moment, base(3));
        assert_eq!((from.context.index.0, journal.read(number).len()), (0, 5));
        // Who begins now begins at the new one.
        let (mut place, from) = Place::at_base(&journal);
        assert_eq!(from.context.index.0, 3);
        assert_eq!(all(&mut place, 5), Some(vec![4, 5]));
        let (from, number) = journal.base();
        assert_eq!((from.context.index.0, number), (3, 3));
        assert_eq!(kept(&journal), (2, 0, 0));
        // One of before a restore is none.
        let moment = journal.moment();
        journal.rebase_at(moment, base(5));
        journal.rebase(base(50), false);
        journal.rebase_at(moment, base(5));
        push(&journal, 51, 10, 5);
        assert_eq!(journal.base().0.context.index.0, 50);
    }

    // P-20
    #[test]
    fn half_an_entry_is_not_seen() {
        let journal = journal();
        push(&journal, 1, 10, 5);
        let ran = Ran {
            outcomes: Vec::new(),
            fuel: 1,
        };
        journal.push(Record::new(&context(2), Call::Apply(0, Bytes::new()), &ran));
        let (end, last) = journal.published();
        assert_eq!((end, last.index.0), (1, 1));
        // The machine's own rebuild does see it.
        assert_eq!(journal.read(0).len(), 2);
    }
}
