//! How a replica is set up, and the limits it keeps.

use bytes::Bytes;

use crate::deployment::{Deployment, PROFILE_BYTES_MAX};
use crate::id::{GroupId, Incarnation, NodeId, ReplicaId};
use crate::state::MEMBER_DATA_BYTES_MAX;

/// Most members a group may have, learners included.
pub const MEMBERS_MAX: usize = 256;
/// Most of them that vote; an argument against more is the quorum each commit waits for.
pub const VOTERS_MAX: usize = 63;

/// One initial voter of a group (`Peer` of the seed package).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its node.
    pub node: NodeId,
    /// Application bytes for `apply-conf-change`.
    pub data: Bytes,
}

/// The configuration of one replica.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub group: GroupId,
    /// The life of the group.
    pub incarnation: Incarnation,
    /// The node this replica is on.
    pub node: NodeId,
    /// The initial voters, identical on each of them; their order does not matter. Empty on a node that joins later
    /// and waits to be contacted. Ignored when the replica is recovered: its log knows.
    pub members: Vec<Member>,
    /// The initial voter that stands for election as soon as the group is founded, the same on each of them. None where they
    /// wait for the first timeout to end.
    pub first_leader: Option<NodeId>,
    /// So many of them vote from the beginning, those with the lowest ids of nodes; the others begin as learners. The same on
    /// each of them.
    pub founding_voters: usize,
    /// Replicas of this life of the group up to here were removed from this node. A joiner takes no id from among them:
    /// a late message to a former replica must not make a new one of its name.
    pub removed_through: ReplicaId,
    /// Bytes for the machine's `init`.
    pub init: Bytes,
    /// What the group runs from its first entry on; the same on every replica. None for a machine that is never exchanged
    /// and knows no quota.
    pub deployment: Option<Deployment>,
    /// Ticks without a leader before a replica campaigns; the real timeout lies between this and twice this.
    pub election_ticks: u32,
    /// Ticks between heartbeats of a leader.
    pub heartbeat_ticks: u32,
    /// Append messages in flight to one follower.
    pub max_in_flight: usize,
    /// Bytes of entries in one append message; one entry is always sent.
    pub max_message_bytes: u64,
    /// Entries after a snapshot that make the leader propose a barrier.
    pub snapshot_entries: u64,
    /// Keys election timeouts, the entropy of entries, and the tokens of what this replica asks others. Must be another
    /// number at each start: an answer to a question of a former life would be taken for one of this life.
    pub seed: u64,
    /// The wall clock when the replica is made, in nanoseconds since the Unix epoch. A group may have a leader, and stamp an entry,
    /// before its first tick.
    pub now: u64,
    /// Limits.
    pub limits: Limits,
}

impl GroupConfig {
    /// A configuration with the defaults.
    pub fn new(group: GroupId, incarnation: Incarnation, node: NodeId) -> Self {
        Self {
            group,
            incarnation,
            node,
            members: Vec::new(),
            first_leader: None,
            founding_voters: VOTERS_MAX,
            removed_through: ReplicaId(0),
            init: Bytes::new(),
            deployment: None,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_in_flight: 256,
            max_message_bytes: 1 << 20,
            snapshot_entries: 8192,
            seed: 0,
            now: 0,
            limits: Limits::default(),
        }
    }

    /// Checks every field; names the first that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field: &'static str, reason: String| {
            Err(ConfigError {
                group: self.group,
                field,
                reason,
            })
        };
        if self.incarnation.0 == 0 {
            return wrong("incarnation", "must not be 0".into());
        }
        if self.node.0 == 0 {
            return wrong("node", "0 names no node".into());
        }
        if self.heartbeat_ticks == 0 {
            return wrong("heartbeat_ticks", "must be at least 1".into());
        }
        if self.election_ticks <= self.heartbeat_ticks {
            return wrong(
                "election_ticks",
                format!(
                    "{} must be more than heartbeat_ticks ({})",
                    self.election_ticks, self.heartbeat_ticks
                ),
            );
        }
        if self.max_in_flight == 0 {
            return wrong("max_in_flight", "must be at least 1".into());
        }
        if self.snapshot_entries == 0 {
            return wrong("snapshot_entries", "must be at least 1".into());
        }
        if self.members.len() > MEMBERS_MAX {
            return wrong("members", format!("at most {MEMBERS_MAX}"));
        }
        if !(1..=VOTERS_MAX).contains(&self.founding_voters) {
            return wrong("founding_voters", format!("must be 1 to {VOTERS_MAX}"));
        }
        let is_long = |member: &Member| member.data.len() > MEMBER_DATA_BYTES_MAX;
        if self.members.iter().any(is_long) {
            let reason = format!("at most {MEMBER_DATA_BYTES_MAX} bytes of data each");
            return wrong("members", reason);
        }
        let deployment = self.deployment.as_ref();
        if deployment.is_some_and(|deployment| deployment.profile.len() > PROFILE_BYTES_MAX) {
            let reason = format!("its profile has at most {PROFILE_BYTES_MAX} bytes");
            return wrong("deployment", reason);
        }
        let mut nodes: Vec<_> = self.members.iter().map(|member| member.node).collect();
        nodes.sort_unstable();
        if nodes.first() == Some(&NodeId(0)) {
            return wrong("members", "node id 0 names no node".into());
        }
        if nodes.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("members", "a node is named twice".into());
        }
        let is_no_member = |node: &NodeId| nodes.binary_search(node).is_err();
        if let Some(first) = self.first_leader.filter(is_no_member)
            && !nodes.is_empty()
        {
            return wrong("first_leader", format!("node {first} is no initial voter"));
        }
        if !nodes.is_empty() && is_no_member(&self.node) {
            return wrong(
                "members",
                format!(
                    "node {} is not among them; leave them empty to join later",
                    self.node
                ),
            );
        }
        Ok(())
    }
}

/// What a replica refuses to hold more of. Reaching one gives an error to the caller, never a larger queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of one command. A command must fit into an entry, an entry into a frame.
    pub command_bytes: u64,
    /// Bytes packed into one entry: large enough that headers and syncs are shared by thousands of commands, small
    /// enough that one append does not hold a heartbeat's connection up.
    pub entry_bytes: u64,
    /// Commands packed into one entry.
    pub entry_commands: usize,
    /// Bytes of proposals that wait to be packed.
    pub queued_bytes: u64,
    /// Proposals that wait to be packed.
    pub queued_proposals: usize,
    /// Bytes in a second of commands and replies longer than [`SHORT`](crate::allowance::SHORT), where the group's
    /// [`Quota`](crate::deployment::Quota) names no bytes; 0 is no limit.
    pub long_bytes_per_second: u64,
    /// Bytes of committed entries the machine has not applied yet; a leader stops packing above it, a follower stops taking
    /// appends of what is committed already, and any, if its machine has failed.
    pub unapplied_bytes: u64,
    /// Bytes of entries proposed and not yet committed.
    pub uncommitted_bytes: u64,
    /// Queries that wait for a read index or for the machine.
    pub queued_queries: usize,
    /// Ticks until an open proposal or query is answered `Unknown` or `NoLeader`.
    pub request_ticks: u32,
    /// Ticks after which a leader gives up an activation for which no majority is ready.
    pub activation_ticks: u32,
    /// Bytes of log since the last snapshot that make the leader propose a barrier, at the least. Above it the bound is
    /// four times the snapshot. While barriers take long it may be twice the bound.
    pub barrier_log_bytes_min: u64,
    /// The same, at the most, unless the snapshot is larger: then as many bytes as it has, up to four times this. The machine
    /// keeps the commands since in memory.
    pub barrier_log_bytes_max: u64,
    /// Bytes of the newest entries that stay in memory when they are processed. Older ones are read back from the files
    /// of the log for members that lack them.
    pub log_memory_bytes: u64,
    /// Bytes of log behind a snapshot that are kept for members that are a little behind, so that they need no snapshot.
    pub log_kept_bytes: u64,
    /// Bytes of log behind a snapshot that are kept for members that are catching up, at the most.
    pub log_retained_bytes: u64,
    /// Ticks for which a member may be behind without coming nearer; then it is left behind.
    pub catch_up_ticks: u32,
    /// The share of what is usual, in percent, that a leader takes of its clients at the least while a member is behind and
    /// does not come nearer. 100 holds nothing back.
    pub catch_up_share_percent: u32,
    /// Fuel since the last barrier that makes the leader propose one: the cost of a rebuild.
    pub barrier_fuel: u64,
    /// Bytes of a snapshot of the saved form from which on a leader would rather have images: saving and restoring them takes
    /// long.
    pub barrier_image_bytes: u64,
    /// Bytes of memory above which it is worth a barrier of the saved form to have it compacted, if it is more than four times
    /// the snapshot of that form.
    pub barrier_compaction_bytes: u64,
    /// Rebuilds of the leader's machine since the last barrier that make the leader propose one: each runs again what came since.
    pub barrier_rebuilds: u64,
    /// Commands in a row on which the machine fails that make the leader pause the group; 0 is never.
    pub pause_faults: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command_bytes: 1 << 20,
            entry_bytes: 1 << 20,
            entry_commands: 4096,
            queued_bytes: 64 << 20,
            queued_proposals: 65_536,
            long_bytes_per_second: 0,
            unapplied_bytes: 64 << 20,
            uncommitted_bytes: 64 << 20,
            queued_queries: 65_536,
            request_ticks: 50,
            activation_ticks: 600,
            barrier_log_bytes_min: 4 << 20,
            barrier_log_bytes_max: 64 << 20,
            log_memory_bytes: 32 << 20,
            log_kept_bytes: 8 << 20,
            log_retained_bytes: 1 << 30,
            catch_up_ticks: 300,
            catch_up_share_percent: 25,
            barrier_fuel: 20_000_000_000,
            barrier_image_bytes: 4 << 20,
            barrier_compaction_bytes: 64 << 20,
            barrier_rebuilds: 4,
            pause_faults: 1000,
        }
    }
}

/// A replica could not be set up; nothing was stored.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("group {group}: `{field}` is wrong: {reason}")]
pub struct ConfigError {
    /// The group.
    pub group: GroupId,
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let good = || {
            let mut config = GroupConfig::new(GroupId(1), Incarnation(1), NodeId(1));
            config.members = vec![Member {
                node: NodeId(1),
                data: Bytes::new(),
            }];
            config
        };
        assert_eq!(good().validate(), Ok(()));
        type Spoil = fn(&mut GroupConfig);
        let spoils: [(&str, Spoil); 14] = [
            ("first_leader", |c| c.first_leader = Some(NodeId(2))),
            ("incarnation", |c| c.incarnation = Incarnation(0)),
            ("node", |c| c.node = NodeId(0)),
            ("heartbeat_ticks", |c| c.heartbeat_ticks = 0),
            ("election_ticks", |c| c.election_ticks = 2),
            ("max_in_flight", |c| c.max_in_flight = 0),
            ("snapshot_entries", |c| c.snapshot_entries = 0),
            ("members", |c| {
                c.members.push(Member {
                    node: NodeId(0),
                    data: Bytes::new(),
                })
            }),
            ("members", |c| {
                c.members.push(Member {
                    node: NodeId(1),
                    data: Bytes::new(),
                })
            }),
            ("members", |c| c.node = NodeId(2)),
            ("founding_voters", |c| c.founding_voters = 0),
            ("founding_voters", |c| c.founding_voters = VOTERS_MAX + 1),
            ("members", |c| {
                c.members[0].data = vec![0; MEMBER_DATA_BYTES_MAX + 1].into();
            }),
            ("deployment", |c| {
                c.deployment = Some(Deployment {
                    component: Default::default(),
                    profile: vec![0; PROFILE_BYTES_MAX + 1].into(),
                    quota: Default::default(),
                    barriers: Default::default(),
                });
            }),
        ];
        for (field, spoil) in spoils {
            let mut config = good();
            spoil(&mut config);
            assert_eq!(config.validate().map_err(|error| error.field), Err(field));
        }
    }
}
