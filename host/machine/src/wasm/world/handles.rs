//! The handles of the host's resources that an instance has, and how another instance comes to have the same.
//!
//! Wasmtime keeps a table of them for the guest's component, which the host can neither read nor write. Which place in it a handle is
//! given, and so which number the guest knows it by, depends on all that was given and given back before. So the host keeps a table
//! that does the same ([`Table`]), knows of each handle where it stands, and can say what [`steps`](Handles::steps_to) bring one
//! table to be like another: handles given and taken back, in such an order that also the free places come one behind the other as
//! they do there.

#[cfg(test)]
mod tests;

use wasmtime::component::Resource;

use super::kept::{KeptHandle, KeptHandles};
use crate::LocalCode;
use crate::wasm::fault::Stop;

/// The import that a handle is given by, in the order of the component's. It decides which type the guest knows the handle as.
pub(crate) type Origin = u32;

/// The host's number for a handle that is lent.
const LENT: u32 = u32::MAX - 1;

/// Handles given and taken back beside a lent one, until nobody tries to find out where they stand.
const MAX_BESIDE: usize = 64;

/// The host's number for a handle that only keeps a place while others are given.
pub(crate) const KEEPS_A_PLACE: u32 = u32::MAX;

/// What the host knows of a handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Given {
    origin: Origin,
    /// What it stands for.
    thing: u32,
}

/// The handles that an instance was given and has not given back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Handles {
    /// By the host's number of each, which no other has that is alive.
    given: Vec<Option<Given>>,
    free: Vec<u32>,
    /// Those alive, in the order in which they were given.
    order: Vec<u32>,
    table: Table,
    /// They came back in another order than the last first.
    is_disordered: bool,
    /// Nobody can tell where they stand.
    is_tangled: bool,
    /// The guest was lent a handle for the call, and may give it back at any time of it.
    lent: Option<Lent>,
    /// As which of these the table is can be [found out](Self::found).
    may_be: Vec<Table>,
    /// Another instance's handles are given and taken back; this is the number of the next.
    follows: Option<u32>,
}

/// What happens to a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Given(u32),
    TakenBack(u32),
}

/// A handle that the guest is lent for the call in hand. It stands in the table as others do, and the host does not see when it goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Lent {
    /// What happens to others meanwhile.
    beside: Vec<Event>,
}

/// What is to be done to a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Give a handle, which must come to stand at this place.
    Give {
        origin: Origin,
        number: u32,
        at: u32,
    },
    /// Take back the one that stands there.
    TakeBack { origin: Origin, at: u32 },
}

impl Handles {
    /// A handle for the guest, for this thing.
    pub(crate) fn give<T: 'static>(&mut self, origin: Origin, thing: u32) -> Resource<T> {
        let number = self.free.pop().unwrap_or(self.given.len() as u32);
        let given = Some(Given { origin, thing });
        match self.given.get_mut(number as usize) {
            Some(place) => *place = given,
            None => self.given.push(given),
        }
        self.order.push(number);
        self.pass(Event::Given(number));
        Resource::new_own(number)
    }

    /// What a handle stands for.
    pub(crate) fn thing<T: 'static>(&self, handle: &Resource<T>) -> Option<u32> {
        self.known(handle.rep()).map(|given| given.thing)
    }

    /// The guest has given a handle back; what it stood for, if anything.
    pub(crate) fn take_back(&mut self, number: u32) -> Option<u32> {
        if self.follows.is_some() {
            return None;
        }
        let given = self.given.get_mut(number as usize)?.take()?;
        self.free.push(number);
        self.is_disordered |= self.order.last() != Some(&number);
        self.order.retain(|other| *other != number);
        self.pass(Event::TakenBack(number));
        Some(given.thing)
    }

    /// The guest has given back what the host has not looked at.
    pub(crate) fn lose(&mut self) {
        self.is_tangled = true;
    }

    fn pass(&mut self, event: Event) {
        match &mut self.lent {
            None => self.table.pass(event),
            // Of more than can be found out it is enough to know that there were too many.
            Some(lent) if lent.beside.len() > MAX_BESIDE => {}
            Some(lent) => lent.beside.push(event),
        }
    }

    /// Begins a call that a handle is lent for.
    pub(crate) fn lend(&mut self) {
        self.lent = Some(Lent::default());
    }

    /// Ends a call, and with it what was lent for it.
    pub(crate) fn end_call(&mut self) {
        let Some(Lent { beside }) = self.lent.take() else {
            return;
        };
        if beside.is_empty() {
            // It came and went.
            return;
        }
        self.is_disordered = true;
        match beside.len() <= MAX_BESIDE {
            true => self.may_be = self.table.beside_lent(&beside),
            false => self.lose(),
        }
        self.settle();
    }

    /// How many handles must be given for it to be known where the others stand; none if it is known.
    pub(crate) fn unsettled(&self) -> Option<usize> {
        self.may_be.iter().map(|table| table.free.len()).max()
    }

    /// Those handles came to stand at these places, and were taken back, the last first.
    pub(crate) fn found(&mut self, places: &[u32]) {
        self.follows = None;
        (self.may_be).retain(|table| table.free.iter().rev().eq(places));
        if self.may_be.is_empty() {
            self.lose();
        }
        self.settle();
    }

    fn settle(&mut self) {
        if let [table] = &mut self.may_be[..] {
            self.table = std::mem::take(table);
            self.may_be.clear();
        }
    }

    /// Whether the guest's table is as if it had never been given any.
    pub(crate) fn are_none(&self) -> bool {
        self.order.is_empty() && !self.is_disordered && self.are_known()
    }

    fn are_known(&self) -> bool {
        !self.is_tangled && self.may_be.is_empty()
    }

    /// Whether another instance can be made to have the same. `gives` says whether handles of an import can be given at will.
    pub(crate) fn can_be_had(&self, gives: impl Fn(Origin) -> bool) -> bool {
        let is_given = |number: &u32| self.known(*number).is_some_and(|given| gives(given.origin));
        self.are_known() && self.order.iter().all(is_given)
    }

    /// What brings the guest's table to be as it is in another instance. A place is kept by a handle of `keeper` while it must not be
    /// given.
    pub(crate) fn steps_to(&self, to: &Self, keeper: Origin) -> Vec<Step> {
        let len = self.table.places.len().max(to.table.places.len());
        let [mut free, goal] = [self, to].map(|handles| handles.table.free_of(len));
        let mut steps = Vec::new();
        // Those that go for good go in the order in which their places are free there.
        let others = (0..len as u32).filter(|at| to.at(*at).is_some());
        for at in goal.iter().copied().chain(others) {
            if let Some((_, origin)) = self.at(at)
                && self.at(at) != to.at(at)
            {
                steps.push(Step::TakeBack { origin, at });
                free.push(at);
            }
        }
        let alike = free
            .iter()
            .zip(&goal)
            .take_while(|(one, other)| one == other);
        let alike = alike.count();
        for at in free.drain(alike..).rev() {
            let (number, origin) = to.at(at).unwrap_or((KEEPS_A_PLACE, keeper));
            steps.push(Step::Give { origin, number, at });
        }
        for at in &goal[alike..] {
            let (origin, at) = (keeper, *at);
            steps.push(Step::TakeBack { origin, at });
        }
        steps
    }

    /// The next handle that the guest is given has this number. Nothing is noted of what is given and taken back until these handles
    /// are those of another instance, or [found](Self::found) as they were.
    pub(crate) fn follow(&mut self, number: u32) {
        self.follows = Some(number);
    }

    /// The handle that a step gives.
    pub(crate) fn followed<T: 'static>(&self) -> Result<Resource<T>, Stop> {
        match self.follows {
            Some(number) => Ok(Resource::new_own(number)),
            None => Err(Stop::Local {
                code: LocalCode::UnexpectedError,
                reason: "a handle was asked for that nobody has".into(),
            }),
        }
    }

    /// All of it, written down. Nothing is tangled.
    pub(super) fn keep(&self) -> KeptHandles {
        let kept = |(place, number): (usize, &Option<u32>)| {
            let number = (*number)?;
            let Given { origin, thing } = self.known(number)?;
            Some(KeptHandle {
                number,
                origin,
                thing,
                place: place as u32,
            })
        };
        let given = self.table.places.iter().enumerate().filter_map(kept);
        let mut given = given.collect::<Vec<_>>();
        given.sort_by_key(|handle| self.order.iter().position(|one| *one == handle.number));
        KeptHandles {
            given,
            free: self.free.clone(),
            free_places: self.table.free.clone(),
            is_disordered: self.is_disordered,
        }
    }

    /// As others were that were kept.
    pub(super) fn resumed(kept: &KeptHandles) -> Self {
        let mut given = vec![None; kept.given.len() + kept.free.len()];
        let mut places = vec![None; kept.given.len() + kept.free_places.len()];
        for handle in &kept.given {
            let KeptHandle { origin, thing, .. } = *handle;
            given[handle.number as usize] = Some(Given { origin, thing });
            places[handle.place as usize] = Some(handle.number);
        }
        Self {
            given,
            free: kept.free.clone(),
            order: kept.given.iter().map(|handle| handle.number).collect(),
            table: Table {
                places,
                free: kept.free_places.clone(),
            },
            is_disordered: kept.is_disordered,
            ..Self::default()
        }
    }

    /// The handle that stands at a place: its number, and the import that it is from.
    fn at(&self, place: u32) -> Option<(u32, Origin)> {
        let number = self.table.places.get(place as usize).copied().flatten()?;
        Some((number, self.known(number)?.origin))
    }

    fn known(&self, number: u32) -> Option<Given> {
        self.given.get(number as usize).copied().flatten()
    }
}

/// A guest's table of handles, in step with wasmtime's: the place that was given back last is given next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Table {
    /// The host's number of the handle at each place.
    places: Vec<Option<u32>>,
    /// Free places, the next one last. Behind them come those that never were given, one after the other.
    free: Vec<u32>,
}

impl Table {
    fn give(&mut self, number: u32) {
        match self.free.pop() {
            Some(at) => self.places[at as usize] = Some(number),
            None => self.places.push(Some(number)),
        }
    }

    fn take_back(&mut self, number: u32) {
        let at = self.places.iter().position(|other| *other == Some(number));
        if let Some(at) = at {
            self.places[at] = None;
            self.free.push(at as u32);
        }
    }

    fn pass(&mut self, event: Event) {
        match event {
            Event::Given(number) => self.give(number),
            Event::TakenBack(number) => self.take_back(number),
        }
    }

    /// What it may be after these, if a handle was lent before them, and was given back at some time. All are written down to the
    /// same length.
    fn beside_lent(&self, events: &[Event]) -> Vec<Self> {
        let gone_after = |count| {
            let (before, after) = events.split_at(count);
            let mut table = self.clone();
            table.give(LENT);
            before.iter().for_each(|event| table.pass(*event));
            table.take_back(LENT);
            after.iter().for_each(|event| table.pass(*event));
            table
        };
        let tables = (0..=events.len()).map(gone_after).collect::<Vec<_>>();
        let len = tables.iter().map(|table| table.places.len()).max();
        let len = len.unwrap_or_default();
        let mut different = Vec::new();
        for mut table in tables {
            table.free = table.free_of(len);
            table.places.resize(len, None);
            if !different.contains(&table) {
                different.push(table);
            }
        }
        different
    }

    /// The free ones of the first `len` places, the next one last.
    fn free_of(&self, len: usize) -> Vec<u32> {
        let never_given = (self.places.len()..len).rev().map(|at| at as u32);
        never_given.chain(self.free.iter().copied()).collect()
    }
}
