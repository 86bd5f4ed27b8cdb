//! The list of calls and returns that are not placed yet.

/// A place in the list. A lower one is earlier.
pub(super) type At = u32;

/// What happens at a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// An answered operation is called.
    Call(u32),
    /// An answered operation returns.
    Return(u32),
    /// An operation of unknown outcome is called, or the list ends. Never linked, so a walk does not meet it.
    Other,
}

/// A doubly linked list over events in order of time, from which operations are taken and to which they are given back in
/// the opposite order.
pub(super) struct Events {
    events: Vec<Event>,
    next: Vec<At>,
    previous: Vec<At>,
    /// Where each answered operation is called and returns.
    ends: Vec<(At, At)>,
    left: usize,
}

impl Events {
    /// The list of answered operations with their calls and returns, and where in it the `unknown` calls belong.
    ///
    /// What happens at the same time is put in the order that lets more operations overlap: calls first.
    pub(super) fn new(answered: &[(u64, u64)], unknown: &[u64]) -> (Self, Vec<At>) {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        enum Kind {
            Unknown,
            Call,
            Return,
        }
        let mut times: Vec<(u64, Kind, u32)> = Vec::new();
        for (at, &(call, ret)) in (0..).zip(answered) {
            times.push((call, Kind::Call, at));
            times.push((ret, Kind::Return, at));
        }
        times.extend(
            (0..)
                .zip(unknown)
                .map(|(at, &call)| (call, Kind::Unknown, at)),
        );
        times.sort_unstable_by_key(|&(time, kind, at)| (time, kind == Kind::Return, kind, at));

        let last = times.len();
        let mut events = vec![Event::Other; last + 2];
        let mut next = vec![0; last + 2];
        let mut previous = vec![0; last + 2];
        let mut ends = vec![(0, 0); answered.len()];
        let mut unknowns = vec![0; unknown.len()];
        let mut linked: At = 0;
        // Place 0 is the head; the place after all is the end.
        for (at, (_, kind, operation)) in (1..).zip(times) {
            match kind {
                Kind::Unknown => {
                    unknowns[operation as usize] = at;
                    continue;
                }
                Kind::Call => {
                    events[at as usize] = Event::Call(operation);
                    ends[operation as usize].0 = at;
                }
                Kind::Return => {
                    events[at as usize] = Event::Return(operation);
                    ends[operation as usize].1 = at;
                }
            }
            next[linked as usize] = at;
            previous[at as usize] = linked;
            linked = at;
        }
        let end = last as At + 1;
        next[linked as usize] = end;
        previous[end as usize] = linked;
        let list = Self {
            events,
            next,
            previous,
            left: ends.len(),
            ends,
        };
        (list, unknowns)
    }

    /// The first place of the list.
    pub(super) fn first(&self) -> At {
        self.next[0]
    }

    /// The place after another one.
    pub(super) fn after(&self, at: At) -> At {
        self.next[at as usize]
    }

    /// What happens there.
    pub(super) fn event(&self, at: At) -> Event {
        self.events[at as usize]
    }

    /// How many answered operations are in the list.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// The operations that may be next: whose calls stand before the first return.
    pub(super) fn candidates(&self) -> impl Iterator<Item = u32> {
        let mut at = self.first();
        std::iter::from_fn(move || match self.event(at) {
            Event::Call(operation) => {
                at = self.after(at);
                Some(operation)
            }
            Event::Return(_) | Event::Other => None,
        })
    }

    /// The first return: what was called later cannot be next. The end, if there is none.
    pub(super) fn bound(&self) -> At {
        let mut at = self.first();
        while let Event::Call(_) = self.event(at) {
            at = self.after(at);
        }
        at
    }

    /// Takes an operation out.
    pub(super) fn take(&mut self, operation: u32) {
        let (call, ret) = self.ends[operation as usize];
        self.unlink(call);
        self.unlink(ret);
        self.left -= 1;
    }

    /// Gives back the operation that was taken last and not given back.
    pub(super) fn give_back(&mut self, operation: u32) {
        let (call, ret) = self.ends[operation as usize];
        self.link(ret);
        self.link(call);
        self.left += 1;
    }

    fn unlink(&mut self, at: At) {
        let (previous, next) = (self.previous[at as usize], self.next[at as usize]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
    }

    fn link(&mut self, at: At) {
        let (previous, next) = (self.previous[at as usize], self.next[at as usize]);
        self.next[previous as usize] = at;
        self.previous[next as usize] = at;
    }
}
