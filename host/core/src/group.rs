//! One replica of one group.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::eraftpb::{self, ConfChange as RaftChange, ConfChangeType, EntryType, HardState};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use crate::activation::{Activation, Decision};
use crate::addresses::Addresses;
use crate::allowance::{Allowance, Rates};
use crate::catch_up::CatchUp;
use crate::committed::{Applying, Saved};
use crate::config::{ConfigError, GroupConfig};
use crate::deployment::Quota;
use crate::divergence::Attestations;
use crate::effect::{Effect, Persist, Work};
use crate::election;
use crate::handover::Handover;
use crate::healing::Restraint;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::impasse::{Deliberation, Impasse};
use crate::input::Input;
use crate::liveness::Liveness;
use crate::log_view::{LogView, Snapshotted};
use crate::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use crate::outcome::{ChangeKind, LeaderChanged};
use crate::payload::ChangeRecord;
use crate::planted::{self, Defect};
use crate::proposal::ProposalError;
use crate::proposals::Proposals;
use crate::reads::Reads;
use crate::standing::Standings;
use crate::state::HostState;
use crate::status::{Health, MemberStatus, Part, Status};

/// What a node found on its disk for a replica.
#[derive(Debug)]
pub struct Recovered {
    /// Its raft id; 0 if it was created and never contacted.
    pub replica: ReplicaId,
    /// Its hard state.
    pub hard_state: HardState,
    /// Its log, contiguous, from the entry after `truncated`.
    pub entries: Vec<eraftpb::Entry>,
    /// What stands before the log.
    pub truncated: (LogIndex, Term),
    /// Its newest snapshot, and the host's section of that file.
    pub snapshot: Option<(SnapshotName, bytes::Bytes)>,
}

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
    /// `None` until a joiner is contacted.
    pub(crate) raft: Option<Raft>,
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
    quota_waits: u64,
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
    attempt: u64,
    /// Entries proposed; keys their entropy.
    pub(crate) proposed: u64,
    pub(crate) health: Health,
    /// Nothing more comes out of this replica.
    ended: Option<Ended>,
    pub(crate) effects: Vec<Effect>,
}

/// Raft over the log in memory. Its own `Debug` would print the whole log.
pub(crate) struct Raft(pub(crate) RawNode<LogView>);

impl std::fmt::Debug for Raft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raft({:?})", self.0.raft.soft_state())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Removed,
    Halted,
}

/// What has happened since the last barrier.
#[derive(Debug, Default)]
pub(crate) struct SinceBarrier {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) fuel: u64,
    pub(crate) faults: u32,
    /// A barrier was proposed in this term and is not processed yet.
    pub(crate) proposed: bool,
    /// Somebody asked for one.
    pub(crate) wanted: bool,
    /// The tick at which it began, and the ticks that it took.
    pub(crate) began: u64,
    pub(crate) took: u64,
}

impl Group {
    /// A replica that has never run. With members it starts the group; without, it waits to be contacted.
    pub fn create(config: GroupConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut group = Self::empty(config);
        if group.config.members.is_empty() {
            return Ok(group);
        }
        // Every initial member writes the same committed entries, so the log explains its members by itself, to the
        // machine as well as to a replica that joins later.
        let mut members = group.config.members.clone();
        members.sort_by_key(|member| member.node);
        let entries: Vec<_> = (1..)
            .zip(&members)
            .map(|(index, member)| bootstrap_entry(index, member))
            .collect();
        let place = members
            .iter()
            .position(|member| member.node == group.config.node)
            .unwrap_or_default();
        group.replica = ReplicaId(place as u64 + 1);
        let hard_state = HardState {
            term: 1,
            vote: 0,
            commit: entries.len() as u64,
            ..HardState::default()
        };
        let view = LogView::new(
            hard_state.clone(),
            entries.clone(),
            (LogIndex(0), Term(0)),
            None,
        );
        group.start_raft(view, LogIndex(0))?;
        group.storage.hard_state = hard_state;
        group.persist_urgently(Persist {
            entries,
            ..Persist::default()
        });
        Ok(group)
    }

    /// A replica as its node's disk has it.
    pub fn recover(config: GroupConfig, recovered: Recovered) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut group = Self::empty(config);
        if recovered.replica.0 == 0 {
            return Ok(group);
        }
        group.replica = recovered.replica;
        let mut snapshot = None;
        if let Some((name, bytes)) = recovered.snapshot.clone() {
            let (state, context) =
                HostState::decode(bytes).map_err(|error| group.wrong("snapshot", error))?;
            if context.index != name.index || context.term != name.term {
                return Err(group.wrong("snapshot", "the file is not the one that the log names"));
            }
            let conf_state = state.membership.conf_state();
            group.state = state;
            group.processed = name.index;
            group.attest_restored(name.index, name.digest);
            if planted::has(Defect::DoubleApplyAfterRestart) {
                let before = LogIndex(name.index.0.saturating_sub(3));
                group.processed = before.max(recovered.truncated.0);
            }
            group.effects.push(Effect::Machine(Work::Restore {
                context,
                snapshot: name.clone(),
                deployment: group.state.deployment.clone(),
            }));
            group.applying.push_back(Applying::restore(context));
            group.storage.marked = Some(name.clone());
            snapshot = Some(Snapshotted { name, conf_state });
        }
        group.begin(recovered, snapshot)
    }

    /// Begins behind what is processed, with the log that was recovered.
    pub(crate) fn begin(
        mut self,
        recovered: Recovered,
        snapshot: Option<Snapshotted>,
    ) -> Result<Self, ConfigError> {
        let mut hard_state = recovered.hard_state;
        let last = recovered.truncated.0.0 + recovered.entries.len() as u64;
        let start = self.processed.0;
        // raft-rs panics unless first - 1 <= applied <= commit <= last.
        hard_state.commit = hard_state.commit.max(start);
        if recovered.truncated.0.0 > start || hard_state.commit > last {
            let reason = format!(
                "the log covers {}..={last}, the snapshot is at {start}, the commit index is {}",
                recovered.truncated.0.0 + 1,
                hard_state.commit
            );
            return Err(self.wrong("log", reason));
        }
        let view = LogView::new(
            hard_state.clone(),
            recovered.entries,
            recovered.truncated,
            snapshot,
        );
        self.storage.hard_state = hard_state;
        self.untried_from = LogIndex(last + 1);
        self.start_raft(view, LogIndex(start))?;
        Ok(self)
    }

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
        effects.append(&mut self.effects);
    }

    /// This replica's raft id; 0 while it is not known.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// How its machine is.
    pub fn health(&self) -> &Health {
        &self.health
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
        let raft = self.raft.as_ref().map(|raft| &raft.0.raft);
        let leads = self.leads();
        let members = self
            .state
            .membership
            .members()
            .iter()
            .map(|(replica, member)| {
                let progress = raft
                    .filter(|_| leads)
                    .and_then(|raft| raft.prs().get(replica.0));
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
            part: match raft.map(|raft| raft.state) {
                _ if self.ended.is_some() => Part::Stopped,
                None => Part::Uninitialized,
                Some(StateRole::Follower) => Part::Follower,
                Some(StateRole::PreCandidate) => Part::PreCandidate,
                Some(StateRole::Candidate) => Part::Candidate,
                Some(StateRole::Leader) => Part::Leader,
            },
            term: Term(raft.map_or(0, |raft| raft.term)),
            leader: self.leader_node(),
            commit: LogIndex(raft.map_or(0, |raft| raft.raft_log.committed)),
            applied: self.applied,
            first: self
                .raft
                .as_ref()
                .map_or(LogIndex(0), |raft| raft.0.store().first()),
            last: LogIndex(raft.map_or(0, |raft| raft.raft_log.last_index())),
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

    pub(crate) fn empty(config: GroupConfig) -> Self {
        let state = HostState {
            deployment: config.deployment.clone(),
            ..HostState::default()
        };
        Self {
            config,
            replica: ReplicaId(0),
            raft: None,
            state,
            storage: crate::ready::Persistence::default(),
            removals: crate::removal::Removals::default(),
            committed: VecDeque::new(),
            applying: VecDeque::new(),
            processed: LogIndex(0),
            applied: LogIndex(0),
            superseded_through: LogIndex(0),
            unapplied_bytes: 0,
            proposals: Proposals::default(),
            reads: Reads::default(),
            since_barrier: SinceBarrier::default(),
            attestations: Attestations::default(),
            activation: None,
            impasse: None,
            impasse_at: LogIndex(0),
            deliberation: Deliberation::default(),
            untried_from: LogIndex(0),
            decided: None,
            unwritten: None,
            lost: None,
            restraint: Restraint::default(),
            allowance: Allowance::default(),
            quota_waits: 0,
            faults_in_a_row: 0,
            arrived: None,
            addresses: Addresses::default(),
            liveness: Liveness::default(),
            standings: Standings::default(),
            handover: Handover::default(),
            catch_up: CatchUp::default(),
            seen_leader: (0, 0),
            last_leader_node: NodeId(0),
            ticks: 0,
            now: 0,
            attempt: 0,
            proposed: 0,
            health: Health::Healthy,
            ended: None,
            effects: Vec::new(),
        }
    }

    pub(crate) fn start_raft(
        &mut self,
        view: LogView,
        applied: LogIndex,
    ) -> Result<(), ConfigError> {
        let ticks = self.config.election_ticks as usize;
        let config = raft::Config {
            id: self.replica.0,
            election_tick: ticks,
            heartbeat_tick: self.config.heartbeat_ticks as usize,
            applied: applied.0,
            max_size_per_msg: self.config.max_message_bytes,
            max_inflight_msgs: self.config.max_in_flight,
            check_quorum: true,
            pre_vote: true,
            // `LeaseBased` checks no lease.
            read_only_option: match planted::has(Defect::ReadWithoutQuorum) {
                true => ReadOnlyOption::LeaseBased,
                false => ReadOnlyOption::Safe,
            },
            max_uncommitted_size: self.config.limits.uncommitted_bytes,
            max_committed_size_per_ready: 4 << 20,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut node =
            RawNode::new(&config, view, &logger).map_err(|error| self.wrong("raft", error))?;
        // Everything below the log's start is processed; so that the first Ready begins behind it.
        node.raft.set_randomized_election_timeout(ticks);
        self.raft = Some(Raft(node));
        self.pin_election_timeout();
        Ok(())
    }

    fn wrong(&self, field: &'static str, reason: impl ToString) -> ConfigError {
        ConfigError {
            group: self.config.group,
            field,
            reason: reason.to_string(),
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

    fn pin_election_timeout(&mut self) {
        let Some(Raft(node)) = &mut self.raft else {
            return;
        };
        let GroupConfig {
            seed,
            node: id,
            group,
            election_ticks,
            ..
        } = self.config;
        let raft = &node.raft;
        let voters = raft.prs().conf().voters();
        let place = voters.contains(raft.id).then(|| {
            let ids = voters.ids();
            let before = ids.iter().filter(|voter| *voter < raft.id).count();
            (before as u64, ids.iter().count() as u64)
        });
        let candidacy = election::Candidacy {
            node: id,
            group,
            term: raft.term,
            attempt: self.attempt,
            place,
        };
        let ticks = election::timeout(seed, candidacy, election_ticks);
        node.raft.set_randomized_election_timeout(ticks);
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
            Input::Forget { waiter } => self.proposals.forget(waiter),
            Input::Campaign => {
                // Without a configuration raft-rs wins at once, with the votes of nobody, and then panics.
                if self.may_campaign()
                    && let Some(Raft(node)) = &mut self.raft
                    && node.raft.promotable()
                {
                    // Refused while a configuration change is not applied; the caller sees it in the status.
                    let _refused = node.campaign();
                }
            }
            Input::Transfer { to } => {
                if let Some(to) = self.state.membership.replica_on(to)
                    && let Some(Raft(node)) = &mut self.raft
                {
                    node.transfer_leader(to.0);
                }
            }
            Input::HandOver => {
                if self.leads() {
                    self.transfer_to_best_follower();
                }
            }
            Input::Persisted { number } => self.persisted(number),
            Input::LogCrowded => self.release_all_log(),
            Input::LogRead { from, read } => self.log_read(from, read),
            Input::Applied {
                index,
                outcomes,
                fuel,
                deed,
            } => self.machine_applied(index, outcomes, fuel, deed),
            Input::Prepared { index, readiness } => self.machine_prepared(index, readiness),
            Input::Exchanged { index } => self.machine_exchanged(index),
            Input::Snapshotted { index, snapshot } => {
                let saved = snapshot.map_or(Saved::Not, Saved::Durable);
                self.machine_passed(index, saved);
            }
            Input::Unwritten {
                index,
                snapshot,
                reason,
            } => self.machine_passed(index, Saved::Unwritten(snapshot, reason)),
            Input::Written { index } => self.snapshot_written(index),
            Input::SnapshotUnreadable { index, reason } => self.snapshot_unreadable(index, reason),
            Input::Restored { index } => self.machine_restored(index),
            Input::MachineFailed { reason, at } => self.machine_failed(reason, at),
            Input::Unreachable { node } => {
                if let Some(replica) = self.state.membership.replica_on(node)
                    && let Some(Raft(raft)) = &mut self.raft
                {
                    raft.report_unreachable(replica.0);
                }
            }
            Input::SnapshotSent { node, arrived } => {
                self.cure_sent(node);
                let status = if arrived {
                    SnapshotStatus::Finish
                } else {
                    SnapshotStatus::Failure
                };
                let Some(replica) = self.state.membership.replica_on(node) else {
                    return;
                };
                if arrived {
                    self.catch_up.snapshot_arrived(replica, self.ticks);
                }
                if let Some(Raft(raft)) = &mut self.raft {
                    raft.report_snapshot(replica.0, status);
                }
            }
        }
    }

    fn tick(&mut self, now: u64) {
        self.ticks += 1;
        self.now = self.now.max(now);
        if self.may_campaign()
            && let Some(Raft(node)) = &mut self.raft
        {
            let raft = &mut node.raft;
            if raft.leader_id != 0 {
                self.attempt = 0;
            }
            if raft.state != StateRole::Leader
                && raft.election_elapsed + 1 >= raft.randomized_election_timeout()
            {
                self.attempt += 1;
            }
            node.tick();
        }
        self.quota_waits += u64::from(self.waits_for_quota());
        // By this clock, not by the latest time that it has shown: a clock that was set back would refill nothing until it is there again.
        self.allowance.refill(self.rates(), now);
        self.expire();
        self.expire_reads();
        self.promote_who_has_caught_up();
        self.follow_members();
        self.tidy_read_back();
        self.ask_if_nobody_else_does();
        self.ask_if_due();
        self.tend_activation();
        self.tend_impasse();
        self.tick_standings();
        self.give_leadership_away_if_faulted();
    }

    pub(crate) fn leads(&self) -> bool {
        self.raft
            .as_ref()
            .is_some_and(|raft| raft.0.raft.state == StateRole::Leader)
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
        let leader = self.raft.as_ref()?.0.raft.leader_id;
        (leader != 0).then_some(ReplicaId(leader))
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
        self.raft
            .as_ref()
            .and_then(|raft| raft.0.store().snapshot())
            .map(|snapshot| &snapshot.name)
    }

    /// Sends a message of the host's own, behind those that wait for a record.
    pub(crate) fn send(&mut self, replica: ReplicaId, node: NodeId, body: Body) {
        let message = PeerMessage {
            group: self.config.group,
            incarnation: self.config.incarnation,
            from: self.replica,
            to: replica,
            body,
        };
        self.effects.push(Effect::Send { to: node, message });
    }

    /// Tells watchers of a leader, and settles what hung on the former one.
    pub(crate) fn note_leader(&mut self) {
        let Some(Raft(node)) = &self.raft else { return };
        let (leader, term) = (node.raft.leader_id, node.raft.term);
        if (leader, term) == self.seen_leader {
            return;
        }
        let led_before = self.seen_leader.0 == self.replica.0;
        self.seen_leader = (leader, term);
        self.leader_changed_for_forwards(ReplicaId(leader));
        if leader == self.replica.0 && leader != 0 {
            self.proposals.elected = true;
            self.proposals.leader_since = self.ticks;
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
            self.effects.push(Effect::Leader(LeaderChanged {
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
        self.effects.push(Effect::Removed);
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
        self.effects.push(Effect::Halt { reason });
    }

    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.answer_everybody(match ended {
            Ended::Removed => ProposalError::Stopped,
            Ended::Halted => ProposalError::Faulted,
        });
        self.flush_answers();
    }

    fn refuse(&mut self, input: Input, ended: Ended) {
        let error = match ended {
            Ended::Removed => ProposalError::Stopped,
            Ended::Halted => ProposalError::Faulted,
        };
        match input {
            Input::Propose { waiter, .. } => self.effects.push(Effect::Reply {
                waiter,
                result: Err(error),
            }),
            Input::Query { waiter, .. } => self.effects.push(Effect::QueryFailed { waiter, error }),
            _ => {}
        }
    }
}

/// The entry that makes an initial member known. The data stays empty: what Raft needs is made from the record.
fn bootstrap_entry(index: u64, member: &crate::config::Member) -> eraftpb::Entry {
    use prost::Message;
    let record = ChangeRecord {
        kind: ChangeKind::AddVoter as u32,
        node: member.node.0,
        replica: index,
        data: member.data.clone(),
        promote: false,
        now: 0,
        entropy: bytes::Bytes::from_static(&[0; 16]),
    };
    eraftpb::Entry {
        entry_type: EntryType::EntryConfChange,
        term: 1,
        index,
        context: record.encode_to_vec().into(),
        ..Default::default()
    }
}

/// A change as Raft takes it. The nameless replica 0 changes nothing, which is how a refused change is applied.
pub(crate) fn raft_change(kind: ChangeKind, replica: ReplicaId) -> RaftChange {
    let change_type = match kind {
        ChangeKind::AddVoter | ChangeKind::Promote => ConfChangeType::AddNode,
        ChangeKind::AddLearner => ConfChangeType::AddLearnerNode,
        ChangeKind::Remove => ConfChangeType::RemoveNode,
    };
    RaftChange {
        change_type,
        node_id: replica.0,
        ..RaftChange::default()
    }
}
