//! Answers the queries of a machine in an instance of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use skep_core::id::LogIndex;
use skep_core::outcome::{EntryContext, Outcome};

use super::call::rejected;
use super::fork::Fork;
use super::instance::Instance;
use super::journal::Place;
use super::present::Present;
use super::rebuild::{ATTEMPTS, Likeness, again, no_attempt, replay};
use crate::state_machine::Answer;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::{LocalCode, MachineError, Reader, Running};

/// The reader of a [`WasmMachine`](crate::wasm::WasmMachine). Nothing a query does can show in the outcomes of the log.
///
/// # In a fork
///
/// A query runs in an instance that has the machine's own memory, and is the machine byte for byte when the query begins. So it is
/// answered as the machine itself would answer, whatever the guest decides by. It waits for the entry in hand. The next entry waits
/// for it, until it has used up a slice of fuel: then it gets a copy of the machine.
///
/// # In a second instance
///
/// A component without images, and a machine that holds handles of the host's which cannot be had by
/// another instance, are asked in an instance fed from the machine's journal. Each query first runs the calls that the machine has made since the last one. The instance goes on over barriers from
/// the state it has. It begins anew, from the machine's newest base, if it was left behind further than the journal keeps calls for
/// it, if a call fails or *answers differently* than it did in the machine, after a query that failed, and after
/// [`release`](Reader::release).
///
/// Queries leave their traces in its heap, and it may have another heap than the machine has had since a barrier. So a guest
/// whose commands decide by more than its state (by the order of a hash map, by how much memory is left) may decide otherwise
/// in here. Where the answer of the command shows it, the reader notices and begins anew; where it does not, a query sees what
/// the log did not do. Nothing of it ever reaches the machine.
pub struct WasmReader {
    present: Arc<Present>,
    fork: Option<Fork>,
    following: Option<Following>,
    builds: u64,
}

/// An instance and where it stands.
struct Following {
    /// The entry that it began at.
    start: LogIndex,
    instance: Instance,
    place: Place,
}

impl WasmReader {
    pub(crate) fn new(present: Arc<Present>) -> Self {
        Self {
            present,
            fork: None,
            following: None,
            builds: 0,
        }
    }

    /// Second instances built so far: how often it had to begin anew.
    pub fn builds(&self) -> u64 {
        self.builds
    }

    /// Forks made so far of the machine, by whoever has some: one does for any number of queries, unless one of them fails.
    pub fn forks(&self) -> u64 {
        self.present.guest.forks.load(Relaxed)
    }

    /// The answer, the entry whose state it is from, and the fuel used.
    async fn ask(&mut self, request: &Bytes) -> Result<(Outcome, EntryContext, u64), Failure> {
        if self.may_fork()
            && let Some((mut fork, reading)) = self.present.forked(self.fork.take()).await?
        {
            self.following = None;
            let last = self.present.journal.published().1;
            let guest = &self.present.guest;
            let (outcome, fuel) = fork.query(guest, &last, request, reading).await?;
            self.fork = Some(fork);
            return Ok((outcome, last, fuel));
        }
        if let Some(why) = self.present.guest.component.inspection().no_image {
            self.present.say_unforked(why);
        }
        let (mut following, last, fed) = match self.take_following().await {
            Some(following) => following,
            None => self.build().await?,
        };
        let (outcome, fuel) = following.instance.query(&last, request).await?;
        self.following = Some(following);
        Ok((outcome, last, fed.saturating_add(fuel)))
    }

    /// Whether the machine may be one that can be forked. One that could not be for a while can be again after a barrier.
    fn may_fork(&self) -> bool {
        let start = self.present.journal.start().index;
        self.present.guest.component.has_images()
            && (self.following.as_ref()).is_none_or(|following| following.start != start)
    }

    /// The instance there is, if it can be brought to the present.
    async fn take_following(&mut self) -> Option<(Following, EntryContext, u64)> {
        let mut following = self.following.take()?;
        let (end, last) = self.present.journal.published();
        match following.feed(end, Likeness::Answers).await {
            Ok(fuel) => Some((following, last, fuel)),
            Err(failure) => {
                tracing::debug!(
                    target: "skep::machine", group = %self.present.guest.logbook.label.group, ?failure,
                    "the reader of a machine begins anew"
                );
                None
            }
        }
    }

    /// A fresh instance has seen no query and passed no barrier, so it must do exactly what the machine did.
    async fn build(&mut self) -> Result<(Following, EntryContext, u64), Failure> {
        self.builds += 1;
        let (place, base) = Place::at_base(&self.present.journal);
        // Not earlier: the base may be newer than what was published before it was taken.
        let (end, last) = self.present.journal.published();
        let instance = self
            .present
            .guest
            .start(&base, true, Purpose::Queries)
            .await
            .map_err(again)?;
        let start = base.start().index;
        let mut following = Following {
            start,
            instance,
            place,
        };
        let fuel = following.feed(end, Likeness::Same).await?;
        Ok((following, last, fuel))
    }

    async fn answer(&mut self, request: &Bytes) -> Result<Answer, MachineError> {
        if self.present.guest.component.exports().query.is_none() {
            let outcome = rejected(
                "this machine answers no queries: it does not export skep:machine/queries",
            );
            let (_, EntryContext { index, .. }) = self.present.journal.published();
            return Ok(Answer {
                outcome,
                index,
                fuel: 0,
            });
        }
        let before = self.present.journal.published().1.index;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.ask(request).await {
                Ok((outcome, EntryContext { index, .. }, fuel)) => {
                    return Ok(Answer {
                        outcome,
                        index,
                        fuel,
                    });
                }
                Err(Failure::Guest { fault, detail }) => {
                    let logbook = &self.present.guest.logbook;
                    if logbook.admits_line() {
                        tracing::warn!(
                            target: "skep::machine", group = %logbook.label.group, machine = %logbook.label.name,
                            index = %before, %fault, "the machine failed on a query: {detail}"
                        );
                    }
                    return Ok(Answer {
                        outcome: Outcome::Fault(fault),
                        index: before,
                        fuel: self.present.guest.profile.query_fuel,
                    });
                }
                Err(local) => last = Some(local),
            }
        }
        Err(last.unwrap_or_else(no_attempt).into_error("query"))
    }
}

impl Following {
    /// Brings the instance up to record `end`; gives the fuel used.
    async fn feed(&mut self, end: u64, likeness: Likeness) -> Result<u64, Failure> {
        let mut fuel = 0u64;
        self.instance.mute(true);
        loop {
            let records = self.place.take(end).ok_or_else(|| {
                Failure::local(
                    LocalCode::Differs,
                    "the reader was left behind by the machine",
                )
            })?;
            if records.is_empty() {
                self.instance.mute(false);
                return Ok(fuel);
            }
            let replayed = replay(&mut self.instance, &records, likeness).await?;
            fuel = fuel.saturating_add(replayed);
        }
    }
}

impl Reader for WasmReader {
    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Answer> {
        Box::pin(self.answer(request))
    }

    fn release(&mut self) {
        self.following = None;
        self.fork = None;
    }
}
