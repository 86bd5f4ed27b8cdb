//! Barriers on their way through the machine.
//!
//! At a barrier of the saved form the machine stops: it saves itself, and is rebuilt from the bytes, on every replica. Nothing
//! behind it is done before. An image changes nothing in the machine, so that entries behind it are applied while it is
//! written. Only one is, and the next barrier waits for it.
//!
//! Whether there is an image is a matter of each node. A replica that has none goes on as it is and keeps its log, and says so to
//! the others: what it did is compared all the same.

use raft::eraftpb::ConfState;

use crate::applying::{Applying, What};
use crate::attestation::{Attestation, Chain, Digest, Link};
use crate::effect::Work;
use crate::form::Form;
use crate::group::{Group, SinceBarrier};
use crate::id::{LogIndex, Term};
use crate::log_view::Snapshotted;
use crate::message::SnapshotName;
use crate::outcome::EntryContext;
use crate::pending::AskerId;
use crate::planted::{self, Defect};
use crate::state::HostState;
use crate::status::Health;

/// What became of the snapshot of a barrier.
#[derive(Debug)]
pub(crate) enum Written {
    /// There is a file.
    Durable(SnapshotName),
    /// There is none yet, for this reason.
    NotYet(SnapshotName, String),
    /// The machine failed to save itself, or to read that, on every replica alike.
    Never,
    /// This node could take no image, for this reason.
    NoImage(String),
}

impl Written {
    fn digest(&self) -> Option<Digest> {
        match self {
            Self::Durable(name) | Self::NotYet(name, _) => Some(name.digest),
            Self::Never | Self::NoImage(_) => None,
        }
    }
}

/// A barrier whose image is being written, while the machine goes on.
#[derive(Debug)]
pub(crate) struct Imaging {
    index: LogIndex,
    term: Term,
    /// The tick at which it was handed to the machine.
    since: u64,
    /// What the replica did up to there.
    chain: Option<Link>,
    pub(crate) askers: Vec<AskerId>,
    conf_state: ConfState,
}

/// What the form of the next barrier depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    /// Bytes of the last snapshot of the saved form that this replica has seen; 0 if it has seen none.
    pub(crate) saved: u64,
    /// Bytes of the memory that an image would be of, as the machine said last; none if it can have none.
    pub(crate) memory: Option<u64>,
}

impl Sizes {
    /// As a replica knows them that begins with a snapshot.
    pub(crate) fn of(snapshot: &SnapshotName, state: &HostState) -> Self {
        let saved = match state.form {
            Form::Saved => snapshot.size,
            Form::Image => state.saved_bytes,
        };
        Self {
            saved,
            memory: None,
        }
    }
}

/// A barrier that the machine has passed.
struct Passed {
    index: LogIndex,
    term: Term,
    since: u64,
    chain: Option<Link>,
    askers: Vec<AskerId>,
    conf_state: ConfState,
}

impl Group {
    /// The log has a barrier here, and everything before it is applied.
    pub(crate) fn process_barrier(
        &mut self,
        context: EntryContext,
        (form, saved_bytes): (Form, u64),
        askers: Vec<AskerId>,
        applying: &mut Applying,
    ) {
        self.since_barrier = SinceBarrier {
            began: self.ticks,
            took: self.since_barrier.took,
            ..SinceBarrier::default()
        };
        self.state.form = form;
        self.state.saved_bytes = saved_bytes;
        let conf_state = self.state.membership.conf_state();
        match form {
            Form::Saved => {
                applying.works = true;
                applying.what = What::Barrier { askers, conf_state };
            }
            Form::Image => {
                let chain = &mut self.attestations.chain;
                self.imaging = Some(Imaging {
                    index: applying.index,
                    term: applying.term,
                    since: self.ticks,
                    chain: std::mem::replace(chain, Chain::behind_unknown()).link(),
                    askers,
                    conf_state,
                });
            }
        }
        let state = self.state.encode(&context);
        let rebuilds = self.leads() && planted::has(Defect::RebuildsAtImage);
        self.out.machine(Work::Barrier {
            context,
            state,
            form: if rebuilds { Form::Saved } else { form },
        });
    }

    /// The machine has passed a barrier, and says how much memory an image of it would be of.
    pub(crate) fn machine_passed(
        &mut self,
        index: LogIndex,
        written: Written,
        memory: Option<u64>,
    ) {
        if index <= self.superseded_through || self.is_faulted() {
            return;
        }
        self.sizes.memory = memory;
        let is_it = |imaging: &mut Imaging| imaging.index == index;
        match self.imaging.take_if(is_it) {
            Some(imaging) => self.passed_as_image(imaging, written),
            None => self.passed_as_saved(index, written),
        }
    }

    fn passed_as_saved(&mut self, index: LogIndex, written: Written) {
        let is_barrier = |front: &Applying| matches!(front.what, What::Barrier { .. });
        let Some(front) = self.take_answered(("barrier", index), is_barrier) else {
            return;
        };
        let What::Barrier { askers, conf_state } = front.what else {
            return;
        };
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(front.weight);
        self.applied = index;
        if let Written::Durable(name) | Written::NotYet(name, _) = &written {
            self.sizes.saved = name.size;
        }
        let chain = self.attestations.chain.link();
        if let Some(snapshot) = written.digest() {
            self.attestations.chain = Chain::behind(snapshot);
        }
        let passed = Passed {
            index,
            term: front.term,
            since: front.since,
            chain,
            askers,
            conf_state,
        };
        self.passed(passed, written);
        self.complete_idle();
    }

    fn passed_as_image(&mut self, imaging: Imaging, written: Written) {
        if let Some(snapshot) = written.digest() {
            self.attestations.chain.begins_with(snapshot);
        }
        let passed = Passed {
            index: imaging.index,
            term: imaging.term,
            since: imaging.since,
            chain: imaging.chain,
            askers: imaging.askers,
            conf_state: imaging.conf_state,
        };
        self.passed(passed, written);
    }

    fn passed(&mut self, passed: Passed, written: Written) {
        let Passed {
            index,
            conf_state,
            chain,
            ..
        } = passed;
        self.since_barrier.took = self.ticks - passed.since;
        self.attest(Attestation {
            index,
            snapshot: written.digest(),
            chain,
            unable: chain.is_none() || matches!(written, Written::NoImage(_)),
        });
        match written {
            Written::Durable(name) => {
                self.unwritten = None;
                self.compact(Snapshotted { name, conf_state });
                if self.serves() {
                    self.health = Health::Healthy;
                }
            }
            Written::NotYet(name, reason) => {
                self.snapshot_unwritten(Snapshotted { name, conf_state }, reason);
            }
            Written::Never => {
                self.unwritten = None;
                self.degrade(index, "the machine failed in save or restore".to_owned());
                self.snapshot_came_to_nothing();
            }
            // What is in no file of a former barrier is still to be written.
            Written::NoImage(reason) => self.degrade(index, reason),
        }
        self.acknowledge(&passed.askers, index, passed.term);
    }
}
