//! What a replica did up to a barrier, in a form that replicas can compare, and how a majority is found.

use std::collections::BTreeMap;

use bytes::Bytes;
use twox_hash::XxHash3_128;

use crate::id::{LogIndex, ReplicaId};
use crate::outcome::Outcome;
use crate::payload::Verdict;
use crate::state::Membership;

/// A sha256.
pub type Digest = [u8; 32];

/// The value of a [`Chain`]: an XXH3 of 128 bits, the lower byte first.
///
/// It is to find accidents: who makes two replies of one hash on purpose hides the trouble of their own group only. A replica
/// that hashes replies of a megabyte for one group keeps others waiting, and sha256 took a third of the processors there.
pub type Link = [u8; 16];

/// What a replica says of one barrier. Replicas that ran the same code on the same log say the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attestation {
    /// Index of the barrier.
    pub index: LogIndex,
    /// The snapshot file it wrote there; none if the machine could not save itself.
    pub snapshot: Option<Digest>,
    /// [`Chain`] over the entries since the barrier before; none if this replica did not run them in this life.
    pub chain: Option<Link>,
    /// Its node could take no image, here or at the barrier before: the snapshot or the chain that is missing here is not
    /// known to a replica that did run the entries.
    pub unable: bool,
}

impl Attestation {
    /// Whether both may come from replicas that did the same.
    pub fn agrees(&self, other: &Self) -> bool {
        let chains = self.chain.zip(other.chain);
        let says_nothing_of_snapshots = self.is_without_image() || other.is_without_image();
        self.index == other.index
            && (self.snapshot == other.snapshot || says_nothing_of_snapshots)
            && chains.is_none_or(|(one, two)| one == two)
    }

    /// Whether it leaves open which snapshot is the right one.
    pub fn is_without_image(&self) -> bool {
        self.unable && self.snapshot.is_none()
    }
}

/// A hash over every entry that the machine saw since the last snapshot: its index, its bytes, the outcomes and the fuel.
///
/// Equal snapshots are not enough: a machine may answer differently and save the same. Fuel is the sharpest part of it, since
/// nearly any difference on a heap changes the number of instructions that some later command takes.
///
/// An image is written while its machine goes on. So the snapshot that a chain begins with may come to be known after the first
/// deeds, or never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Of the snapshot; of zeros before the first one.
    origin: Option<Link>,
    deeds: Link,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            origin: Some(Link::default()),
            deeds: Link::default(),
        }
    }
}

impl Chain {
    /// The chain behind a snapshot, from which all replicas go on.
    pub fn behind(snapshot: Digest) -> Self {
        let mut chain = Self::behind_unknown();
        chain.begins_with(snapshot);
        chain
    }

    /// The chain behind a snapshot of which nothing is known yet.
    pub fn behind_unknown() -> Self {
        Self {
            origin: None,
            deeds: Link::default(),
        }
    }

    /// Now it is known.
    pub fn begins_with(&mut self, snapshot: Digest) {
        self.origin = Some(link(&snapshot));
    }

    /// Adds what an entry did, of which [`Deed::of`] tells.
    pub fn extend(&mut self, index: LogIndex, deed: Deed) {
        self.deeds = joined(self.deeds, 0, index.0, deed.0);
    }

    /// Its value; none while it is not known what it begins with.
    pub fn link(self) -> Option<Link> {
        self.origin.map(|origin| joined(origin, 6, 0, self.deeds))
    }
}

/// A hash over one entry, its outcomes and the fuel.
///
/// Both may be megabytes, so it is made where the machine runs: the thread of the replicas has other groups to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deed(Link);

impl Deed {
    /// What an entry did.
    pub fn of(entry: &[u8], outcomes: &[Outcome], fuel: u64) -> Self {
        let entry = joined(Link::default(), 1, fuel, link(entry));
        let deed = outcomes.iter().fold(entry, |before, outcome| {
            let (tag, number, bytes): (u8, u64, &[u8]) = match outcome {
                Outcome::Reply(reply) => (2, 0, reply),
                Outcome::Rejected { code, message } => (3, (*code).into(), message.as_bytes()),
                Outcome::Fault(fault) => (4, fault.code().into(), &[]),
                // Codes, not sentences: these are not the same in every release.
                Outcome::Refused { code, .. } => (5, (*code).into(), &[]),
            };
            joined(before, tag, number, link(bytes))
        });
        Self(deed)
    }
}

fn link(bytes: &[u8]) -> Link {
    XxHash3_128::oneshot(bytes).to_le_bytes()
}

/// A hash over parts that cannot be taken for others: each has its place.
fn joined(before: Link, tag: u8, number: u64, part: Link) -> Link {
    let mut all = [0; 41];
    all[..16].copy_from_slice(&before);
    all[16] = tag;
    all[17..25].copy_from_slice(&number.to_le_bytes());
    all[25..].copy_from_slice(&part);
    link(&all)
}

/// What the replicas' words come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// A majority of the voters says this.
    Majority(Attestation),
    /// No majority says the same.
    Undecided,
}

impl Verdict {
    pub(crate) fn of(index: LogIndex, reports: &[(ReplicaId, Attestation)]) -> Self {
        fn bytes<const N: usize>(hash: Option<[u8; N]>) -> Bytes {
            hash.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(&hash))
        }
        Self {
            index: index.0,
            trusted: 0,
            reports: reports
                .iter()
                .map(|(replica, said)| crate::payload::Report {
                    replica: replica.0,
                    snapshot: bytes(said.snapshot),
                    chain: bytes(said.chain),
                    unable: said.unable,
                })
                .collect(),
        }
    }

    /// The reports that count.
    pub(crate) fn testimony(&self, membership: &Membership) -> Vec<(ReplicaId, Attestation)> {
        let mut reports = self.reports();
        reports.retain(|(replica, said)| counts(*replica, said, membership));
        reports
    }

    /// The reports as they were made.
    pub(crate) fn reports(&self) -> Vec<(ReplicaId, Attestation)> {
        self.reports
            .iter()
            .map(|report| {
                let said = Attestation {
                    index: LogIndex(self.index),
                    snapshot: report.snapshot[..].try_into().ok(),
                    chain: report.chain[..].try_into().ok(),
                    unable: report.unable,
                };
                (ReplicaId(report.replica), said)
            })
            .collect()
    }

    /// Whether what a replica said is wrong, if this is right. An operator may trust a replica that has no image: then everybody
    /// else takes what that one has, since it does not say with whom it agrees.
    pub(crate) fn refutes(
        &self,
        replica: ReplicaId,
        said: &Attestation,
        right: &Attestation,
    ) -> bool {
        let trusts_another = self.trusted != 0 && self.trusted != replica.0;
        !said.agrees(right) || trusts_another && right.is_without_image()
    }

    /// Notes who is wrong if this is right, also of barriers that they have spoken of since. It stands at `at` in the log.
    pub(crate) fn contradict(
        &self,
        right: &Attestation,
        at: LogIndex,
        membership: &mut Membership,
    ) {
        let reports: BTreeMap<_, _> = self.reports().into_iter().collect();
        let members: Vec<_> = membership.members().keys().copied().collect();
        for replica in members {
            let contradicted = match reports.get(&replica) {
                Some(said) => self.refutes(replica, said, right),
                None => self.trusted != 0,
            };
            if contradicted {
                membership.contradict(replica, at);
            }
        }
    }

    /// The same on every replica that reads it under the same membership.
    pub(crate) fn judge(&self, membership: &Membership) -> Judgement {
        let reports = self.testimony(membership);
        let trusted = reports
            .iter()
            .find(|(replica, _)| replica.0 == self.trusted);
        match trusted {
            Some((_, said)) => Judgement::Majority(*said),
            None => judge(&reports, membership),
        }
    }
}

/// Whether a report is a member's, and not on a state that the log has called wrong since.
pub(crate) fn counts(replica: ReplicaId, said: &Attestation, membership: &Membership) -> bool {
    let member = membership.member(replica);
    member.is_some_and(|member| member.contradicted < said.index)
}

/// Whether nobody contradicts anybody.
pub(crate) fn all_agree(reports: &[(ReplicaId, Attestation)]) -> bool {
    reports
        .iter()
        .all(|(_, said)| reports.iter().all(|(_, other)| said.agrees(other)))
}

/// Looks for what a majority of the voters says. Only who ran the entries itself is counted: a replica that knows the
/// snapshot alone may have it from the very one whose word is in question. If a majority agrees on the snapshot and not
/// on the chain, the snapshot is judged: from equal ones all go on equally.
///
/// Who could take no image is counted for its chain, with those who say the same of that, unless they differ among themselves:
/// then nobody knows which of them it is with.
pub(crate) fn judge(reports: &[(ReplicaId, Attestation)], membership: &Membership) -> Judgement {
    let voters: Vec<ReplicaId> = membership.voters().collect();
    let said = reports.iter().filter(|(by, _)| voters.contains(by));
    let said = said.map(|(_, said)| *said);
    let whole: Vec<_> = said.clone().filter(|said| said.chain.is_some()).collect();
    let snapshots = said.filter(|said| said.chain.is_some() || said.unable);
    let snapshots = snapshots.filter(|said| !said.is_without_image());
    let snapshots = snapshots.map(|said| Attestation {
        chain: None,
        ..said
    });
    let majority = majority_of(&whole, voters.len());
    majority
        .or_else(|| majority_of(&snapshots.collect::<Vec<_>>(), voters.len()))
        .map_or(Judgement::Undecided, Judgement::Majority)
}

/// What more than half of so many say: the fullest word of those that agree with each other, and with nobody else.
fn majority_of(said: &[Attestation], voters: usize) -> Option<Attestation> {
    let agrees_with = |one: &Attestation| {
        let other = said.iter().map(|other| other.agrees(one));
        other.collect::<Vec<bool>>()
    };
    let is_majority = |candidate: &&Attestation| {
        let with = agrees_with(candidate);
        let same = said.iter().filter(|other| agrees_with(other) == with);
        same.count() > voters / 2
    };
    let (open, full): (Vec<_>, Vec<_>) = said.iter().partition(|said| said.is_without_image());
    full.into_iter().chain(open).find(is_majority).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use crate::outcome::ChangeKind;

    fn membership(voters: u64) -> Membership {
        let mut membership = Membership::default();
        for id in 1..=voters {
            let data = Bytes::new();
            assert!(membership.apply(
                ChangeKind::AddVoter,
                ReplicaId(id),
                NodeId(id),
                &data,
                false
            ));
        }
        membership
    }

    fn said(snapshot: u8, chain: Option<u8>) -> Attestation {
        Attestation {
            index: LogIndex(9),
            snapshot: Some([snapshot; 32]),
            chain: chain.map(|chain| [chain; 16]),
            unable: false,
        }
    }

    /// Of a replica that could take no image: here, or at the barrier before.
    fn unable(snapshot: Option<u8>, chain: Option<u8>) -> Attestation {
        Attestation {
            snapshot: snapshot.map(|snapshot| [snapshot; 32]),
            unable: true,
            ..said(0, chain)
        }
    }

    fn judged(voters: u64, reports: &[Attestation]) -> Judgement {
        let reports: Vec<_> = (1..).map(ReplicaId).zip(reports.iter().copied()).collect();
        let verdict = Verdict::of(LogIndex(9), &reports);
        assert_eq!(verdict.reports(), reports, "survives the log");
        verdict.judge(&membership(voters))
    }

    #[test]
    fn a_majority_of_the_voters_decides() {
        let (one, two) = (said(1, Some(1)), said(2, Some(2)));
        assert_eq!(judged(3, &[one, one, two]), Judgement::Majority(one));
        assert_eq!(judged(3, &[two, one, one]), Judgement::Majority(one));
        assert_eq!(judged(3, &[one, two]), Judgement::Undecided);
        assert_eq!(judged(2, &[one, two]), Judgement::Undecided);
        assert_eq!(
            judged(4, &[one, one, two]),
            Judgement::Undecided,
            "of four, three decide"
        );
        assert_eq!(judged(5, &[one, two, one, one]), Judgement::Majority(one));
        assert_eq!(
            judged(3, &[one, two, said(3, Some(3))]),
            Judgement::Undecided
        );
        // The fourth and fifth do not vote.
        assert_eq!(
            judged(3, &[one, one, two, two, two]),
            Judgement::Majority(one)
        );
    }

    #[test]
    fn a_chain_counts_where_it_is_known() {
        let (whole, other) = (said(1, Some(1)), said(1, Some(2)));
        let half = said(1, None);
        assert_eq!(
            judged(3, &[whole, whole, other]),
            Judgement::Majority(whole)
        );
        // Who may have been given its snapshot is no witness.
        assert_eq!(judged(3, &[whole, half, half]), Judgement::Undecided);
        let two = said(2, Some(1));
        assert_eq!(judged(3, &[whole, half, two]), Judgement::Undecided);
        // Either chain may be the true one; the snapshot is.
        assert_eq!(judged(3, &[whole, other, half]), Judgement::Majority(half));
        assert!(half.agrees(&whole) && !other.agrees(&whole));
    }

    #[test]
    fn who_could_take_no_image_contradicts_no_snapshot_and_is_heard_on_the_chain() {
        let (one, two) = (said(1, Some(1)), said(2, Some(2)));
        let open = unable(None, Some(1));
        assert!(one.agrees(&open) && !two.agrees(&open));
        assert!(unable(None, None).agrees(&two));
        // It is with those who did the same, and the fullest word counts.
        for reports in [[one, open, two], [open, one, two], [two, open, one]] {
            assert_eq!(judged(3, &reports), Judgement::Majority(one));
        }
        // Which of two snapshots it has, nobody knows.
        let other = said(2, Some(1));
        assert_eq!(judged(3, &[one, open, other]), Judgement::Undecided);
        assert_eq!(
            judged(5, &[one, open, other, one, one]),
            Judgement::Majority(one)
        );
        // Its chain may be the wrong one.
        let lone = unable(None, Some(2));
        assert_eq!(judged(3, &[lone, one, one]), Judgement::Majority(one));
        assert_eq!(judged(3, &[lone, one]), Judgement::Undecided);
        // Nobody has an image.
        assert_eq!(judged(3, &[open, open, lone]), Judgement::Majority(open));
        // Who says nothing is no witness.
        let silent = unable(None, None);
        assert_eq!(judged(3, &[one, silent, silent]), Judgement::Undecided);
    }

    #[test]
    fn who_had_no_image_at_the_barrier_before_is_heard_on_the_snapshot() {
        let (one, two) = (said(1, Some(1)), said(2, Some(2)));
        let again = unable(Some(1), None);
        let right = Attestation { chain: None, ..one };
        assert_eq!(judged(3, &[one, two, again]), Judgement::Majority(right));
        assert_eq!(judged(3, &[one, one, again]), Judgement::Majority(one));
        assert_eq!(judged(3, &[one, again]), Judgement::Majority(right));
        // One that began with the snapshot is not.
        let given = said(1, None);
        assert_eq!(judged(3, &[one, two, given]), Judgement::Undecided);
    }

    #[test]
    fn everybody_takes_what_a_trusted_replica_without_an_image_has() {
        let (trusted, other) = (unable(None, Some(1)), said(2, Some(1)));
        let reports = [(ReplicaId(1), trusted), (ReplicaId(2), other)];
        let verdict = Verdict {
            trusted: 1,
            ..Verdict::of(LogIndex(9), &reports)
        };
        assert_eq!(verdict.judge(&membership(2)), Judgement::Majority(trusted));
        assert!(verdict.refutes(ReplicaId(2), &other, &trusted));
        assert!(!verdict.refutes(ReplicaId(1), &trusted, &trusted));
        let verdict = Verdict {
            trusted: 0,
            ..verdict
        };
        assert!(!verdict.refutes(ReplicaId(2), &other, &trusted));
    }

    #[test]
    fn an_operator_may_decide() {
        let said_both = [said(1, Some(1)), said(2, Some(2))];
        let reports: Vec<_> = (1..).map(ReplicaId).zip(said_both).collect();
        let verdict = Verdict {
            trusted: 2,
            ..Verdict::of(LogIndex(9), &reports)
        };
        assert_eq!(
            verdict.judge(&membership(2)),
            Judgement::Majority(said(2, Some(2)))
        );
    }

    // P-23
    #[test]
    fn the_chain_tells_everything_apart() {
        let reply = |bytes: &'static str| Outcome::Reply(Bytes::from_static(bytes.as_bytes()));
        let chain = |index, entry: &[u8], outcomes: &[Outcome], fuel| {
            let mut chain = Chain::behind([7; 32]);
            chain.extend(LogIndex(index), Deed::of(entry, outcomes, fuel));
            chain.link().expect("what it begins with is known")
        };
        let all = [
            chain(1, b"e", &[reply("a"), reply("b")], 5),
            chain(2, b"e", &[reply("a"), reply("b")], 5),
            chain(1, b"f", &[reply("a"), reply("b")], 5),
            chain(1, b"e", &[reply("ab"), reply("")], 5),
            chain(1, b"e", &[reply("a"), reply("b")], 6),
            chain(1, b"e", &[reply("a")], 5),
            chain(
                1,
                b"e",
                &[Outcome::Rejected {
                    code: 1,
                    message: "a".into(),
                }],
                5,
            ),
            chain(
                1,
                b"e",
                &[Outcome::Rejected {
                    code: 2,
                    message: "a".into(),
                }],
                5,
            ),
            chain(
                1,
                b"e",
                &[Outcome::Fault(crate::outcome::GuestFault::Exit)],
                5,
            ),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());

        // The snapshot may come to be known later; before that there is nothing to compare.
        let mut late = Chain::behind_unknown();
        late.extend(LogIndex(1), Deed::of(b"e", &[reply("a")], 5));
        assert_eq!(late.link(), None);
        late.begins_with([7; 32]);
        assert_eq!(late.link(), Some(chain(1, b"e", &[reply("a")], 5)));
        late.begins_with([8; 32]);
        assert_ne!(late.link(), Some(chain(1, b"e", &[reply("a")], 5)));

        let refused = |code, message: &str| {
            let message = message.to_owned();
            chain(1, b"e", &[Outcome::Refused { code, message }], 5)
        };
        assert_eq!(refused(1, "no"), refused(1, "expected value at line 1"));
        assert_ne!(refused(1, "no"), refused(2, "no"));
        assert!(!all.contains(&refused(1, "a")));
    }
}
