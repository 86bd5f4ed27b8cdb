//! Replicas that disagree: the leader compares what they say of each barrier, and the log judges.
//!
//! Agreement costs two small messages for each member and barrier, and no entry. A disagreement is put into the log as a
//! [`Verdict`], so that every replica draws the same conclusion at the same place. A replica that a majority contradicts is
//! *quarantined*: it answers nothing, does not lead, and goes on from a snapshot of the majority. Without a majority the group is
//! *suspended*: every replica stops at the verdict, until a later one decides.

use std::collections::{BTreeMap, VecDeque};

use crate::attestation::{Attestation, Chain, Digest, Judgement, all_agree, counts, judge};
use crate::config::GroupConfig;
use crate::effect::Effect;
use crate::entry::{self};
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::message::Body;
use crate::payload::{Kind, Verdict};
use crate::pending::AskerId;
use crate::proposal::ProposalError;
use crate::raft_node::NotProposed;
use crate::state::{HostState, Membership};
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
    /// The newest barrier at which a majority is known to agree.
    pub(crate) verified: LogIndex,
}

#[derive(Debug, Default)]
struct Dispute {
    since: u64,
    proposed: usize,
}

/// What a detector has to know of its replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) replica: ReplicaId,
    pub(crate) membership: &'a Membership,
    /// Barriers up to here are judged.
    pub(crate) settled: LogIndex,
    pub(crate) ticks: u64,
    pub(crate) election_ticks: u64,
}

impl<'a> View<'a> {
    fn of(replica: ReplicaId, state: &'a HostState, ticks: u64, config: &GroupConfig) -> Self {
        Self {
            replica,
            membership: &state.membership,
            settled: state.settled,
            ticks,
            election_ticks: u64::from(config.election_ticks),
        }
    }
}

impl Attestations {
    /// Whether somebody could take no image at the newest barrier, as far as this replica has heard.
    pub(crate) fn lacks_images(&self) -> bool {
        let Some(own) = self.own.back() else {
            return false;
        };
        let mut others = self.reports.get(&own.index).into_iter().flatten();
        own.is_without_image() || others.any(|(_, said)| said.is_without_image())
    }

    /// This replica speaks of a barrier.
    fn speak(&mut self, said: Attestation, disputed: Option<LogIndex>) {
        self.own.push_back(said);
        while self.own.len() > KEPT {
            self.own.pop_front();
        }
        let oldest = self.own.front().map_or(LogIndex(0), |oldest| oldest.index);
        self.reports
            .retain(|index, _| *index >= oldest || Some(*index) == disputed);
        self.disputes = self.disputes.split_off(&oldest);
    }

    /// The machine goes on from a snapshot; what led to it was not seen.
    fn restart(&mut self, snapshot: Digest) {
        self.chain = Chain::behind(snapshot);
        self.own.clear();
        self.reports.clear();
    }

    /// Up to where a member has spoken, if it has not spoken of the newest barrier.
    fn is_owed_by(&self, replica: ReplicaId) -> Option<LogIndex> {
        let newest = self.own.back()?.index;
        let after = self.heard.get(&replica).copied().unwrap_or_default();
        (after < newest).then_some(after)
    }

    /// What this replica has to say of barriers behind `after`.
    fn said_after(&self, after: LogIndex) -> Vec<Attestation> {
        let own = self.own.iter().filter(|own| own.index > after);
        own.copied().collect()
    }

    /// A member speaks to this leader. Of a barrier that this leader has not come to itself, the member is asked again then.
    fn hear(&mut self, replica: ReplicaId, said: Vec<Attestation>, disputed: Option<LogIndex>) {
        let newest = self.own.back().map_or(LogIndex(0), |own| own.index);
        for said in said.into_iter().take(KEPT) {
            if said.index > newest && disputed != Some(said.index) {
                continue;
            }
            let heard = self.heard.entry(replica).or_default();
            *heard = said.index.max(*heard);
            if disputed == Some(said.index) || self.own_on(said.index).is_some() {
                let reports = self.reports.entry(said.index).or_default();
                reports.insert(replica, said);
            }
        }
    }

    /// A replica that begins to lead knows nothing of what the others said, but for what the log said of it.
    fn forget_reports(&mut self, disputed: Option<LogIndex>) {
        self.reports.retain(|index, _| Some(*index) == disputed);
        self.heard.clear();
        self.disputes.clear();
    }

    fn own_on(&self, index: LogIndex) -> Option<Attestation> {
        let mut own = self.own.iter();
        own.find(|own| own.index == index).copied()
    }

    /// What is known here of a barrier: what others said, and what this replica says.
    fn reports_on(&self, index: LogIndex, view: View) -> Vec<(ReplicaId, Attestation)> {
        let others = self.reports.get(&index);
        let mut reports = others.cloned().unwrap_or_default();
        reports.extend(self.own_on(index).map(|own| (view.replica, own)));
        reports.retain(|replica, said| counts(*replica, said, view.membership));
        reports.into_iter().collect()
    }

    /// Looks whether all say the same, and gives what this leader has to put into the log.
    fn compare(&mut self, view: View) -> Vec<Verdict> {
        let indices = self.own.iter().map(|own| own.index);
        let indices: Vec<_> = indices.filter(|index| *index > view.settled).collect();
        let mut due = Vec::new();
        for index in indices {
            let reports = self.reports_on(index, view);
            if !all_agree(&reports) {
                due.extend(self.dispute(index, &reports, view));
            } else if matches!(judge(&reports, view.membership), Judgement::Majority(_)) {
                self.verified = self.verified.max(index);
            }
        }
        due
    }

    /// A verdict is worth an entry as soon as a majority is known; or when nobody is left to ask, or has answered in time.
    fn dispute(
        &mut self,
        index: LogIndex,
        reports: &[(ReplicaId, Attestation)],
        view: View,
    ) -> Option<Verdict> {
        let begun = Dispute {
            since: view.ticks,
            proposed: 0,
        };
        let dispute = self.disputes.entry(index).or_insert(begun);
        // While only the snapshots of a majority are known to be equal, the chains of those who have not spoken yet may tell
        // who answered otherwise.
        let decided = matches!(
            judge(reports, view.membership),
            Judgement::Majority(right) if right.chain.is_some()
        );
        let has_spoken = |voter| reports.iter().any(|(replica, _)| *replica == voter);
        let complete = view.membership.voters().all(has_spoken);
        let late = view.ticks >= dispute.since + 2 * view.election_ticks;
        let is_due = reports.len() != dispute.proposed && (decided || complete || late);
        is_due.then(|| Verdict::of(index, reports))
    }

    /// A verdict of so many reports is in the log.
    fn note_proposed(&mut self, index: LogIndex, reports: usize) {
        if let Some(dispute) = self.disputes.get_mut(&index) {
            dispute.proposed = reports;
        }
    }
}

impl Group {
    /// The barrier at which the group is suspended.
    fn disputed(&self) -> Option<LogIndex> {
        match self.health {
            Health::Suspended { index } => Some(index),
            _ => None,
        }
    }

    /// The machine has passed a barrier.
    pub(crate) fn attest(&mut self, said: Attestation) {
        let disputed = self.disputed();
        self.attestations.speak(said, disputed);
        self.ask_for_attestations();
        self.compare();
    }

    /// The machine goes on from a snapshot.
    pub(crate) fn attest_restored(&mut self, index: LogIndex, snapshot: Digest) {
        let said = Attestation {
            index,
            snapshot: Some(snapshot),
            chain: None,
            unable: false,
        };
        let disputed = self.disputed();
        self.attestations.restart(snapshot);
        self.attestations.speak(said, disputed);
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
        self.try_to_resume();
    }

    fn ask_for_attestations(&mut self) {
        if !self.leads() {
            return;
        }
        let members = self.state.membership.members().iter();
        let owed: Vec<_> = members
            .filter(|(replica, _)| **replica != self.replica)
            .filter_map(|(replica, member)| {
                let after = self.attestations.is_owed_by(*replica)?;
                Some((*replica, member.node, after))
            })
            .collect();
        for (replica, node, after) in owed {
            let nonce = self.nonce(replica, node);
            self.send(replica, node, Body::AskAttestations { after, nonce });
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
        let said = self.attestations.said_after(after);
        if !said.is_empty() {
            self.send(replica, node, Body::Attestations { nonce, said });
        }
    }

    /// A member speaks.
    pub(crate) fn attested(&mut self, replica: ReplicaId, said: Vec<Attestation>) {
        if !self.leads() || self.state.membership.member(replica).is_none() {
            return;
        }
        let disputed = self.disputed();
        self.attestations.hear(replica, said, disputed);
        self.compare();
    }

    /// A replica that begins to lead knows nothing of what the others said.
    pub(crate) fn forget_reports(&mut self) {
        let disputed = self.disputed();
        self.attestations.forget_reports(disputed);
        self.cures.forget_who_asked();
    }

    /// Looks whether all say the same, and takes to the log what they do not agree on.
    fn compare(&mut self) {
        if !self.leads() {
            return;
        }
        let view = View::of(self.replica, &self.state, self.ticks, &self.config);
        for verdict in self.attestations.compare(view) {
            let (index, reports) = (LogIndex(verdict.index), verdict.reports.len());
            if self.put_verdict(verdict, &[]).is_ok() {
                self.attestations.note_proposed(index, reports);
            }
        }
    }

    fn put_verdict(&mut self, verdict: Verdict, askers: &[AskerId]) -> Result<(), NotProposed> {
        if !self.may_propose() {
            return Err(NotProposed);
        }
        self.propose_entry(Kind::Verdict(verdict), askers)
    }

    /// An operator says whose state is right, of a group that cannot find out by itself.
    pub(crate) fn propose_trust(&mut self, asker: AskerId, node: NodeId) {
        let trusted = self.state.membership.replica_on(node);
        let view = View::of(self.replica, &self.state, self.ticks, &self.config);
        let verdict = match (&self.health, trusted) {
            // Everybody will take the state of the trusted one, so it must be there.
            (Health::Suspended { index }, Some(trusted)) if self.is_active(trusted) => {
                let reports = self.attestations.reports_on(*index, view);
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
        let own = self.attestations.own_on(index);
        match verdict.judge(&self.state.membership) {
            Judgement::Majority(right) => {
                self.state.settled = index;
                verdict.contradict(&right, at, &mut self.state.membership);
                let diverged = match own {
                    Some(own) => verdict.refutes(self.replica, &own, &right),
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
        // Before it asks: nobody is given what it has.
        self.raft.log_mut().distrust_snapshot();
        self.stop_applying();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::outcome::ChangeKind;

    const BARRIER: LogIndex = LogIndex(8);

    fn membership() -> Membership {
        let mut membership = Membership::default();
        for id in 1..=3 {
            let founder = ChangeKind::AddVoter;
            membership.apply(founder, ReplicaId(id), NodeId(id), &Bytes::new(), false);
        }
        membership
    }

    fn view(membership: &Membership, ticks: u64) -> View<'_> {
        View {
            replica: ReplicaId(1),
            membership,
            settled: LogIndex(0),
            ticks,
            election_ticks: 10,
        }
    }

    fn said(what: u8, chain: Option<u8>) -> Attestation {
        Attestation {
            index: BARRIER,
            snapshot: Some([what; 32]),
            chain: chain.map(|chain| [chain; 16]),
            unable: false,
        }
    }

    #[test]
    fn a_majority_that_agrees_verifies_and_one_that_does_not_is_put_into_the_log_once() {
        let membership = membership();
        let mut attestations = Attestations::default();
        attestations.speak(said(1, Some(1)), None);
        assert!(attestations.compare(view(&membership, 1)).is_empty());
        assert_eq!(attestations.verified, LogIndex(0));
        attestations.hear(ReplicaId(2), vec![said(1, Some(1))], None);
        assert!(attestations.compare(view(&membership, 1)).is_empty());
        assert_eq!(attestations.verified, BARRIER);
        attestations.hear(ReplicaId(3), vec![said(2, Some(2))], None);
        let due = attestations.compare(view(&membership, 1));
        assert_eq!(due.len(), 1);
        attestations.note_proposed(BARRIER, due[0].reports.len());
        assert!(attestations.compare(view(&membership, 99)).is_empty());
    }

    #[test]
    fn what_a_member_says_before_its_leader_has_come_so_far_is_asked_for_again() {
        let membership = membership();
        let mut attestations = Attestations::default();
        let earlier = Attestation {
            index: LogIndex(BARRIER.0 - 1),
            ..said(1, Some(1))
        };
        attestations.speak(earlier, None);
        attestations.hear(ReplicaId(2), vec![earlier, said(1, Some(1))], None);
        attestations.speak(said(1, Some(1)), None);
        let after = attestations.is_owed_by(ReplicaId(2));
        assert_eq!(after, Some(earlier.index));
        attestations.hear(ReplicaId(2), vec![said(1, Some(1))], None);
        assert!(attestations.compare(view(&membership, 1)).is_empty());
        assert_eq!(attestations.verified, BARRIER);
    }

    #[test]
    fn who_stands_alone_waits_for_the_others_for_two_election_timeouts() {
        let membership = membership();
        let mut attestations = Attestations::default();
        attestations.speak(said(1, Some(1)), None);
        attestations.hear(ReplicaId(2), vec![said(2, Some(2))], None);
        assert!(attestations.compare(view(&membership, 5)).is_empty());
        assert_eq!(attestations.is_owed_by(ReplicaId(2)), None);
        assert_eq!(attestations.is_owed_by(ReplicaId(3)), Some(LogIndex(0)));
        assert!(attestations.compare(view(&membership, 24)).is_empty());
        assert_eq!(attestations.compare(view(&membership, 25)).len(), 1);
        // Whoever begins to lead asks anew.
        attestations.forget_reports(None);
        assert_eq!(attestations.is_owed_by(ReplicaId(2)), Some(LogIndex(0)));
        assert!(attestations.compare(view(&membership, 99)).is_empty());
    }

    #[test]
    fn only_the_newest_barriers_are_kept() {
        let mut attestations = Attestations::default();
        for index in 1..=KEPT as u64 + 2 {
            let said = Attestation {
                index: LogIndex(index),
                ..said(1, None)
            };
            attestations.speak(said, None);
        }
        assert_eq!(attestations.said_after(LogIndex(0)).len(), KEPT);
        assert_eq!(attestations.said_after(LogIndex(KEPT as u64)).len(), 2);
        assert_eq!(attestations.own_on(LogIndex(2)), None);
    }
}
