//! How a replica begins: with its group, as its disk has it, or with nothing.

use std::collections::VecDeque;

use raft::ReadOnlyOption;
use raft::eraftpb::{self, EntryType, HardState};

use crate::addresses::Addresses;
use crate::allowance::Allowance;
use crate::barrier::Sizes;
use crate::catch_up::CatchUp;
use crate::config::{ConfigError, GroupConfig};
use crate::cures::Cures;
use crate::divergence::Attestations;
use crate::effect::Persist;
use crate::election::{FOUNDING_TERM, FirstElection};
use crate::group::{Group, SinceBarrier};
use crate::handover::Handover;
use crate::healing::{Beginning, Restraint};
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::impasse::Deliberation;
use crate::liveness::Liveness;
use crate::log_view::{LogView, Snapshotted};
use crate::message::SnapshotName;
use crate::out::Out;
use crate::outcome::ChangeKind;
use crate::payload::ChangeRecord;
use crate::pending::Pending;
use crate::planted::{self, Defect};
use crate::proposals::Proposals;
use crate::raft_node::RaftNode;
use crate::reads::Reads;
use crate::standing::Standings;
use crate::state::HostState;
use crate::status::Health;

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
            .map(|(index, member)| {
                let kind = match index <= group.config.founding_voters as u64 {
                    true => ChangeKind::AddVoter,
                    false => ChangeKind::AddLearner,
                };
                bootstrap_entry(index, kind, member)
            })
            .collect();
        let replica_on = |node| {
            let place = members.iter().position(|member| member.node == node);
            place.map(|place| ReplicaId(place as u64 + 1))
        };
        group.replica = replica_on(group.config.node).unwrap_or(ReplicaId(1));
        if let Some(first) = group.config.first_leader.and_then(replica_on) {
            group.first_election = FirstElection::Due(first);
        }
        let hard_state = HardState {
            term: FOUNDING_TERM.0,
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
            group.sizes = Sizes::of(&name, &group.state);
            group.attest_restored(name.index, name.digest);
            if planted::has(Defect::DoubleApplyAfterRestart) {
                let before = LogIndex(name.index.0.saturating_sub(3));
                group.processed = before.max(recovered.truncated.0);
            }
            group.restore(Beginning::at(context, name.clone()));
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

    pub(crate) fn empty(config: GroupConfig) -> Self {
        let state = HostState {
            deployment: config.deployment.clone(),
            ..HostState::default()
        };
        let now = config.now;
        Self {
            config,
            replica: ReplicaId(0),
            raft: RaftNode::default(),
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
            cures: Cures::default(),
            imaging: None,
            beginning: None,
            sizes: Sizes::default(),
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
            now,
            attempt: 0,
            first_election: FirstElection::Over,
            gone_leader: None,
            led_at: 0,
            proposed: 0,
            health: Health::Healthy,
            ended: None,
            pending: Pending::default(),
            out: Out::default(),
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
        let started = self.raft.start(&config, view);
        started.map_err(|error| self.wrong("raft", error))?;
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
}

/// The entry that makes an initial member known. The data stays empty: what Raft needs is made from the record.
fn bootstrap_entry(index: u64, kind: ChangeKind, member: &crate::config::Member) -> eraftpb::Entry {
    use prost::Message;
    let record = ChangeRecord {
        kind: kind as u32,
        node: member.node.0,
        replica: index,
        data: member.data.clone(),
        promote: false,
        now: 0,
        entropy: bytes::Bytes::from_static(&[0; 16]),
    };
    eraftpb::Entry {
        entry_type: EntryType::EntryConfChange,
        term: FOUNDING_TERM.0,
        index,
        context: record.encode_to_vec().into(),
        ..Default::default()
    }
}
