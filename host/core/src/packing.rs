//! From the queue into the log: many commands in one entry, and what a leader proposes by itself.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::deployment::DeploymentRecord;
use crate::form::Form;
use crate::group::Group;
use crate::payload::{Barrier, Commands, Elected, Item, Kind, Pause, Payload};
use crate::pending::AskerId;
use crate::proposal::{Proposal, ProposalError};
use crate::proposals::Queued;
use crate::raft_node::NotProposed;
use crate::spacing::Spacing;

/// Records on their way above which a leader packs no further entry. One is being synced while the next is filled;
/// more would make entries smaller, not sooner durable.
const RECORDS_ON_THE_WAY: usize = 2;

impl Group {
    /// Moves the queue into the log, or to the leader.
    pub(crate) fn pack(&mut self) {
        self.drop_forgotten();
        if self.leads() {
            self.pack_entries();
        } else {
            self.forget_suspects();
            self.forward_queue();
        }
    }

    fn pack_entries(&mut self) {
        if !self.can_propose() {
            return;
        }
        if self.proposals.elected {
            let init = if self.state.initialized {
                Bytes::new()
            } else {
                self.config.init.clone()
            };
            let kind = Kind::Elected(Elected {
                node: self.config.node.0,
                init,
            });
            if self.propose_entry(kind, &[]).is_err() {
                return;
            }
            self.proposals.elected = false;
        }
        if self.has_room_for_commands() && !self.pack_suspects() {
            return;
        }
        while let Some(front) = self.proposals.queue.front() {
            let has_room = match front.proposal {
                Proposal::Command(_) | Proposal::OpenSession => self.has_room_for_commands(),
                Proposal::AbortActivation => self.has_room_for_entry(),
                _ => !self.awaits_decision() && self.has_room_for_entry(),
            };
            if !has_room || !self.pack_one() {
                break;
            }
        }
    }

    /// Nothing behind an activation is applied before it is decided. What waits in the queue meanwhile can be refused for
    /// certain when it is late; what is in the log cannot.
    fn has_room_for_commands(&self) -> bool {
        !self.awaits_decision()
            && !self.allowance.owes_bytes(self.rates())
            && !self.catch_up.throttle.holds_back()
            && self.has_room_for_entry()
    }

    fn has_room_for_entry(&self) -> bool {
        self.storage.on_the_way() < RECORDS_ON_THE_WAY
            && self.unapplied_bytes < self.config.limits.unapplied_bytes
            && self.can_propose()
    }

    /// Packs one entry, or takes one proposal that is no command. `false` if Raft takes none now.
    fn pack_one(&mut self) -> bool {
        let limits = self.config.limits;
        let mut items = Vec::new();
        let mut askers = Vec::new();
        let mut bytes = 0;
        while let Some(front) = self.proposals.queue.front() {
            let size = front.proposal.size() as u64;
            let fits = items.is_empty()
                || (bytes + size <= limits.entry_bytes && items.len() < limits.entry_commands);
            if !fits || !matches!(front.proposal, Proposal::Command(_) | Proposal::OpenSession) {
                break;
            }
            bytes += size;
            let Some(Queued { asker, proposal }) = self.dequeue() else {
                break;
            };
            items.push(match proposal {
                Proposal::Command(command) => Item::from(command),
                _ => Item {
                    open: true,
                    ..Item::default()
                },
            });
            askers.push(asker);
        }
        if !items.is_empty() {
            return self.propose_commands(items, &askers);
        }
        let Some(Queued { asker, proposal }) = self.dequeue() else {
            return false;
        };
        match proposal {
            Proposal::Change(change) => self.propose_change(asker, change),
            Proposal::Activate(deployment) => {
                let kind = Kind::Activate(DeploymentRecord::from(&deployment));
                self.propose_order(kind, asker);
            }
            Proposal::AbortActivation => self.propose_abort(asker),
            Proposal::Resume => self.propose_order(Kind::Pause(Pause { on: false }), asker),
            Proposal::Trust { node } => self.propose_trust(asker, node),
            _ => self.propose_barrier(Form::Saved, Some(asker)),
        }
        true
    }

    /// Packs an entry of suspects, if it is their turn. `false` if Raft takes none now.
    fn pack_suspects(&mut self) -> bool {
        let (suspects, limits) = (&mut self.proposals.suspects, &self.config.limits);
        let (items, askers) = suspects.next_entry(self.applied, self.ticks, limits);
        if items.is_empty() {
            return true;
        }
        let is_taken = self.propose_commands(items, &askers);
        if is_taken {
            self.proposals.suspects.note_entry(self.raft.last());
        }
        is_taken
    }

    /// `false` if Raft holds as much uncommitted as it may: then nothing was proposed.
    fn propose_commands(&mut self, items: Vec<Item>, askers: &[AskerId]) -> bool {
        let proposed = self.propose_entry(Kind::Commands(Commands { items }), askers);
        if proposed.is_err() {
            self.refuse_all(askers, &ProposalError::Busy);
        }
        proposed.is_ok()
    }

    pub(crate) fn propose_entry(
        &mut self,
        kind: Kind,
        askers: &[AskerId],
    ) -> Result<(), NotProposed> {
        let payload = Payload {
            now: self.now,
            entropy: self.entropy(),
            kind: Some(kind),
        };
        let data = payload.encode_to_vec();
        self.raft.propose(data)?;
        if let Some(Kind::Commands(Commands { items })) = &payload.kind {
            let rates = self.rates();
            for item in items {
                self.allowance.take_bytes(rates, item.data.len());
                self.catch_up.throttle.take(item.data.len() as u64);
            }
        }
        self.note_proposed(askers);
        Ok(())
    }

    /// 16 bytes that nobody can know before the entry is in the log.
    pub(crate) fn entropy(&mut self) -> Bytes {
        self.proposed += 1;
        let mut hash = Sha256::new();
        for word in [
            self.config.seed,
            self.config.group.0,
            self.replica.0,
            self.term().0,
            self.proposed,
            self.now,
        ] {
            hash.update(word.to_le_bytes());
        }
        Bytes::copy_from_slice(&hash.finalize()[..16])
    }

    fn propose_order(&mut self, kind: Kind, asker: AskerId) {
        if self.propose_entry(kind, &[asker]).is_err() {
            self.reply(asker, Err(ProposalError::Busy));
        }
    }

    /// A group whose machine fails on every command costs a rebuild for each: its leader stops it.
    pub(crate) fn propose_pause_if_due(&mut self) -> bool {
        let limit = self.config.limits.pause_faults;
        if limit == 0
            || self.faults_in_a_row < limit
            || self.state.paused
            || self.awaits_decision()
            || !self.may_propose()
        {
            return false;
        }
        self.faults_in_a_row = 0;
        self.propose_entry(Kind::Pause(Pause { on: true }), &[])
            .is_ok()
    }

    /// Who asks for a snapshot may want to have it elsewhere, or everything gone that was deleted: a form that anybody can go on
    /// from, and that holds nothing but what the machine keeps.
    pub(crate) fn propose_barrier(&mut self, form: Form, asker: Option<AskerId>) {
        let barrier = Barrier {
            form: form.code(),
            saved_bytes: self.sizes.saved,
        };
        match self.propose_entry(Kind::Barrier(barrier), asker.as_slice()) {
            Ok(()) => {
                self.since_barrier.proposed = true;
                self.since_barrier.wanted = false;
            }
            Err(NotProposed) => self.refuse_all(asker.as_slice(), &ProposalError::Busy),
        }
    }

    /// `true` if there was something to propose: its entry is in the next `Ready`.
    pub(crate) fn propose_barrier_if_due(&mut self) -> bool {
        let wanted = self.raft.log().take_wanted();
        self.since_barrier.wanted |= wanted;
        if self.since_barrier.proposed
            || self.imaging.is_some()
            || self.awaits_decision()
            || !self.serves()
            || !self.may_propose()
        {
            return false;
        }
        let limits = &self.config.limits;
        let since = &self.since_barrier;
        let due = (since.wanted && self.may_take_another_snapshot())
            || self.log_is_long()
            || since.fuel >= limits.barrier_fuel
            || since.rebuilds >= limits.barrier_rebuilds;
        if due {
            self.propose_barrier(self.form_of_next_barrier(), None);
        }
        due && self.since_barrier.proposed
    }

    /// Whether so much was logged since the last barrier that another one is worth what it costs.
    fn log_is_long(&self) -> bool {
        let size = self.snapshot_name().map_or(0, |name| name.size);
        let spacing = Spacing::of(&self.config.limits, self.config.snapshot_entries, size);
        spacing.is_reached(&self.since_barrier, self.ticks)
    }
}
