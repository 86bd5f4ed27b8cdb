//! A forced recovery of one data directory: what an operator decided about a cluster that lost its majority, carried out.
//!
//! The identity file is the point of no return and the end: it says that a recovery is under way before the log is touched,
//! so that no node starts on what is half done, and that the directory belongs to the cluster's next life when all is durable.
//! Whoever is killed in between is run again, with the same orders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_core::founders::{ClusterIdentity, Founding};
use skep_core::id::{NodeId, Term};
use skep_core::recovery::{NoStart, NoSurvey, Survey};
use skep_log::{
    GroupKey, LogError, LogOptions, LogPosition, Recovered, RecoveredGroup, SnapshotStore, Store,
    Vfs,
};

use crate::convert;

/// What is to be done to a directory.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The life of the cluster that it belongs to.
    pub former: ClusterIdentity,
    /// The life that it is to belong to.
    pub founding: Founding,
    /// What was in its log when that was decided; see [`position`].
    pub position: [u8; 32],
    /// The groups that start from this directory's replica.
    pub starts: Vec<Start>,
}

/// A group that starts from one replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    /// Which life of which group.
    pub key: GroupKey,
    /// Where the replica's log ended when that was decided.
    pub last: LogPosition,
    /// The term of what is appended.
    pub term: u64,
    /// The nodes whose replicas remain members.
    pub stay: BTreeSet<NodeId>,
    /// Commands that are committed behind all else.
    pub commands: Vec<Bytes>,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carried {
    /// It is done.
    Out,
    /// It was done before; nothing was changed.
    OutBefore,
}

/// Why a recovery is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The directory cannot be read or written, or is in use.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The directory belongs to another cluster, or to another life of it, than that which the plan is about.
    #[error(
        "{} belongs to {found}, and the plan is about {planned}. Look at the directory again (`skep recover describe`)",
        .dir.display()
    )]
    Elsewhere {
        /// The directory.
        dir: PathBuf,
        /// What it belongs to.
        found: String,
        /// What it should belong to.
        planned: String,
    },
    /// Something happened in the directory since the plan was made.
    #[error(
        "{} is not as it was when the plan was made: a node ran on it since. Describe all directories again, and make another plan",
        .dir.display()
    )]
    Changed {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory has no replica of the group.
    #[error("{} has no replica of {key}, which should start from it", .dir.display())]
    NoReplica {
        /// The directory.
        dir: PathBuf,
        /// The group.
        key: GroupKey,
    },
    /// The replica is of no use.
    #[error("the replica of {key} is of no use: {source}")]
    NoSurvey {
        /// The group.
        key: GroupKey,
        /// Why.
        source: NoSurvey,
    },
    /// The group cannot start from the replica.
    #[error("{key} cannot start from the replica that was chosen: {source}")]
    NoStart {
        /// The group.
        key: GroupKey,
        /// Why.
        source: NoStart,
    },
}

/// A digest of what a log says of all replicas: where each stands, and who is gone. It changes with whatever a node that runs
/// on the directory makes durable.
pub fn position(recovered: &Recovered) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut words = |words: &[u64]| {
        for word in words {
            hash.update(word.to_le_bytes());
        }
    };
    words(&[recovered.groups.len() as u64]);
    for group in &recovered.groups {
        let (key, state, last) = (group.key, group.hard_state, end(group));
        let snapshot = group.snapshot.as_ref().map(|mark| mark.position);
        let LogPosition { index, term } = snapshot.unwrap_or_default();
        words(&[key.group, key.incarnation, group.replica]);
        words(&[state.term, state.vote, state.commit]);
        words(&[last.index, last.term, index, term]);
    }
    let every = recovered.tombstones.iter().map(|key| (key, u64::MAX));
    let removed = recovered.removed_replicas.iter();
    for (key, replica) in every.chain(removed.map(|(key, replica)| (key, *replica))) {
        words(&[key.group, key.incarnation, replica]);
    }
    hash.finalize().into()
}

/// The last entry of a replica.
pub fn end(group: &RecoveredGroup) -> LogPosition {
    let last = group.entries.last();
    last.map_or(group.truncated, |last| LogPosition {
        index: last.index,
        term: last.term,
    })
}

/// Where a replica stands; reads the whole of its snapshot, as a start does.
///
/// # Errors
/// [`RecoveryError::NoSurvey`] if it is of no use; [`RecoveryError::Log`] if its snapshot is, and its log does not begin with
/// its group.
pub fn survey(snapshots: &SnapshotStore, group: &RecoveredGroup) -> Result<Survey, RecoveryError> {
    let key = group.key;
    let file = group
        .snapshot
        .as_ref()
        .map(|mark| snapshots.open(key, mark));
    let state = match file.transpose() {
        Ok(file) => file.map(|file| file.meta().state.clone()),
        // As at a start: a log that holds everything needs no snapshot.
        Err(error) if error.is_lost_snapshot() && group.truncated.index == 0 => None,
        Err(error) => return Err(error.into()),
    };
    let recovered = convert::recovered(group.clone(), state)?;
    Survey::of(&recovered).map_err(|source| RecoveryError::NoSurvey { key, source })
}

/// Carries a recovery out in a directory. Killed at any point and run again with the same orders, it goes on; no node starts
/// on the directory before it is done.
///
/// # Errors
/// [`RecoveryError`]. Before the directory was found as it was planned nothing is changed.
pub fn carry_out(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    orders: &Orders,
) -> Result<Carried, RecoveryError> {
    let mut store = Store::open_for_recovery(vfs, dir)?;
    let (known, was_begun) = (
        store.identity().founding.clone(),
        store.identity().is_recovering,
    );
    let is_planned = known.as_ref() == Some(&orders.founding);
    if is_planned && !was_begun {
        return Ok(Carried::OutBefore);
    }
    let known = known.map(|known| known.identity());
    if !is_planned && (known != Some(orders.former) || was_begun) {
        let unfounded = || "no cluster".to_owned();
        let found = known.map_or_else(unfounded, |known| format!("cluster {}", known.short()));
        return Err(RecoveryError::Elsewhere {
            dir: dir.to_owned(),
            found,
            planned: format!("cluster {}", orders.former.short()),
        });
    }
    let changed = || RecoveryError::Changed {
        dir: dir.to_owned(),
    };
    let (mut log, recovered) = store.open_log(vfs, LogOptions::default())?;
    if !is_planned && position(&recovered) != orders.position {
        return Err(changed());
    }
    let snapshots = SnapshotStore::open_dir(Arc::clone(vfs), &store.snapshot_dir())?;
    // All of them before the first is written: what cannot be done is found while nothing is.
    let mut records = Vec::new();
    for start in &orders.starts {
        let key = start.key;
        let group = recovered.groups.iter().find(|group| group.key == key);
        let group = group.ok_or_else(|| RecoveryError::NoReplica {
            dir: dir.to_owned(),
            key,
        })?;
        // It was written before this was killed; nobody else can have an entry of that term.
        if is_planned && end(group).term == start.term {
            continue;
        }
        if end(group) != start.last {
            return Err(changed());
        }
        let (term, plan) = (Term(start.term), seed(&orders.founding, key));
        let persist = survey(&snapshots, group)?
            .start(term, &start.stay, &plan, start.commands.clone())
            .map_err(|source| RecoveryError::NoStart { key, source })?;
        records.push(convert::record(key, persist));
    }
    store.begin_recovery(vfs, &orders.founding)?;
    for record in &records {
        log.append(record)?;
    }
    log.close()?;
    store.end_recovery(vfs)?;
    Ok(Carried::Out)
}

/// What the entropy of a group's new entries is made of.
fn seed(founding: &Founding, key: GroupKey) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(founding.identity().0);
    hash.update(key.group.to_le_bytes());
    hash.update(key.incarnation.to_le_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
