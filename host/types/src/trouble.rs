//! What is wrong with a replica: one code, one sentence, and what comes next. Shown the same everywhere: in the status of the
//! group, `/readyz`, `skep group list`, metrics.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::activation::Overdue;
use crate::id::GroupId;
use crate::status::Health;

/// The kinds of trouble, the gravest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something is broken that no restart of the replica mends. It answers nothing until somebody acts.
    Halted,
    /// The file of its snapshot cannot be read, and no other node has a replica that could give it.
    Lost,
    /// The machine stopped for a reason of this node. The replica stores and votes, and starts again by itself.
    Faulted,
    /// The replicas of the group differ, and none of them has a majority.
    Suspended,
    /// A majority contradicts this replica, which takes their state.
    Quarantined,
    /// Its snapshot cannot be read, or its machine cannot go on from it. The replica stores and votes, and takes the snapshot of the leader.
    Damaged,
    /// The group cannot be brought up on this node yet.
    Starting,
    /// The group has waited for a while to go on with another component, and applies nothing meanwhile.
    Upgrading,
    /// Commands are refused because the machine failed on many in a row.
    Paused,
    /// It serves, but something is not as it should be.
    Degraded,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Halted,
        Self::Lost,
        Self::Faulted,
        Self::Suspended,
        Self::Quarantined,
        Self::Damaged,
        Self::Starting,
        Self::Upgrading,
        Self::Paused,
        Self::Degraded,
    ];

    /// A stable short name.
    pub fn code(self) -> &'static str {
        self.words().0
    }

    /// Whether it stays so until somebody acts.
    pub fn waits_for_somebody(self) -> bool {
        matches!(self, Self::Halted | Self::Lost)
    }

    /// The name, and what comes next, by itself or by an operator.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Halted => (
                "halted",
                "nothing mends it by itself: read this node's log, then restart the node, or remove this member and add it again",
            ),
            Self::Lost => (
                "lost",
                "put the file back from a backup and restart the node, or delete the group",
            ),
            Self::Faulted => ("faulted", "it starts again by itself"),
            Self::Suspended => (
                "suspended",
                "it goes on when more replicas answer, or with `skep group trust GROUP NODE`",
            ),
            Self::Quarantined => (
                "quarantined",
                "it takes the state of the majority by itself",
            ),
            Self::Damaged => ("damaged", "it takes the leader's by itself"),
            Self::Starting => ("starting", "it is tried again by itself"),
            Self::Upgrading => (
                "upgrading",
                "it goes on when a majority of its members is ready, at a deadline, or with `skep group abort-upgrade`",
            ),
            Self::Paused => ("paused", "see `skep group resume` and `skep group upgrade`"),
            Self::Degraded => ("degraded", "it goes on meanwhile"),
        }
    }
}

/// What is wrong with a replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// Of which kind.
    pub kind: Kind,
    /// What happened.
    pub text: String,
}

impl Trouble {
    /// What it is for a group that no other node has a replica of.
    pub fn of_the_only_one(self) -> Self {
        match self.kind {
            Kind::Damaged => Self::new(
                Kind::Lost,
                format!("{}, and no other node has a replica", self.text),
            ),
            _ => self,
        }
    }

    /// One of this kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, text }
    }

    /// What the core says of a replica that runs. `is_broken`: its machine would fail again however often it is started.
    /// `waits`: what its machine waits for.
    pub fn of(
        health: &Health,
        is_paused: bool,
        upgrade: Option<Overdue>,
        is_broken: bool,
        waits: Option<&str>,
    ) -> Option<Self> {
        if let (Health::Healthy | Health::Degraded { .. }, Some(upgrade)) = (health, upgrade) {
            let index = upgrade.index;
            let text = if upgrade.is_decided {
                format!("this node cannot do yet what was decided on the activation at {index}")
            } else {
                format!("the activation at {index} is not decided")
            };
            return Some(Self::new(Kind::Upgrading, text));
        }
        let (kind, text) = match health {
            Health::Faulted { reason } if is_broken => (Kind::Halted, reason.clone()),
            Health::Faulted { reason } => (Kind::Faulted, reason.clone()),
            Health::Suspended { index } => (
                Kind::Suspended,
                format!("the replicas differ at {index}, and none has a majority"),
            ),
            Health::Quarantined { index } => (
                Kind::Quarantined,
                format!("this replica differs from the majority at {index}"),
            ),
            Health::Damaged { index } => (
                Kind::Damaged,
                format!("its snapshot at {index} cannot be read or used"),
            ),
            Health::Healthy | Health::Degraded { .. } if waits.is_some() => {
                (Kind::Degraded, waits.unwrap_or_default().to_owned())
            }
            Health::Healthy | Health::Degraded { .. } if is_paused => (
                Kind::Paused,
                "the machine failed on many commands in a row".to_owned(),
            ),
            Health::Degraded { index, reason } => (
                Kind::Degraded,
                format!("it has no snapshot at {index}, so its log grows: {reason}"),
            ),
            Health::Healthy => return None,
        };
        Some(Self::new(kind, text))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, next) = self.kind.words();
        write!(f, "{code}: {}; {next}", self.text)
    }
}

/// A group with a replica in trouble.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Troubled {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// What is wrong here.
    pub trouble: Trouble,
}

impl fmt::Display for Troubled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "group {} ({}) is {}",
            self.group, self.name, self.trouble
        )
    }
}
