//! Replicas that disagree: the leader compares what they say of each barrier, and the log judges.
//!
//! Agreement costs two small messages for each member and barrier, and no entry. A disagreement is put into the log as a
//! [`Verdict`], so that every replica draws the same conclusion at the same place. A replica that a majority contradicts is
//! *quarantined*: it answers nothing, does not lead, and goes on from a snapshot of the majority. Without a majority the group is
//! *suspended*: every replica stops at the verdict, until a later one decides.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{self, Entry, MessageType};

use crate::attestation::{Attestation, Chain, Digest, Judgement, all_agree, counts, judge};
use crate::effect::Effect;
use crate::entry::{self, Order};
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::log_view::Snapshotted;
use crate::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use crate::payload::{Kind, Verdict};
use crate::pending::AskerId;
use crate::proposal::ProposalError;
use crate::raft_node::NotProposed;
use crate::state::HostState;
use crate::status::Health;

/// Barriers that a replica can still speak of. A member that is further behind has a later one to speak of.
const KEPT: usize = 8;

/// What replicas said of barriers.
#[derive(Debug, Default)]
pub(crate) struct Attestations {
    /// Since the last snapshot.
    pub(crate) chain: Chain,
    /// This replica's, the newest last.
    own: VecDeque<Attestation>,
    /// What members told this leader of barriers in `own`.
    reports: BTreeMap<LogIndex, BTreeMap<ReplicaId, Attestation>>,
    /// The newest barrier that each member has spoken of.
    heard: BTreeMap<ReplicaId, LogIndex>,
    /// Since when this leader knows of a disagreement, and how many reports it has put into the log.
    disputes: BTreeMap<LogIndex, Dispute>,
    /// A snapshot of the majority, for this quarantined replica.
    pub(crate) cure: Option<ArrivedSnapshot>,
    /// Nodes that such a snapshot is on its way to, and since when.
    cures: BTreeMap<NodeId, u64>,
    /// When each member last asked this leader for such a snapshot, and behind which point.
    asked: BTreeMap<ReplicaId, (u64, LogIndex)>,
    /// The newest barrier at which a majority is known to agree.
    pub(crate) verified: LogIndex,
}

#[derive(Debug, Default)]
struct Dispute {
    since: u64,
    proposed: usize,
}

impl Group {
    /// The machine has passed a barrier.
    pub(crate) fn attest(&mut self, index: LogIndex, snapshot: Option<&SnapshotName>) {
        let snapshot = snapshot.map(|name| name.digest);
        self.speak(Attestation {
            index,
            snapshot,
            chain: Some(self.attestations.chain.link()),
        });
        if let Some(snapshot) = snapshot {
            self.attestations.chain = Chain::behind(snapshot);
        }
        self.ask_for_attestations();
        self.compare();
    }

    /// The machine goes on from a snapshot; what led to it was not seen.
    pub(crate) fn attest_restored(&mut self, index: LogIndex, snapshot: Digest) {
        self.attestations.chain = Chain::behind(snapshot);
        self.attestations.own.clear();
        self.attestations.reports.clear();
        self.speak(Attestation {
            index,
            snapshot: Some(snapshot),
            chain: None,
        });
    }

    fn speak(&mut self, attestation: Attestation) {
        let own = &mut self.attestations.own;
        own.push_back(attestation);
        while own.len() > KEPT {
            own.pop_front();
        }
        let oldest = own.front().map_or(LogIndex(0), |oldest| oldest.index);
        let disputed = self.disputed();
        let attestations = &mut self.attestations;
        attestations
            .reports
            .retain(|index, _| *index >= oldest || Some(*index) == disputed);
        attestations.disputes = attestations.disputes.split_off(&oldest);
    }

    /// A leader asks the members that have not spoken of its newest barrier; again with every election timeout, since
    /// questions and answers may be lost.
    pub(crate) fn ask_if_due(&mut self) {
        if self
            .ticks
            .is_multiple_of(u64::from(self.config.election_ticks))
        {
            self.ask_for_attestations();
            self.compare();
            self.ask_for_snapshot();
        }
    }

    fn ask_for_attestations(&mut self) {
        let Some(newest) = self.attestations.own.back().map(|newest| newest.index) else {
            return;
        };
        if !self.leads() {
            return;
        }
        let members: Vec<(ReplicaId, NodeId)> = self
            .state
            .membership
            .members()
            .iter()
            .map(|(replica, member)| (*replica, member.node))
            .filter(|(replica, _)| *replica != self.replica)
            .collect();
        for (replica, node) in members {
            let after = self.attestations.heard.get(&replica).copied();
            let after = after.unwrap_or_default();
            if after < newest {
                let nonce = self.nonce(replica, node);
                self.send(replica, node, Body::AskAttestations { after, nonce });
            }
        }
    }

    /// The leader asks what this replica has to say of barriers behind `after`.
    pub(crate) fn asked_for_attestations(
        &mut self,
        replica: ReplicaId,
        node: NodeId,
        after: LogIndex,
        nonce: u64,
    ) {
        let said: Vec<_> = self
            .attestations
            .own
            .iter()
            .filter(|attestation| attestation.index > after)
            .copied()
            .collect();
        if !said.is_empty() {
            self.send(replica, node, Body::Attestations { nonce, said });
        }
    }

    /// A member speaks.
    pub(crate) fn attested(&mut self, replica: ReplicaId, said: Vec<Attestation>) {
        if !self.leads() || self.state.membership.member(replica).is_none() {
            return;
        }
        for said in said.into_iter().take(KEPT) {
            let heard = self.attestations.heard.entry(replica).or_default();
            *heard = said.index.max(*heard);
            if self.disputed() == Some(said.index) || self.own_on(said.index).is_some() {
                self.attestations
                    .reports
                    .entry(said.index)
                    .or_default()
                    .insert(replica, said);
            }
        }
        self.compare();
    }

    /// A replica that begins to lead knows nothing of what the others said.
    pub(crate) fn forget_reports(&mut self) {
        let disputed = self.disputed();
        // What the log said of it stays.
        self.attestations
            .reports
            .retain(|index, _| Some(*index) == disputed);
        self.attestations.heard.clear();
        self.attestations.disputes.clear();
        self.attestations.asked.clear();
    }

    /// Looks whether all say the same, and takes to the log what they do not agree on.
    fn compare(&mut self) {
        if !self.leads() {
            return;
        }
        let indices: Vec<_> = self.attestations.own.iter().map(|own| own.index).collect();
        for index in indices {
            if index <= self.state.settled {
                continue;
            }
            let reports = self.reports_on(index);
            if !all_agree(&reports) {
                self.dispute(index, &reports);
            } else if matches!(
                judge(&reports, &self.state.membership),
                Judgement::Majority(_)
            ) {
                self.attestations.verified = self.attestations.verified.max(index);
            }
        }
    }

    /// The barrier at which the group is suspended.
    fn disputed(&self) -> Option<LogIndex> {
        match self.health {
            Health::Suspended { index } => Some(index),
            _ => None,
        }
    }

    fn own_on(&self, index: LogIndex) -> Option<Attestation> {
        let mut own = self.attestations.own.iter();
        own.find(|own| own.index == index).copied()
    }

    /// What is known here of a barrier: what others said, and what this replica says.
    fn reports_on(&self, index: LogIndex) -> Vec<(ReplicaId, Attestation)> {
        let others = self.attestations.reports.get(&index);
        let mut reports = others.cloned().unwrap_or_default();
        reports.extend(self.own_on(index).map(|own| (self.replica, own)));
        let membership = &self.state.membership;
        reports.retain(|replica, said| counts(*replica, said, membership));
        reports.into_iter().collect()
    }

    /// A verdict is worth an entry as soon as a majority is known; or when nobody is left to ask, or has answered in time.
    fn dispute(&mut self, index: LogIndex, reports: &[(ReplicaId, Attestation)]) {
        let ticks = self.ticks;
        let dispute = self.attestations.disputes.entry(index).or_insert(Dispute {
            since: ticks,
            proposed: 0,
        });
        let (since, proposed) = (dispute.since, dispute.proposed);
        // While only the snapshots of a majority are known to be equal, the chains of those who have not spoken yet may tell
        // who answered otherwise.
        let decided = matches!(
            judge(reports, &self.state.membership),
            Judgement::Majority(right) if right.chain.is_some()
        );
        let complete = self
            .state
            .membership
            .voters()
            .all(|voter| reports.iter().any(|(replica, _)| *replica == voter));
        let late = ticks >= since + 2 * u64::from(self.config.election_ticks);
        if reports.len() == proposed || !(decided || complete || late) {
            return;
        }
        if self.put_verdict(Verdict::of(index, reports), &[]).is_ok()
            && let Some(dispute) = self.attestations.disputes.get_mut(&index)
        {
            dispute.proposed = reports.len();
        }
    }

    fn put_verdict(&mut self, verdict: Verdict, askers: &[AskerId]) -> Result<(), NotProposed> {
        if !self.can_propose() || self.proposals.elected {
            return Err(NotProposed);
        }
        self.propose_entry(Kind::Verdict(verdict), askers)
    }

    /// An operator says whose state is right, of a group that cannot find out by itself.
    pub(crate) fn propose_trust(&mut self, asker: AskerId, node: NodeId) {
        let trusted = self.state.membership.replica_on(node);
        let verdict = match (&self.health, trusted) {
            // Everybody will take the state of the trusted one, so it must be there.
            (Health::Suspended { index }, Some(trusted)) if self.is_active(trusted) => {
                let reports = self.reports_on(*index);
                reports
                    .iter()
                    .any(|(replica, _)| *replica == trusted)
                    .then(|| Verdict {
                        trusted: trusted.0,
                        ..Verdict::of(*index, &reports)
                    })
            }
            _ => None,
        };
        let Some(verdict) = verdict else {
            self.reply(asker, Err(ProposalError::NotNeeded));
            return;
        };
        if self.put_verdict(verdict, &[asker]).is_err() {
            self.reply(asker, Err(ProposalError::Busy));
        }
    }

    /// The log holds a verdict at `at`.
    pub(crate) fn process_verdict(&mut self, verdict: &Verdict, at: LogIndex) {
        let index = LogIndex(verdict.index);
        let testimony = verdict.testimony(&self.state.membership);
        if index <= self.state.settled || (verdict.trusted == 0 && all_agree(&testimony)) {
            return;
        }
        let own = self.own_on(index);
        match verdict.judge(&self.state.membership) {
            Judgement::Majority(right) => {
                self.state.settled = index;
                self.contradict(verdict, &right, at);
                let diverged = match own {
                    Some(own) => !own.agrees(&right),
                    // What it has may come from anybody; where an operator decides, only one replica is known to be right.
                    None => verdict.trusted != 0 && verdict.trusted != self.replica.0,
                };
                self.out.push(Effect::Diverged {
                    index,
                    decided: true,
                    here: diverged,
                });
                if diverged {
                    self.quarantine(index);
                } else if matches!(self.health, Health::Suspended { index: suspended } if suspended == index)
                {
                    self.health = Health::Healthy;
                }
            }
            Judgement::Undecided => {
                self.out.push(Effect::Diverged {
                    index,
                    decided: false,
                    here: own.is_some(),
                });
                if !self.is_faulted() {
                    // So that an operator can decide also where the leader has nothing of its own to say.
                    let reports = self.attestations.reports.entry(index).or_default();
                    for (replica, said) in testimony {
                        reports.entry(replica).or_insert(said);
                    }
                    self.health = Health::Suspended { index };
                    self.refuse_reads(&ProposalError::Faulted);
                }
            }
        }
    }

    /// Notes who is wrong, also of barriers that they have spoken of since.
    fn contradict(&mut self, verdict: &Verdict, right: &Attestation, at: LogIndex) {
        let reports: BTreeMap<_, _> = verdict.reports().into_iter().collect();
        let membership = &mut self.state.membership;
        let members: Vec<_> = membership.members().keys().copied().collect();
        for replica in members {
            let contradicted = match reports.get(&replica) {
                Some(said) => !said.agrees(right),
                None => verdict.trusted != 0,
            };
            if contradicted {
                membership.contradict(replica, at);
            }
        }
    }

    /// A suspended replica looks for a later verdict among the entries that it does not process.
    pub(crate) fn look_for_verdict(&mut self) {
        let Health::Suspended { index } = self.health else {
            return;
        };
        let decides = |verdict: &Verdict| {
            verdict.index == index.0
                && matches!(
                    verdict.judge(&self.state.membership),
                    Judgement::Majority(_)
                )
        };
        let later = self.committed.iter().find_map(|entry| {
            let verdict = entry::verdict(entry).filter(decides)?;
            Some((LogIndex(entry.index), Term(entry.term), verdict))
        });
        if let Some((at, term, verdict)) = later {
            self.process_verdict(&verdict, at);
            // Its own turn may not come here: this replica may be the one that is wrong.
            let askers = self.take_proposed(at, term);
            self.acknowledge(&askers, at, term);
        }
    }

    /// What this replica has is wrong: nobody gets it any more, and it takes the state of the majority.
    pub(crate) fn quarantine(&mut self, index: LogIndex) {
        self.health = Health::Quarantined { index };
        self.unwritten = None;
        self.abandon_applying();
        self.refuse_reads(&ProposalError::Faulted);
        self.raft.log_mut().distrust_snapshot();
        self.ask_for_snapshot();
    }

    /// Asks the leader for a snapshot of a point that this replica has not reached. Raft's own request for one will not do:
    /// it takes no entries meanwhile, and of two voters none could then commit the barrier that is needed.
    ///
    /// A leader asks a member that is well. That is a learner where no voter is well that could lead instead.
    pub(crate) fn ask_for_snapshot(&mut self) {
        let Some(after) = self.needs_snapshot_after() else {
            return;
        };
        if self.attestations.cure.is_some() {
            return;
        }
        let giver = match self.leads() {
            true => self.a_well_member(),
            false => self.leader_replica(),
        };
        if let Some(giver) = giver
            && giver != self.replica
            && let Some(node) = self.node_of(giver)
        {
            self.send(giver, node, Body::AskSnapshot { after });
            self.have_others_take_a_snapshot();
        }
    }

    /// A leader that needs a snapshot has the others take one, unless a barrier that they have to pass is in the log already.
    fn have_others_take_a_snapshot(&mut self) {
        let is_barrier =
            |entry: &Entry| matches!(entry::read(entry), Ok(Some((_, Order::Barrier))));
        if self.can_propose() && !self.proposals.elected && !self.in_flight(is_barrier) {
            self.propose_barrier(None);
        }
    }

    /// A replica that is quarantined, or has lost its own, wants a snapshot of a point behind `after`. A leader has no other
    /// leader to ask, so any member serves it.
    pub(crate) fn asked_for_snapshot(&mut self, to: ReplicaId, node: NodeId, after: LogIndex) {
        let is_member = self.state.membership.member(to).is_some();
        let serves_it = self.leads() || self.leader_replica() == Some(to);
        if !is_member || !serves_it {
            return;
        }
        self.attestations.asked.insert(to, (self.ticks, after));
        if self.is_faulted() {
            return;
        }
        let newest = (self.raft.log().snapshot()).filter(|newest| newest.name.index > after);
        let Some(Snapshotted {
            name: snapshot,
            conf_state,
        }) = newest.cloned()
        else {
            self.since_barrier.wanted = true;
            return;
        };
        let patience = 10 * u64::from(self.config.election_ticks);
        let sent = self.attestations.cures.get(&node);
        if sent.is_some_and(|sent| self.ticks < sent + patience) {
            return;
        }
        self.attestations.cures.insert(node, self.ticks);
        // As Raft's own: whoever carries or takes a snapshot refuses one that does not say what it is of.
        let metadata = eraftpb::SnapshotMetadata {
            conf_state: Some(conf_state).into(),
            index: snapshot.index.0,
            term: snapshot.term.0,
            ..Default::default()
        };
        let header = eraftpb::Message {
            msg_type: MessageType::MsgSnapshot,
            from: self.replica.0,
            to: to.0,
            term: self.term().0,
            // Raft takes whoever sends a snapshot for the leader. So one of somebody else says that it was asked for.
            request_snapshot: match self.leads() {
                true => 0,
                false => snapshot.index.0,
            },
            snapshot: Some(eraftpb::Snapshot {
                metadata: Some(metadata).into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let message = PeerMessage {
            group: self.config.group,
            incarnation: self.config.incarnation,
            from: self.replica,
            to,
            body: Body::Raft(header),
        };
        self.out.push(Effect::SendSnapshot {
            to: node,
            message,
            snapshot,
        });
    }

    /// Whether a member's machine is known to be of no use: it asks for snapshots with every election timeout.
    pub(crate) fn is_ailing(&self, replica: ReplicaId) -> bool {
        let patience = 2 * u64::from(self.config.election_ticks);
        let asked = self.attestations.asked.get(&replica);
        asked.is_some_and(|(at, _)| self.ticks < at + patience)
    }

    /// Whether a member's machine is of no use before there is a snapshot of a later point than this leader has.
    pub(crate) fn waits_for_a_later_snapshot(&self, replica: ReplicaId) -> bool {
        let newest = self.snapshot_name().map(|name| name.index);
        let asked = self.attestations.asked.get(&replica);
        self.is_ailing(replica) && asked.is_some_and(|(_, after)| newest <= Some(*after))
    }

    /// A transfer to a node has ended.
    pub(crate) fn cure_sent(&mut self, node: NodeId) {
        self.attestations.cures.remove(&node);
    }

    /// Goes on from a snapshot of the majority, once its barrier is committed here too. The log is right, only the machine was
    /// not, or its file; so nothing of the log is replaced. `true` if it was done.
    pub(crate) fn take_cure(&mut self) -> bool {
        let Some(ArrivedSnapshot { name, state, .. }) = self.attestations.cure.clone() else {
            return false;
        };
        let handed_out = self.committed.back().map_or(0, |entry| entry.index);
        if handed_out < name.index.0 && self.processed < name.index {
            return false;
        }
        self.attestations.cure = None;
        let barrier = self
            .committed
            .iter()
            .find(|entry| entry.index == name.index.0);
        let term = match &self.lost {
            Some(lost) if lost.index == name.index => Some(lost.term.0),
            _ => barrier.map(|entry| entry.term),
        };
        let is_of_this_log = term == Some(name.term.0);
        let (true, Ok((state, context))) = (is_of_this_log, HostState::decode(state)) else {
            return false;
        };
        self.superseded_through = self.superseded_through.max(self.processed);
        while let Some(entry) = self
            .committed
            .pop_front_if(|entry| entry.index <= name.index.0)
        {
            self.pass_over(entry);
        }
        if self.has_ended() {
            return true;
        }
        self.raft.processed(name.index);
        let conf_state = state.membership.conf_state();
        if self.lost.is_some() {
            self.adopt_members(&conf_state);
        }
        if self.has_ended() {
            return true;
        }
        self.go_on_from(name.clone(), state, context);
        self.compact(Snapshotted { name, conf_state });
        true
    }
}
