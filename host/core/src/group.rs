//! One replica of one group.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::StateRole;
use raft::eraftpb::{self};

use crate::activation::{Activation, Decision};
use crate::addresses::Addresses;
use crate::allowance::{Allowance, Rates};
use crate::applying::Applying;
use crate::barrier::{Imaging, Sizes, Written};
use crate::catch_up::CatchUp;
use crate::config::GroupConfig;
use crate::cures::Cures;
use crate::deployment::Quota;
use crate::divergence::Attestations;
use crate::effect::Effect;
use crate::election::{self, FirstElection};
use crate::form::Barriers;
use crate::handover::Handover;
use crate::healing::{Beginning, Restraint};
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::impasse::{Deliberation, Impasse};
use crate::input::Input;
use crate::liveness::Liveness;
use crate::log_view::Snapshotted;
use crate::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use crate::out::Out;
use crate::outcome::LeaderChanged;
use crate::pending::Pending;
use crate::proposal::ProposalError;
use crate::proposals::Proposals;
use crate::raft_node::RaftNode;
use crate::reads::Reads;
use crate::standing::Standings;
use crate::state::HostState;
use crate::status::{Health, MemberStatus, Part, Status};

/// One replica of one group, as a value.
///
/// [`handle`](Self::handle) takes in what happened, [`poll`](Self::poll) gives out what is to be done about it. The
/// two are apart so that a driver can take in everything that waits for it before the replica acts: that is what packs
/// many commands into one entry and one record.
///
/// # Order
///
/// A message speaks for a hard state; it never leaves before that is durable (`Effect::Send` follows the
/// `Input::Persisted` it waits for). The machine sees entries in log order. A proposal or query is answered exactly
/// once.
#[derive(Debug)]
pub struct Group {
    pub(crate) config: GroupConfig,
    pub(crate) replica: ReplicaId,
    /// It does not run until a joiner is contacted.
    pub(crate) raft: RaftNode,
    pub(crate) state: HostState,
    pub(crate) storage: crate::ready::Persistence,
    pub(crate) removals: crate::removal::Removals,
    pub(crate) committed: VecDeque<eraftpb::Entry>,
    pub(crate) applying: VecDeque<Applying>,
    /// Entries up to here were taken from `committed`, and their work was pushed.
    pub(crate) processed: LogIndex,
    /// Entries up to here were applied by the machine.
    pub(crate) applied: LogIndex,
    /// Answers of the machine up to here belong to a state that a snapshot has replaced.
    pub(crate) superseded_through: LogIndex,
    /// Bytes of entries that are committed and not applied.
    pub(crate) unapplied_bytes: u64,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    /// What has happened since the last barrier; decides on the next.
    pub(crate) since_barrier: SinceBarrier,
    pub(crate) attestations: Attestations,
    pub(crate) cures: Cures,
    /// A barrier whose image is being written.
    pub(crate) imaging: Option<Imaging>,
    pub(crate) sizes: Sizes,
    /// The snapshot that the machine is to begin with.
    pub(crate) beginning: Option<Beginning>,
    /// An activation that is not done; nothing behind it is processed.
    pub(crate) activation: Option<Activation>,
    /// The command at which the machine of this life stopped, if no life has ever applied it.
    pub(crate) impasse: Option<Impasse>,
    /// What was committed when it stopped.
    pub(crate) impasse_at: LogIndex,
    pub(crate) deliberation: Deliberation,
    /// What stands before may have been applied by a former life.
    pub(crate) untried_from: LogIndex,
    /// The last activation that was done in this life, and how.
    pub(crate) decided: Option<(LogIndex, Decision)>,
    /// The snapshot of the last barrier, while it is in no file.
    pub(crate) unwritten: Option<Snapshotted>,
    /// The snapshot whose file cannot be read, while this replica has no other.
    pub(crate) lost: Option<SnapshotName>,
    pub(crate) restraint: Restraint,
    /// What this leader may take of its clients.
    pub(crate) allowance: Allowance,
    /// Ticks that began with commands waiting for the quota.
    pub(crate) quota_waits: u64,
    /// Commands on which the machine has failed since the last one on which it did not, as this leader saw them.
    pub(crate) faults_in_a_row: u32,
    pub(crate) arrived: Option<ArrivedSnapshot>,
    /// Where replicas are that the membership does not know (yet, or any more).
    pub(crate) addresses: Addresses,
    pub(crate) liveness: Liveness,
    pub(crate) standings: Standings,
    pub(crate) handover: Handover,
    pub(crate) catch_up: CatchUp,
    /// The leader and term last told to watchers.
    pub(crate) seen_leader: (u64, u64),
    pub(crate) last_leader_node: NodeId,
    pub(crate) ticks: u64,
    pub(crate) now: u64,
    /// Campaigns begun since a leader was last known; keys the election timeout.
    pub(crate) attempt: u64,
    pub(crate) first_election: FirstElection,
    /// The leader whose process has ended, and its term.
    pub(crate) gone_leader: Option<(ReplicaId, Term)>,
    /// The last tick at which a leader was known.
    pub(crate) led_at: u64,
    /// Entries proposed; keys their entropy.
    pub(crate) proposed: u64,
    pub(crate) health: Health,
    /// Nothing more comes out of this replica.
    pub(crate) ended: Option<Ended>,
    pub(crate) pending: Pending,
    pub(crate) out: Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Removed,
    Halted,
}

impl Ended {
    /// For whoever asks.
    fn error(self) -> ProposalError {
        match self {
            Self::Removed => ProposalError::Stopped,
            Self::Halted => ProposalError::Faulted,
        }
    }
}

/// What has happened since the last barrier.
#[derive(Debug, Default)]
pub(crate) struct SinceBarrier {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) fuel: u64,
    /// Of the machine, on this node.
    pub(crate) rebuilds: u64,
    /// A barrier was proposed in this term and is not processed yet.
    pub(crate) proposed: bool,
    /// Somebody asked for one.
    pub(crate) wanted: bool,
    /// The tick at which it began, and the ticks that it took.
    pub(crate) began: u64,
    pub(crate) took: u64,
}

impl SinceBarrier {
    /// Counts what the machine has cost here.
    fn count(&mut self, rebuilds: u64, replay_fuel: u64) {
        self.rebuilds = self.rebuilds.saturating_add(rebuilds);
        self.fuel = self.fuel.saturating_add(replay_fuel);
    }
}

impl Group {
    /// Takes in one thing that happened.
    pub fn handle(&mut self, input: Input) {
        match self.ended {
            Some(ended) => self.refuse(input, ended),
            None => self.guarded(|group| group.take(input)),
        }
    }

    /// Pushes everything that is to be done now. Call it after a round of inputs.
    pub fn poll(&mut self, effects: &mut Vec<Effect>) {
        if self.ended.is_none() {
            self.guarded(Self::advance);
        }
        self.out.drain_into(effects);
    }

    /// This replica's raft id; 0 while it is not known.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// How its machine is.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether leadership is on its way to another replica.
    pub fn hands_over(&self) -> bool {
        self.raft.hands_over()
    }

    /// Whether somebody waits for an answer of this replica, on this node or on another.
    pub fn owes_answers(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether commands are refused until somebody resumes the group.
    pub fn is_paused(&self) -> bool {
        self.state.paused
    }

    /// The configuration.
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// What this replica knows of its group.
    pub fn status(&self) -> Status {
        let leads = self.leads();
        let members = self
            .state
            .membership
            .members()
            .iter()
            .map(|(replica, member)| {
                let progress = self.raft.progress(*replica).filter(|_| leads);
                MemberStatus {
                    node: member.node,
                    replica: *replica,
                    role: member.role,
                    matched: progress.map(|progress| LogIndex(progress.matched)),
                    active: self.activity(*replica),
                    catching_up: self.catching_up(*replica),
                }
            })
            .collect();
        Status {
            group: self.config.group,
            incarnation: self.config.incarnation,
            node: self.config.node,
            replica: self.replica,
            part: match self.raft.role() {
                _ if self.ended.is_some() => Part::Stopped,
                None => Part::Uninitialized,
                Some(StateRole::Follower) => Part::Follower,
                Some(StateRole::PreCandidate) => Part::PreCandidate,
                Some(StateRole::Candidate) => Part::Candidate,
                Some(StateRole::Leader) => Part::Leader,
            },
            term: self.term(),
            leader: self.leader_node(),
            commit: self.raft.committed(),
            applied: self.applied,
            first: match self.raft.role() {
                Some(_) => self.raft.log().first(),
                None => LogIndex(0),
            },
            last: self.raft.last(),
            snapshot: self.snapshot_name().map_or(LogIndex(0), |name| name.index),
            members,
            health: self.health.clone(),
            verified: if leads {
                self.attestations.verified
            } else {
                LogIndex(0)
            },
            paused: self.state.paused,
            deployed: self
                .state
                .deployment
                .as_ref()
                .map(|deployment| deployment.component),
            activation: self.awaited_decision(),
            sessions: self.state.sessions.len(),
            session_bytes: self.state.sessions.kept_bytes(),
            queued: self.proposals.len(),
            quota: self.quota(),
            quota_waits: self.quota_waits,
            catch_up: self.catch_up_status(),
            held_back: self.held_back(),
        }
    }

    /// Runs a step; a panic of raft-rs, which is how it reports what it cannot go on with, ends this replica alone.
    fn guarded(&mut self, step: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(self))) {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without words");
            self.halt(format!("the replica's step panicked: {text}"));
            return;
        }
        self.pin_election_timeout();
    }

    pub(crate) fn pin_election_timeout(&mut self) {
        let GroupConfig {
            seed,
            node: id,
            group,
            election_ticks,
            ..
        } = self.config;
        let candidacy = election::Candidacy {
            node: id,
            group,
            term: self.term().0,
            attempt: self.attempt,
            place: self.raft.place_among_voters(self.gone_leader()),
        };
        let ticks = election::timeout(seed, candidacy, election_ticks);
        self.raft.set_election_timeout(ticks);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Tick { now } => self.tick(now),
            Input::Message { from, message } => self.message(from, message),
            Input::SnapshotArrived { from, snapshot } => self.snapshot_arrived(from, snapshot),
            Input::SnapshotOutdated {
                from,
                message,
                name,
            } => self.snapshot_outdated(from, message, &name),
            Input::Propose { waiter, proposal } => self.propose(waiter, proposal),
            Input::Query {
                waiter,
                request,
                linearizable,
            } => self.query(waiter, request, linearizable),
            Input::Forget { waiter } => self.pending.forget(waiter),
            Input::Campaign => {
                if self.may_campaign() {
                    self.raft.campaign();
                }
            }
            Input::Transfer { to } => {
                if let Some(to) = self.state.membership.replica_on(to) {
                    self.raft.transfer_to(to);
                }
            }
            Input::HandOver => {
                if self.leads() && !self.hands_over() {
                    self.transfer_to_best_follower();
                }
            }
            Input::Persisted { number } => self.persisted(number),
            Input::LogCrowded => self.log_crowded(),
            Input::LogRead { from, read } => self.log_read(from, read),
            Input::Applied {
                index,
                outcomes,
                rebuilds,
                replay_fuel,
                deed,
                ..
            } => {
                self.since_barrier.count(rebuilds, replay_fuel);
                self.machine_applied(index, outcomes, deed);
            }
            Input::Prepared { index, readiness } => self.machine_prepared(index, readiness),
            Input::Exchanged { index } => self.machine_exchanged(index),
            Input::Snapshotted {
                index,
                snapshot,
                memory,
            } => {
                let written = snapshot.map_or(Written::Never, Written::Durable);
                self.machine_passed(index, written, memory);
            }
            Input::NoImage { index, reason } => {
                self.machine_passed(index, Written::NoImage(reason), None);
            }
            Input::Unwritten {
                index,
                snapshot,
                memory,
                reason,
            } => self.machine_passed(index, Written::NotYet(snapshot, reason), memory),
            Input::Written { index } => self.snapshot_written(index),
            Input::SnapshotUnreadable { index, reason } => self.snapshot_unreadable(index, reason),
            Input::Restored { index, memory } => self.machine_restored(index, memory),
            Input::NotResumed { index } => self.machine_not_resumed(index),
            Input::MachineFailed { reason, at } => self.machine_failed(reason, at),
            Input::Unreachable { node } => {
                if let Some(replica) = self.state.membership.replica_on(node) {
                    self.raft.report_unreachable(replica);
                }
            }
            Input::NodeGone { node } => self.node_gone(node),
            Input::SnapshotSent { node, arrived } => {
                self.cure_sent(node);
                let Some(replica) = self.state.membership.replica_on(node) else {
                    return;
                };
                if arrived {
                    self.catch_up.snapshot_arrived(replica, self.ticks);
                }
                self.raft.report_snapshot(replica, arrived);
            }
        }
    }

    fn tick(&mut self, now: u64) {
        self.ticks += 1;
        self.now = self.now.max(now);
        if self.raft.leader().is_some() {
            self.led_at = self.ticks;
        }
        if self.may_campaign() {
            if self.raft.leader().is_some() {
                self.attempt = 0;
            }
            self.attempt += u64::from(self.raft.is_about_to_campaign());
            self.raft.tick();
        }
        self.quota_waits += u64::from(self.waits_for_quota());
        // By this clock, not by the latest time that it has shown: a clock that was set back would refill nothing until it is there again.
        self.allowance.refill(self.rates(), now);
        self.expire();
        self.ask_dropped_reads();
        self.promote_who_has_caught_up();
        self.follow_members();
        self.tidy_read_back();
        self.ask_if_nobody_else_does();
        self.ask_if_due();
        self.tend_activation();
        self.tend_impasse();
        self.tick_standings();
        self.tick_first_election();
        self.give_leadership_away_if_faulted();
    }

    pub(crate) fn leads(&self) -> bool {
        self.raft.leads()
    }

    /// Whether the machine is of no use: it has failed, is known to be wrong, or has no state.
    pub(crate) fn is_faulted(&self) -> bool {
        matches!(
            self.health,
            Health::Faulted { .. } | Health::Quarantined { .. } | Health::Damaged { .. }
        )
    }

    /// What the group takes of its clients.
    pub(crate) fn quota(&self) -> Quota {
        let deployment = self.state.deployment.as_ref();
        deployment
            .map(|deployment| deployment.quota)
            .unwrap_or_default()
    }

    /// Which form its barriers have.
    pub(crate) fn barriers(&self) -> Barriers {
        let deployment = self.state.deployment.as_ref();
        deployment
            .map(|deployment| deployment.barriers)
            .unwrap_or_default()
    }

    /// What that comes to on this node.
    pub fn rates(&self) -> Rates {
        Rates::of(self.quota(), self.config.limits.long_bytes_per_second)
    }

    /// Whether commands wait here because the group has used its bytes up.
    pub fn waits_for_quota(&self) -> bool {
        self.leads() && self.proposals.len() > 0 && self.allowance.owes_bytes(self.rates())
    }

    /// Whether commands and reads are taken.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.health, Health::Healthy | Health::Degraded { .. })
    }

    pub(crate) fn leader_replica(&self) -> Option<ReplicaId> {
        self.raft.leader()
    }

    /// The node of the leader, if one is known.
    pub fn leader_node(&self) -> Option<NodeId> {
        self.leader_replica()
            .and_then(|leader| self.node_of(leader))
    }

    pub(crate) fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        let member = self
            .state
            .membership
            .member(replica)
            .map(|member| member.node);
        member.or_else(|| self.addresses.of(replica))
    }

    pub(crate) fn snapshot_name(&self) -> Option<&SnapshotName> {
        self.raft.log().snapshot().map(|snapshot| &snapshot.name)
    }

    /// What this replica says to another.
    pub(crate) fn message_to(&self, to: ReplicaId, body: Body) -> PeerMessage {
        PeerMessage {
            group: self.config.group,
            incarnation: self.config.incarnation,
            from: self.replica,
            to,
            body,
        }
    }

    /// Sends a message of the host's own, behind those that wait for a record.
    pub(crate) fn send(&mut self, replica: ReplicaId, node: NodeId, body: Body) {
        let message = self.message_to(replica, body);
        self.out.push(Effect::Send { to: node, message });
    }

    /// Tells watchers of a leader, and settles what hung on the former one.
    pub(crate) fn note_leader(&mut self) {
        let leader = self.raft.leader().map_or(0, |leader| leader.0);
        let term = self.term().0;
        if (leader, term) == self.seen_leader {
            return;
        }
        let led_before = self.seen_leader.0 == self.replica.0;
        self.seen_leader = (leader, term);
        self.leader_changed_for_forwards(ReplicaId(leader));
        if leader != 0 {
            self.gone_leader = None;
        }
        if leader == self.replica.0 && leader != 0 {
            self.proposals.elected = true;
            self.liveness.leader_since = self.ticks;
            self.since_barrier.proposed = false;
            self.faults_in_a_row = 0;
            self.forget_suspects();
            self.forget_reports();
        } else if led_before {
            self.proposals.elected = false;
        }
        self.leader_changed_for_activation();
        self.leader_changed_for_impasse();
        if let Some(node) = self.leader_node() {
            let old = std::mem::replace(&mut self.last_leader_node, node);
            self.out.push(Effect::Leader(LeaderChanged {
                old,
                new: node,
                term: Term(term),
            }));
        }
    }

    /// Whether this replica has been halted or removed.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// This replica was removed from its group.
    pub(crate) fn remove_self(&mut self) {
        self.end(Ended::Removed);
        self.out.push(Effect::Removed);
    }

    /// This replica cannot go on; its files stay.
    pub(crate) fn halt(&mut self, reason: String) {
        if self.ended.is_some() {
            return;
        }
        self.health = Health::Faulted {
            reason: reason.clone(),
        };
        self.end(Ended::Halted);
        self.out.push(Effect::Halt { reason });
    }

    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.answer_everybody(&ended.error());
        self.flush_answers();
    }

    fn refuse(&mut self, input: Input, ended: Ended) {
        let error = ended.error();
        match input {
            Input::Propose { waiter, .. } => self.out.push(Effect::Reply {
                waiter,
                result: Err(error),
            }),
            Input::Query { waiter, .. } => self.out.push(Effect::QueryFailed { waiter, error }),
            _ => {}
        }
    }
}
