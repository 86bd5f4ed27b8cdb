//! raft-rs as the rest of the core sees it, whether it runs yet or not.
//!
//! A replica without a name has no Raft: it leads nothing, knows no leader, and its log is empty. Only this file asks
//! whether it runs.

use raft::eraftpb::{ConfChange, ConfState, Entry, Message};
use raft::{GetEntriesContext, Progress, RawNode, Ready, SnapshotStatus, StateRole};

use crate::id::{LogIndex, ReplicaId, Term};
use crate::log_view::LogView;

/// Raft of one replica, over the log in memory.
pub(crate) struct RaftNode {
    node: Option<RawNode<LogView>>,
    /// The log before Raft runs.
    nothing: LogView,
}

/// Raft took no proposal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotProposed;

impl Default for RaftNode {
    fn default() -> Self {
        Self {
            node: None,
            nothing: LogView::empty(),
        }
    }
}

/// The derived one would print the whole log.
impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let soft_state = self.node.as_ref().map(|node| node.raft.soft_state());
        write!(f, "Raft({soft_state:?})")
    }
}

/// How it begins, and what it is.
impl RaftNode {
    pub(crate) fn start(&mut self, config: &raft::Config, log: LogView) -> raft::Result<()> {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        self.node = Some(RawNode::new(config, log, &logger)?);
        Ok(())
    }

    /// What it is; none before it runs.
    pub(crate) fn role(&self) -> Option<StateRole> {
        self.node.as_ref().map(|node| node.raft.state)
    }

    pub(crate) fn leads(&self) -> bool {
        self.role() == Some(StateRole::Leader)
    }

    /// Whether this replica leads and is no member. raft-rs then panics when a record is durable and when an entry is
    /// committed, drops what is proposed, and, if one voter is left, answers reads without asking it.
    pub(crate) fn leads_without_progress(&self) -> bool {
        let is_no_member = |node: &RawNode<_>| node.raft.prs().get(node.raft.id).is_none();
        self.leads() && self.node.as_ref().is_some_and(is_no_member)
    }

    /// Whether it takes proposals now.
    pub(crate) fn can_propose(&self) -> bool {
        self.leads() && !self.hands_over() && !self.leads_without_progress()
    }

    /// Whether it leads and another is to.
    pub(crate) fn hands_over(&self) -> bool {
        let hands_over = |node: &RawNode<_>| node.raft.lead_transferee.is_some();
        self.leads() && self.node.as_ref().is_some_and(hands_over)
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.node.as_ref().map_or(0, |node| node.raft.term))
    }

    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        let leader = self.node.as_ref()?.raft.leader_id;
        (leader != 0).then_some(ReplicaId(leader))
    }

    /// Whether the members that it knows could elect it.
    pub(crate) fn is_promotable(&self) -> bool {
        let node = self.node.as_ref();
        node.is_some_and(|node| node.raft.promotable())
    }

    /// Ticks since it heard of a leader, or began to campaign.
    pub(crate) fn election_elapsed(&self) -> usize {
        let node = self.node.as_ref();
        node.map_or(0, |node| node.raft.election_elapsed)
    }
}

/// Its log.
impl RaftNode {
    /// What of the log was given out to be stored.
    pub(crate) fn log(&self) -> &LogView {
        self.node.as_ref().map_or(&self.nothing, RawNode::store)
    }

    pub(crate) fn log_mut(&mut self) -> &mut LogView {
        match &mut self.node {
            Some(node) => node.mut_store(),
            None => &mut self.nothing,
        }
    }

    /// The last entry, given out or not.
    pub(crate) fn last(&self) -> LogIndex {
        let node = self.node.as_ref();
        LogIndex(node.map_or(0, |node| node.raft.raft_log.last_index()))
    }

    /// Entries up to here are known to be committed.
    pub(crate) fn committed(&self) -> LogIndex {
        let node = self.node.as_ref();
        LogIndex(node.map_or(0, |node| node.raft.raft_log.committed))
    }

    /// Term of the last of them; 0 where the log does not tell.
    pub(crate) fn committed_term(&self) -> Term {
        let term = |node: &RawNode<LogView>| {
            let log = &node.raft.raft_log;
            log.term(log.committed).unwrap_or_default()
        };
        Term(self.node.as_ref().map_or(0, term))
    }

    /// Entries up to here are durable on this node.
    pub(crate) fn durable(&self) -> LogIndex {
        let node = self.node.as_ref();
        LogIndex(node.map_or(0, |node| node.raft.raft_log.persisted))
    }

    /// Whether such an entry follows this one. An entry that cannot be looked at may be such a one.
    pub(crate) fn has_after(&self, index: LogIndex, such: impl Fn(&Entry) -> bool) -> bool {
        let Some(node) = &self.node else {
            return false;
        };
        let log = &node.raft.raft_log;
        let (from, to) = (index.0 + 1, log.last_index() + 1);
        match log.slice(from, to, None, GetEntriesContext::empty(false)) {
            Ok(entries) => entries.iter().any(such),
            Err(_) => true,
        }
    }
}

/// Its members.
impl RaftNode {
    /// How far a member is, if this replica leads or led.
    pub(crate) fn progress(&self, replica: ReplicaId) -> Option<&Progress> {
        self.node.as_ref()?.raft.prs().get(replica.0)
    }

    /// How far the other members are.
    pub(crate) fn others(&self) -> impl Iterator<Item = (ReplicaId, &Progress)> {
        self.node.iter().flat_map(|node| {
            let members = node.raft.prs().iter();
            let others = members.filter(|(id, _)| **id != node.raft.id);
            others.map(|(id, progress)| (ReplicaId(*id), progress))
        })
    }

    /// How many voters come before this one, and how many there are, one not counted; none if it does not vote.
    pub(crate) fn place_among_voters(&self, but: Option<ReplicaId>) -> Option<(u64, u64)> {
        let raft = &self.node.as_ref()?.raft;
        let voters = raft.prs().conf().voters();
        voters.contains(raft.id).then(|| {
            let ids = voters.ids();
            let counted = || ids.iter().filter(|voter| Some(ReplicaId(*voter)) != but);
            let before = counted().filter(|voter| *voter < raft.id).count();
            (before as u64, counted().count() as u64)
        })
    }

    pub(crate) fn has_one_voter(&self) -> bool {
        let node = self.node.as_ref();
        node.is_some_and(|node| node.raft.prs().is_singleton())
    }

    /// Whether a change in the log may not be applied yet.
    pub(crate) fn has_pending_change(&self) -> bool {
        let node = self.node.as_ref();
        node.is_some_and(|node| node.raft.has_pending_conf())
    }

    /// Changes the members; none before it runs.
    pub(crate) fn change(&mut self, change: &ConfChange) -> Option<raft::Result<ConfState>> {
        let node = self.node.as_mut()?;
        Some(node.apply_conf_change(change))
    }

    /// Sends a member what it lacks, as much as can be read and may be in flight.
    pub(crate) fn send_to(&mut self, replica: ReplicaId) {
        let Some(node) = &mut self.node else { return };
        let next = |node: &RawNode<_>| node.raft.prs().get(replica.0).map(|to| to.next_idx);
        loop {
            let before = next(node);
            node.raft.send_append(replica.0);
            if next(node) == before {
                break;
            }
        }
    }

    /// Bounds the messages in flight to a member.
    pub(crate) fn bound_in_flight(&mut self, replica: ReplicaId, messages: usize) {
        if let Some(node) = &mut self.node {
            node.raft.adjust_max_inflight_msgs(replica.0, messages);
        }
    }
}

/// What goes in.
impl RaftNode {
    pub(crate) fn tick(&mut self) {
        if let Some(node) = &mut self.node {
            node.tick();
        }
    }

    /// Whether the next tick is the end of its election timeout.
    pub(crate) fn is_about_to_campaign(&self) -> bool {
        let Some(node) = &self.node else {
            return false;
        };
        let timeout = node.raft.randomized_election_timeout();
        !self.leads() && node.raft.election_elapsed + 1 >= timeout
    }

    pub(crate) fn set_election_timeout(&mut self, ticks: usize) {
        if let Some(node) = &mut self.node {
            node.raft.set_randomized_election_timeout(ticks);
        }
    }

    /// Follows nobody from here on, as if nothing had been heard of the leader for so many ticks.
    pub(crate) fn lose_leader(&mut self, elapsed: usize) {
        if let Some(node) = &mut self.node {
            let raft = &mut node.raft;
            raft.leader_id = 0;
            raft.election_elapsed = raft.election_elapsed.max(elapsed);
        }
    }

    /// Stands for election. Without a configuration raft-rs would win at once, with the votes of nobody, and then panic.
    pub(crate) fn campaign(&mut self) {
        let can_win = |node: &&mut RawNode<LogView>| node.raft.promotable();
        if let Some(node) = self.node.as_mut().filter(can_win) {
            // Refused while a configuration change is not applied; the caller sees it in the status.
            let _refused = node.campaign();
        }
    }

    /// Asks for another leader.
    pub(crate) fn transfer_to(&mut self, replica: ReplicaId) {
        if let Some(node) = &mut self.node {
            node.transfer_leader(replica.0);
        }
    }

    /// Takes in a message. An error says that the sender is no peer, or that the type is local; either is dropped.
    pub(crate) fn step(&mut self, message: Message) {
        if let Some(node) = &mut self.node {
            let _dropped = node.step(message);
        }
    }

    /// Asks for the index of a read. Dropped without a word if there is no leader, or it has committed nothing in its term.
    pub(crate) fn read_index(&mut self, context: Vec<u8>) {
        if let Some(node) = &mut self.node {
            node.read_index(context);
        }
    }

    /// Appends an entry, as leader.
    pub(crate) fn propose(&mut self, data: Vec<u8>) -> Result<(), NotProposed> {
        let node = self.node.as_mut().ok_or(NotProposed)?;
        node.propose(Vec::new(), data).map_err(|_| NotProposed)
    }

    /// Appends a change of membership, as leader.
    pub(crate) fn propose_change(
        &mut self,
        record: Vec<u8>,
        change: ConfChange,
    ) -> Result<(), NotProposed> {
        let node = self.node.as_mut().ok_or(NotProposed)?;
        let proposed = node.propose_conf_change(record, change);
        proposed.map_err(|_| NotProposed)
    }

    pub(crate) fn report_unreachable(&mut self, replica: ReplicaId) {
        if let Some(node) = &mut self.node {
            node.report_unreachable(replica.0);
        }
    }

    /// The transfer of a snapshot to a member has ended.
    pub(crate) fn report_snapshot(&mut self, replica: ReplicaId, arrived: bool) {
        let status = match arrived {
            true => SnapshotStatus::Finish,
            false => SnapshotStatus::Failure,
        };
        if let Some(node) = &mut self.node {
            node.report_snapshot(replica.0, status);
        }
    }
}

/// What comes out.
impl RaftNode {
    /// The snapshot that it has accepted and not given out.
    pub(crate) fn accepted_snapshot(&self) -> Option<LogIndex> {
        let snapshot = self.node.as_ref()?.snap()?;
        (!snapshot.is_empty()).then(|| LogIndex(snapshot.get_metadata().index))
    }

    /// What is to be done now, if there is something.
    pub(crate) fn ready(&mut self) -> Option<Ready> {
        let node = self.node.as_mut()?;
        node.has_ready().then(|| node.ready())
    }

    /// What it gave out was taken, and is on its way to the disk.
    pub(crate) fn taken(&mut self, ready: Ready) {
        if let Some(node) = &mut self.node {
            node.advance_append_async(ready);
        }
    }

    /// What it gave out, up to the `Ready` of this number, is durable.
    pub(crate) fn persisted(&mut self, ready: u64) {
        if self.leads_without_progress() {
            return;
        }
        if let Some(node) = &mut self.node {
            node.on_persist_ready(ready);
        }
    }

    /// Entries up to here were processed.
    pub(crate) fn processed(&mut self, index: LogIndex) {
        if let Some(node) = &mut self.node {
            node.advance_apply_to(index.0);
        }
    }
}
