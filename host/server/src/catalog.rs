//! The catalogue: which nodes, components and groups a cluster has.
//!
//! It is the state of group 0, a group like any other, replicated on every node of the cluster; so every node knows,
//! from its own disk, what it should host. [`Catalog`] is the pure state; [`machine::CatalogMachine`] runs it as a
//! state machine and publishes each new state to a watch channel.

pub mod command;
mod creation;
mod hex;
pub mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_core::deployment::{Deployment, Quota};
use skep_core::form::Barriers;
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId};
use skep_machine::wasm::Profile;
use skep_types::admin::GroupInfo;
pub use skep_types::record::{ComponentRecord, NodeRecord};

use command::{Command, Refusal, Reply};

/// The group whose state is the catalogue.
pub const GROUP: GroupId = GroupId(0);
/// Most groups of a cluster; each costs memory on every node, as the catalogue is published whole.
pub const GROUPS_MAX: usize = 65_536;
/// Most components of a cluster.
pub const COMPONENTS_MAX: usize = 4096;
/// Most nodes the catalogue knows.
pub const NODES_MAX: usize = 256;
/// Most members of one group, as in the core.
pub const MEMBERS_MAX: usize = skep_core::config::MEMBERS_MAX;
/// Longest name of a group, node or component, in bytes.
pub const NAME_MAX: usize = 64;
/// Most bytes of configuration a group's machine is created with.
pub const INIT_MAX: usize = 64 << 10;

/// Bytes of a record in a snapshot, about, besides what differs a lot from one to another.
const RECORD_BYTES: u64 = 512;

/// Everything a cluster agrees on about itself. Cheap to clone: the records are shared.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Catalog {
    /// Index of the last command that changed it.
    pub version: LogIndex,
    /// The id the next group gets that asks for none.
    next_group: u64,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
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

/// A group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its id, never 0.
    pub id: GroupId,
    /// Its name; never all digits, so that it cannot be taken for an id.
    pub name: String,
    /// Index of the catalogue command that created it: differs for every creation of the same id.
    pub incarnation: Incarnation,
    /// The component of its machine.
    pub component: ComponentId,
    /// The voters it was created with; the same for ever, because each of them starts from this list.
    pub founders: BTreeSet<NodeId>,
    /// The nodes that host a replica now, or are to.
    pub members: BTreeSet<NodeId>,
    /// Those of the members that were added later: they start empty and wait for a leader.
    pub joiners: BTreeSet<NodeId>,
    /// Bytes for the machine's `init`, in hexadecimal digits.
    #[serde(with = "hex")]
    pub init: Vec<u8>,
    /// What its machine may use.
    pub profile: Profile,
    /// What it takes of its clients.
    #[serde(default)]
    pub quota: Quota,
    /// Which form its barriers have.
    #[serde(default)]
    pub barriers: Barriers,
    /// Index of the entry of its log that activated these four; 0 if it was created with them.
    #[serde(default)]
    pub deployed_at: LogIndex,
    /// What it was created with, if it runs something else now: its log begins with that.
    #[serde(default)]
    pub founding: Option<Deployed>,
    /// Every component that it was ever asked to run: a replica that is behind meets them in its log. All of them are in
    /// the catalogue, so they are not more than [`COMPONENTS_MAX`].
    #[serde(default)]
    pub used: BTreeSet<ComponentId>,
}

/// What a group runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployed {
    /// The component of its machine.
    pub component: ComponentId,
    /// What its machine may use.
    pub profile: Profile,
    /// What it takes of its clients.
    pub quota: Quota,
    /// Which form its barriers have.
    #[serde(default)]
    pub barriers: Barriers,
}

impl Deployed {
    /// As a group's log has it: the same bytes for the same profile.
    pub fn deployment(&self) -> Deployment {
        let profile = serde_json::to_vec(&self.profile)
            .expect("plain numbers always become JSON")
            .into();
        Deployment {
            component: self.component,
            profile,
            quota: self.quota,
            barriers: self.barriers,
        }
    }

    /// From a group's log.
    pub fn of(deployment: &Deployment) -> Result<Self, serde_json::Error> {
        Ok(Self {
            component: deployment.component,
            profile: serde_json::from_slice(&deployment.profile)?,
            quota: deployment.quota,
            barriers: deployment.barriers,
        })
    }
}

impl GroupRecord {
    /// Bytes that it takes in a snapshot of the catalogue, about.
    fn bytes(&self) -> u64 {
        let ids = self.used.len() * 67 + self.members.len() * 30;
        let deployed = if self.founding.is_some() { 2 } else { 1 };
        (self.init.len() * 2 + self.name.len() + ids) as u64 + deployed * RECORD_BYTES
    }

    /// What it runs, as far as the catalogue was told.
    pub fn current(&self) -> Deployed {
        Deployed {
            component: self.component,
            profile: self.profile.clone(),
            quota: self.quota,
            barriers: self.barriers,
        }
    }

    /// What the catalogue alone says of it.
    pub fn info(&self) -> GroupInfo {
        GroupInfo {
            id: self.id,
            name: self.name.clone(),
            incarnation: self.incarnation,
            component: self.component,
            members: self.members.clone(),
            leader: None,
            term: None,
            memory: None,
            problem: None,
        }
    }

    /// The founder that stands for election at once. Ids follow each other, so the founders take turns.
    pub fn first_leader(&self) -> Option<NodeId> {
        let turn = self.id.0 % (self.founders.len() as u64).max(1);
        self.founders.iter().nth(turn as usize).copied()
    }

    /// Whether a replica of it may ask for this component.
    pub fn uses(&self, component: ComponentId) -> bool {
        self.component == component
            || self.used.contains(&component)
            || self
                .founding
                .as_ref()
                .is_some_and(|founding| founding.component == component)
    }

    /// What its log begins with.
    pub fn founding(&self) -> Deployed {
        self.founding.clone().unwrap_or_else(|| self.current())
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            version: LogIndex(0),
            next_group: 1,
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            components: BTreeMap::new(),
            added: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

impl Catalog {
    /// The node of an id.
    pub fn node(&self, id: NodeId) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&id)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<NodeRecord>> {
        self.nodes.values()
    }

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
        let others = self.nodes.len() + self.components.len();
        groups.sum::<u64>() + others as u64 * RECORD_BYTES
    }

    /// The components that no group uses or ever did and that were uploaded before this, by the wall clock in nanoseconds.
    pub fn unused(&self, before: u64) -> Vec<Arc<ComponentRecord>> {
        let mut used = BTreeSet::new();
        for group in self.groups.values() {
            used.insert(group.component);
            used.extend(&group.used);
            used.extend(group.founding.as_ref().map(|founding| founding.component));
        }
        let components = self.components.values();
        let unused = components.filter(|of| of.uploaded < before && !used.contains(&of.id));
        unused.cloned().collect()
    }

    /// Carries out one command, the entry of `index`. A refusal leaves everything as it was.
    pub fn apply(&mut self, index: LogIndex, command: Command) -> Result<Reply, Refusal> {
        let reply = match command {
            Command::PutNode(node) => self.put_node(node),
            Command::PutComponent(component) => self.put_component(component),
            Command::CreateGroup(group) => self.create_group(index, group).map(Reply::Group),
            Command::CreateGroups { like, each } => self.create_groups(index, &like, each),
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
            } => {
                self.check_life(group, incarnation)?;
                self.add_member(index, group, node)
            }
            Command::TakeBackMember {
                group,
                incarnation,
                node,
                added,
            } => {
                self.check_life(group, incarnation)?;
                self.take_back_member(group, node, added)
            }
            Command::RemoveMember {
                group,
                incarnation,
                node,
            } => {
                self.check_life(group, incarnation)?;
                self.remove_member(group, node)
            }
        }?;
        self.version = index;
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
        Ok(catalog)
    }

    fn put_node(&mut self, node: NodeRecord) -> Result<Reply, Refusal> {
        if node.id == NodeId(0) {
            return Err(Refusal::Invalid("node id 0 names no node".into()));
        }
        check_name("node", &node.name)?;
        if !self.nodes.contains_key(&node.id) && self.nodes.len() >= NODES_MAX {
            return Err(Refusal::Full(format!(
                "the catalogue knows {NODES_MAX} nodes, the most it may"
            )));
        }
        if self
            .nodes
            .get(&node.id)
            .is_some_and(|known| known.store != node.store)
        {
            return Err(Refusal::Invalid(format!(
                "node {} is known with another store: was its data directory wiped or replaced? Remove it from its groups and add it under a new id",
                node.id
            )));
        }
        self.nodes.insert(node.id, Arc::new(node));
        Ok(Reply::Done)
    }

    fn put_component(&mut self, component: ComponentRecord) -> Result<Reply, Refusal> {
        if !self.components.contains_key(&component.id) && self.components.len() >= COMPONENTS_MAX {
            return Err(Refusal::Full(format!(
                "the catalogue knows {COMPONENTS_MAX} components, the most it may"
            )));
        }
        // Content-addressed, so a second one of the same id says nothing new but when.
        match self.components.get_mut(&component.id) {
            Some(known) if known.uploaded >= component.uploaded => {}
            Some(known) => Arc::make_mut(known).uploaded = component.uploaded,
            None => drop(self.components.insert(component.id, Arc::new(component))),
        }
        Ok(Reply::Done)
    }

    fn collect(&mut self, before: u64) -> Reply {
        let unused = self.unused(before);
        for component in &unused {
            self.components.remove(&component.id);
        }
        Reply::Collected(unused.iter().map(|of| (**of).clone()).collect())
    }

    fn remove_group(&mut self, id: GroupId) -> Result<Reply, Refusal> {
        let group = self.groups.remove(&id).ok_or_else(|| no_such_group(id))?;
        self.names.remove(&group.name);
        self.added.remove(&id);
        Ok(Reply::Group(group))
    }

    fn deploying(&mut self, id: GroupId, component: ComponentId) -> Result<Reply, Refusal> {
        self.check_component(component)?;
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        Arc::make_mut(group).used.insert(component);
        Ok(Reply::Group(group.clone()))
    }

    fn check_component(&self, component: ComponentId) -> Result<(), Refusal> {
        if self.components.contains_key(&component) {
            return Ok(());
        }
        Err(Refusal::NotFound(format!(
            "component {component} is not known; upload it first"
        )))
    }

    /// The group's log decides, and here is only told; a late word of a former activation changes nothing.
    fn deployed(
        &mut self,
        id: GroupId,
        index: LogIndex,
        deployed: Deployed,
    ) -> Result<Reply, Refusal> {
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        if index > group.deployed_at {
            let group = Arc::make_mut(group);
            group.founding = Some(group.founding());
            group.deployed_at = index;
            group.used.insert(deployed.component);
            group.component = deployed.component;
            group.profile = deployed.profile;
            group.quota = deployed.quota;
            group.barriers = deployed.barriers;
        }
        Ok(Reply::Group(group.clone()))
    }

    fn check_life(&self, id: GroupId, incarnation: Incarnation) -> Result<(), Refusal> {
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        if group.incarnation == incarnation {
            return Ok(());
        }
        Err(Refusal::Invalid(format!(
            "group {id} was removed and created anew meanwhile; look at it and decide again"
        )))
    }

    fn add_member(&mut self, index: LogIndex, id: GroupId, node: NodeId) -> Result<Reply, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::NotFound(format!(
                "node {node} is not part of the cluster; see `skep status`"
            )));
        }
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        if group.members.len() >= MEMBERS_MAX {
            return Err(Refusal::Full(format!(
                "group {id} has {MEMBERS_MAX} members, the most it may"
            )));
        }
        if group.members.contains(&node) {
            // Two have asked, and neither may take back what the other one needs.
            self.forget_added(id, node);
        } else {
            let group = Arc::make_mut(group);
            group.members.insert(node);
            // A founder that comes back is a joiner too: its former replica is gone for ever.
            group.joiners.insert(node);
            self.added.entry(id).or_default().insert(node, index);
        }
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        Ok(Reply::Group(group.clone()))
    }

    fn take_back_member(
        &mut self,
        id: GroupId,
        node: NodeId,
        added: LogIndex,
    ) -> Result<Reply, Refusal> {
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        let of = self.added.get(&id).and_then(|added| added.get(&node));
        match of == Some(&added) {
            true => self.remove_member(id, node),
            false => Ok(Reply::Group(group.clone())),
        }
    }

    fn remove_member(&mut self, id: GroupId, node: NodeId) -> Result<Reply, Refusal> {
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        if group.members.contains(&node) {
            let group = Arc::make_mut(group);
            group.members.remove(&node);
            group.joiners.remove(&node);
        }
        let group = group.clone();
        self.forget_added(id, node);
        Ok(Reply::Group(group))
    }

    fn forget_added(&mut self, id: GroupId, node: NodeId) {
        if let Some(added) = self.added.get_mut(&id) {
            added.remove(&node);
            if added.is_empty() {
                self.added.remove(&id);
            }
        }
    }
}

fn no_such_group(id: GroupId) -> Refusal {
    Refusal::NotFound(format!("there is no group {id}; see `skep group list`"))
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
