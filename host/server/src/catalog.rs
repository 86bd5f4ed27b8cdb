//! The catalogue: which nodes, components and groups a cluster has.
//!
//! It is the state of group 0, a group like any other, replicated on every node of the cluster; so every node knows,
//! from its own disk, what it should host. [`Catalog`] is the pure state; [`machine::CatalogMachine`] runs it as a
//! state machine and publishes each new state to a watch channel.

pub mod command;
mod components;
mod creation;
mod groups;
mod hex;
mod invitations;
pub mod machine;
mod nodes;
mod recovery;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_core::id::{ComponentId, GroupId, LogIndex, NodeId};
use skep_core::outcome::EntryContext;
pub use skep_types::record::{ComponentRecord, NodeRecord, NodeState};

use command::{Command, Refusal, Reply};
pub use groups::{Deployed, GroupRecord, Moving};
pub use invitations::{INVITATION_SECONDS_MAX, INVITATIONS_MAX, TokenDigest};
pub use nodes::{ADDRESS_MAX, LABELS_MAX};

/// The group whose state is the catalogue.
pub const GROUP: GroupId = GroupId(0);
/// Most groups of a cluster; each costs memory on every node, as the catalogue is published whole.
pub const GROUPS_MAX: usize = 65_536;
/// Most components of a cluster.
pub const COMPONENTS_MAX: usize = 4096;
/// Most nodes the catalogue knows.
pub const NODES_MAX: usize = 256;
/// Removed nodes that are remembered, so that they can be told: those with the highest ids.
pub const REMOVED_MAX: usize = 1024;
/// Most members of one group, as in the core: all of them vote.
pub const MEMBERS_MAX: usize = skep_core::config::VOTERS_MAX;
/// Longest name of a group, node or component, in bytes.
pub const NAME_MAX: usize = 64;
/// Most bytes of configuration a group's machine is created with.
pub const INIT_MAX: usize = 64 << 10;

/// Bytes of a record in a snapshot, about, besides what differs a lot from one to another.
const RECORD_BYTES: u64 = 512;

/// The entry that a command stands in: where, and its time stamp in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    /// Its index.
    pub index: LogIndex,
    /// Its time.
    pub now: u64,
}

impl From<&EntryContext> for At {
    fn from(context: &EntryContext) -> Self {
        let (index, now) = (context.index, context.now);
        Self { index, now }
    }
}

/// Everything a cluster agrees on about itself. Cheap to clone: the records are shared.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Catalog {
    /// Index of the last command that changed it.
    pub version: LogIndex,
    /// The id the next group gets that asks for none.
    next_group: u64,
    /// The id the next node gets that joins: above all that ever were.
    #[serde(default)]
    next_node: u64,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
    /// Nodes that were removed.
    #[serde(default)]
    removed: BTreeMap<NodeId, Arc<NodeRecord>>,
    #[serde(default)]
    invitations: BTreeMap<TokenDigest, invitations::Invitation>,
    /// Which node came with which token.
    #[serde(default)]
    used: BTreeMap<TokenDigest, NodeId>,
    groups: BTreeMap<GroupId, Arc<GroupRecord>>,
    components: BTreeMap<ComponentId, Arc<ComponentRecord>>,
    /// The commands that put joiners into groups, by their index; none of those that were asked for again since. Whoever asked for
    /// one, and whose change the group refused, may take it back.
    #[serde(default)]
    added: BTreeMap<GroupId, BTreeMap<NodeId, LogIndex>>,
    /// From name to group; not stored, because it follows from the groups.
    #[serde(skip)]
    names: BTreeMap<String, GroupId>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            version: LogIndex(0),
            next_group: 1,
            next_node: 1,
            nodes: BTreeMap::new(),
            removed: BTreeMap::new(),
            invitations: BTreeMap::new(),
            used: BTreeMap::new(),
            groups: BTreeMap::new(),
            components: BTreeMap::new(),
            added: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

impl Catalog {
    /// The group of an id.
    pub fn group(&self, id: GroupId) -> Option<&Arc<GroupRecord>> {
        self.groups.get(&id)
    }

    /// The group of a name, or of an id in decimal digits.
    pub fn find(&self, group: &str) -> Option<&Arc<GroupRecord>> {
        let id = match group.parse() {
            Ok(id) => GroupId(id),
            Err(_) => *self.names.get(group)?,
        };
        self.groups.get(&id)
    }

    /// All groups, by id.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Arc<GroupRecord>> {
        self.groups.values()
    }

    /// The groups behind this id, by id.
    pub fn groups_after(&self, id: Option<GroupId>) -> impl Iterator<Item = &Arc<GroupRecord>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.groups
            .range((from, Bound::Unbounded))
            .map(|(_, group)| group)
    }

    /// The component of an id.
    pub fn component(&self, id: ComponentId) -> Option<&Arc<ComponentRecord>> {
        self.components.get(&id)
    }

    /// All components, by id.
    pub fn components(&self) -> impl ExactSizeIterator<Item = &Arc<ComponentRecord>> {
        self.components.values()
    }

    /// Bytes of all components.
    pub fn component_bytes(&self) -> u64 {
        let sizes = self.components.values().map(|component| component.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Bytes of what all groups' machines are created with.
    pub fn init_bytes(&self) -> u64 {
        self.groups
            .values()
            .map(|group| group.init.len() as u64)
            .sum()
    }

    /// Bytes that a snapshot of this has, about: each node writes one at every barrier.
    pub fn bytes(&self) -> u64 {
        let groups = self.groups.values().map(|group| group.bytes());
        let nodes = self.nodes.len() + self.removed.len() + self.invitations.len();
        let others = nodes + self.components.len();
        groups.sum::<u64>() + others as u64 * RECORD_BYTES
    }

    /// Carries out one command of the entry. A refusal leaves everything as it was.
    pub fn apply(&mut self, at: At, command: Command) -> Result<Reply, Refusal> {
        let reply = match command {
            Command::PutNode(node) => self.put_node(node),
            Command::Invite { token, seconds } => self.invite(at.now, token, seconds),
            Command::Join(join) => self.join(at.now, join),
            Command::Cordon { node } => self.cordon(node),
            Command::Uncordon { node } => self.uncordon(node),
            Command::Retire { node } => self.retire(node),
            Command::Drain { node } => self.drain(node),
            Command::Replace { node, by } => self.replace(node, by),
            Command::RemoveNode { node } => self.remove_node(node),
            Command::Recover(recover) => Ok(self.recover(recover)),
            Command::PutComponent(component) => self.put_component(component),
            Command::CreateGroup(group) => self.create_group(at.index, group).map(Reply::Group),
            Command::CreateGroups { like, each } => self.create_groups(at.index, &like, each),
            Command::Deploying {
                group,
                incarnation,
                component,
            } => {
                self.check_life(group, incarnation)?;
                self.deploying(group, component)
            }
            Command::Collect { before } => Ok(self.collect(before)),
            Command::Deployed {
                group,
                incarnation,
                index,
                deployed,
            } => {
                self.check_life(group, incarnation)?;
                self.deployed(group, index, deployed)
            }
            Command::RemoveGroup { group } => self.remove_group(group),
            Command::AddMember {
                group,
                incarnation,
                node,
                keeps_wanted,
            } => {
                self.check_life(group, incarnation)?;
                self.add_member(at.index, group, node, keeps_wanted)
            }
            Command::TakeBackMember {
                group,
                incarnation,
                node,
                added,
                keeps_wanted,
            } => {
                self.check_life(group, incarnation)?;
                self.take_back_member(group, node, added, keeps_wanted)
            }
            Command::RemoveMember {
                group,
                incarnation,
                node,
                keeps_wanted,
            } => {
                self.check_life(group, incarnation)?;
                self.remove_member(group, node, keeps_wanted)
            }
            Command::SetReplicas {
                group,
                incarnation,
                replicas,
            } => {
                self.check_life(group, incarnation)?;
                self.set_replicas(group, replicas)
            }
            Command::MoveReplica {
                group,
                incarnation,
                moving,
            } => {
                self.check_life(group, incarnation)?;
                self.move_replica(group, moving)
            }
        }?;
        self.version = at.index;
        Ok(reply)
    }

    /// The bytes of a snapshot; the same for the same state.
    pub fn save(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text keys and plain values always become JSON")
    }

    /// The state of a snapshot.
    pub fn restore(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut catalog: Self = serde_json::from_slice(bytes)?;
        catalog.names = catalog
            .groups
            .values()
            .map(|group| (group.name.clone(), group.id))
            .collect();
        // One of before groups had a number of replicas to keep: they keep what they have.
        for group in catalog.groups.values_mut().filter(|of| of.wanted == 0) {
            let group = Arc::make_mut(group);
            group.wanted = group.members.len().max(1);
        }
        // One of before nodes could join names no next id.
        let above = |id: &NodeId| id.0.saturating_add(1);
        let next = catalog.nodes.keys().next_back().map_or(1, above);
        catalog.next_node = catalog.next_node.max(next);
        Ok(catalog)
    }
}

fn check_name(of: &str, name: &str) -> Result<(), Refusal> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(known) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_MAX).collect();
    let rule = format!("1 to {NAME_MAX} letters, digits, `-`, `_` or `.`");
    Err(Refusal::Invalid(format!(
        "the {of} name `{shown}` must be {rule}"
    )))
}
