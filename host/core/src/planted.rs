//! Defects that a simulator switches on, to see that it would find them.
//!
//! Each stands in the very code path it spoils. Without the feature `planted` the question is a constant, and nothing of
//! this is in the program; with it, a build without debug assertions is refused.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("the feature `planted` is for simulations only, never for a release build");

/// A defect that can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Defect {
    /// Messages leave before the record they speak for is durable.
    SendBeforeSync,
    /// A replica counts its own entries as stored before they are, so that a commit may rest on fewer disks than a
    /// majority.
    AckBeforeSync,
    /// The vote is not in the record.
    VoteNotPersisted,
    /// When a leader's entries replace conflicting ones, what stood behind the conflict stays.
    ConflictingSuffixKept,
    /// After a restart some entries below the snapshot are applied again.
    DoubleApplyAfterRestart,
    /// An installed snapshot leaves the configuration of Raft as it was.
    SnapshotWithoutConfState,
    /// Messages of another life of the group are taken.
    StaleIncarnationAccepted,
    /// The host's section of a snapshot holds no sessions.
    SessionsMissingFromSnapshot,
    /// A leader answers reads without asking a majority whether it still leads.
    ReadWithoutQuorum,
    /// The log is cut above the snapshot that is to replace it.
    TruncatesAboveSnapshot,
    /// A leader's messages do not wait for the term they are of.
    TermGateOff,
    /// A replica that was removed goes on, and a leader is removed without handing over.
    RemovedLeaderServes,
    /// A proposal whose place another leader's entry took is answered as done.
    SupersededIsDone,
    /// A read does not wait until its index is applied.
    ReadBeforeApplied,
    /// Requests that a replica hands to the leader are numbered from 1 in every life.
    TokensRepeat,
    /// Of two decisions on an activation the last one that a replica sees counts.
    LastDecisionCounts,
    /// A majority is enough to give a command up, whatever the others have done.
    GivesUpByMajority,
    /// A replica vouches for what it has not applied in this life, as if it had had no other.
    VouchesForFormerLives,
    /// A leader rebuilds its machine at a barrier that leaves an image.
    RebuildsAtImage,
    /// A joiner is promoted whatever it has of the log.
    JoinerVotesAtOnce,
    /// The id of a replica that was removed is given to the next one that is added.
    ReplicaIdsRepeat,
    /// A follower that hears that its leader's process has ended makes the others vote, though they still hear the leader.
    GoneIsBelieved,
    /// A founder adopts what it would found, whether or not the others agree to it.
    FoundsUnagreed,
    /// A founder counts what others agreed to before it heard something else.
    AgreementsOutlast,
    /// A founder agrees to something else while it adopts.
    AdopterAgreesAnew,
}

impl Defect {
    /// Those of a replica.
    pub const ALL: [Self; 22] = [
        Self::SendBeforeSync,
        Self::AckBeforeSync,
        Self::VoteNotPersisted,
        Self::ConflictingSuffixKept,
        Self::DoubleApplyAfterRestart,
        Self::SnapshotWithoutConfState,
        Self::StaleIncarnationAccepted,
        Self::SessionsMissingFromSnapshot,
        Self::ReadWithoutQuorum,
        Self::TruncatesAboveSnapshot,
        Self::TermGateOff,
        Self::RemovedLeaderServes,
        Self::SupersededIsDone,
        Self::ReadBeforeApplied,
        Self::TokensRepeat,
        Self::LastDecisionCounts,
        Self::GivesUpByMajority,
        Self::VouchesForFormerLives,
        Self::RebuildsAtImage,
        Self::JoinerVotesAtOnce,
        Self::ReplicaIdsRepeat,
        Self::GoneIsBelieved,
    ];

    /// Those of founding a cluster, which is no matter of any group.
    pub const OF_FOUNDERS: [Self; 3] = [
        Self::FoundsUnagreed,
        Self::AgreementsOutlast,
        Self::AdopterAgreesAnew,
    ];
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Defect>> = const { std::cell::Cell::new(None) };
}

/// Switches a defect on, or all off, for the replicas that this thread drives.
#[cfg(feature = "planted")]
pub fn plant(defect: Option<Defect>) {
    PLANTED.set(defect);
}

/// Whether the defect is on.
#[cfg(feature = "planted")]
pub(crate) fn has(defect: Defect) -> bool {
    PLANTED.get() == Some(defect)
}

/// Whether the defect is on: never.
#[cfg(not(feature = "planted"))]
pub(crate) const fn has(_: Defect) -> bool {
    false
}
