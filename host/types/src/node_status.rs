//! What a node and its groups say of themselves, and what a query answers.

use crate::id::{ComponentId, LogIndex, NodeId, Term};
use crate::machine::{Descriptor, Memory};
use crate::outcome::{GuestFault, Outcome};
use crate::status::Status;
use crate::trouble::{Trouble, Troubled};

/// How fresh the answer to a query must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// It reflects every command that was acknowledged, anywhere, before the query was asked. Needs a majority.
    #[default]
    Linearizable,
    /// It reflects some earlier state of the group, as this replica has it. Needs nobody else.
    Stale,
}

/// The answer to a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueryAnswer {
    /// What the machine answered.
    pub outcome: Outcome,
    /// Everything up to here is in the state that answered; often more is.
    pub index: LogIndex,
    /// Term of the replica when it was asked.
    pub term: Term,
}

/// What a node knows of its replica of one group.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct GroupStatus {
    /// The group's name.
    pub name: String,
    /// The component its machine runs; zero for a native machine.
    pub component: ComponentId,
    /// What the machine says of itself.
    pub machine: Descriptor,
    /// The linear memory that the machine has here and may have; none for a native machine.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// Why the replica is halted, if it is. It answers nothing any more; the rest of this is how it was then.
    pub halted: Option<String>,
    /// What is wrong with the replica here, if anything is.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// The replica, from the core.
    #[serde(flatten)]
    pub replica: Status,
}

/// What another machine made of the state of a group, beside the one that runs.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Rehearsal {
    /// Whether it could take the place of the one that runs.
    pub verdict: Verdict,
    /// The snapshot that it was restored from.
    pub snapshot: LogIndex,
    /// Bytes of that.
    pub restored_bytes: u64,
    /// Bytes that it saved again.
    pub saved_bytes: u64,
    /// Entries since the snapshot that it applied: at most 128, or 256 KiB.
    pub entries: u64,
    /// Whether `entries` is every entry since the snapshot; if not, the later ones were not applied.
    pub whole: bool,
    /// Commands in them.
    pub commands: u64,
    /// Outcomes other than those that clients were given.
    pub differing: u64,
    /// Index of the first entry with such an outcome.
    pub first_differing: Option<LogIndex>,
    /// Outcomes that are faults.
    pub faults: u64,
    /// As many were faults when they were given.
    pub former_faults: u64,
    /// Fuel of the entries.
    pub fuel: u64,
    /// Fuel of them in the machine that ran; 0 for a native one.
    pub former_fuel: u64,
}

/// How a [`Rehearsal`] ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It takes the state, and answers the same.
    #[default]
    Takes,
    /// It takes the state, and answers some commands otherwise.
    Differs,
    /// It fails on the state: an upgrade would be refused on every replica.
    Refuses {
        /// The call that failed.
        call: String,
        /// How.
        fault: GuestFault,
        /// The machine's own words.
        detail: Option<String>,
    },
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Groups with a replica here.
    pub groups: usize,
    /// Groups whose leader is here.
    pub leading: usize,
    /// Groups whose replica here is halted until somebody acts.
    pub halted: usize,
    /// Groups whose replica here is in trouble.
    #[serde(default)]
    pub troubled: Vec<Troubled>,
    /// Threads that own replicas.
    pub shards: usize,
    /// Requests without an answer yet.
    pub requests: usize,
    /// Messages for groups that are not here, or from a node they did not say.
    pub misdirected_messages: u64,
    /// Barriers at which replicas of a group were found to differ.
    #[serde(default)]
    pub divergences: u64,
    /// Messages of other nodes that replicas did not believe, and dropped.
    #[serde(default)]
    pub distrusted_messages: u64,
    /// Commands that were given up here, because every member of their group had stopped at them.
    #[serde(default)]
    pub given_up_commands: u64,
    /// Ticks in which commands or queries of a group waited for its quota of bytes, of all groups.
    #[serde(default)]
    pub quota_waits: u64,
    /// Ticks in which commands of a group waited so that members that are behind could catch up, of all groups.
    #[serde(default)]
    pub catch_up_waits: u64,
    /// Members that did not catch up and were left behind for a while, of all groups led here.
    #[serde(default)]
    pub left_behind: u64,
    /// Messages dropped because a shard was behind.
    pub dropped_messages: u64,
    /// Snapshots being received.
    pub receiving_snapshots: usize,
    /// Whether the node has stopped.
    pub stopped: bool,
    /// Why the node has failed, if it has.
    pub fault: Option<String>,
}
