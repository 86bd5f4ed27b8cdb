//! The groups of a cluster: what each is, where its replicas are, what it runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_core::deployment::{Deployment, Quota};
use skep_core::form::Barriers;
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId};
use skep_machine::wasm::Profile;
use skep_types::admin::GroupInfo;

use super::command::{NewGroup, Refusal, Reply};
use super::{Catalog, GROUP, GROUPS_MAX, INIT_MAX, MEMBERS_MAX, RECORD_BYTES, check_name, hex};

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
    /// How many replicas it is to have, at least 1. Where it has fewer others are made; where it has more they go.
    #[serde(default)]
    pub wanted: usize,
    /// A replica that is to go to another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
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
    /// the catalogue, so they are not more than [`COMPONENTS_MAX`](super::COMPONENTS_MAX).
    #[serde(default)]
    pub used: BTreeSet<ComponentId>,
}

/// From where to where a replica goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Moving {
    /// The node that gives it.
    pub from: NodeId,
    /// The node that takes it.
    pub to: NodeId,
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
    pub(super) fn bytes(&self) -> u64 {
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
            wanted: self.wanted,
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

impl Catalog {
    /// The groups that a node hosts replicas of, or is to, by id.
    pub fn groups_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<GroupRecord>> {
        let groups = self.groups.values();
        groups.filter(move |group| group.members.contains(&node))
    }

    pub(super) fn create_group(
        &mut self,
        index: LogIndex,
        new: NewGroup,
    ) -> Result<Arc<GroupRecord>, Refusal> {
        check_name("group", &new.name)?;
        if new.name.bytes().all(|byte| byte.is_ascii_digit()) {
            let message = format!(
                "a group cannot be called `{}`: it would be taken for an id; add a letter",
                new.name
            );
            return Err(Refusal::Invalid(message));
        }
        if new.init.len() > INIT_MAX {
            let message = format!(
                "the machine's configuration has {} bytes, the limit is {INIT_MAX}",
                new.init.len()
            );
            return Err(Refusal::Invalid(message));
        }
        let id = new.id.unwrap_or_else(|| self.free_id());
        if id == GROUP {
            return Err(Refusal::Invalid(
                "group id 0 is the catalogue's own; use 1 or more".into(),
            ));
        }
        if self.names.contains_key(&new.name) {
            return Err(Refusal::Exists(format!(
                "a group named `{}` exists already",
                new.name
            )));
        }
        if self.groups.contains_key(&id) {
            return Err(Refusal::Exists(format!("group {id} exists already")));
        }
        if self.groups.len() >= GROUPS_MAX {
            return Err(Refusal::Full(format!(
                "the cluster has {GROUPS_MAX} groups, the most it may"
            )));
        }
        self.check_component(new.component)?;
        if new.members.is_empty() || new.members.len() > MEMBERS_MAX {
            let message = format!(
                "a group has 1 to {MEMBERS_MAX} members, not {}",
                new.members.len()
            );
            return Err(Refusal::Invalid(message));
        }
        new.members
            .iter()
            .try_for_each(|node| self.check_takes_replicas(*node))?;
        let group = Arc::new(GroupRecord {
            id,
            name: new.name,
            incarnation: Incarnation(index.0),
            component: new.component,
            founders: new.members.clone(),
            wanted: new.members.len(),
            moving: None,
            members: new.members,
            joiners: BTreeSet::new(),
            init: new.init,
            profile: new.profile,
            quota: new.quota,
            barriers: new.barriers,
            deployed_at: LogIndex(0),
            founding: None,
            used: [new.component].into(),
        });
        self.next_group = self.next_group.max(id.0.saturating_add(1));
        self.names.insert(group.name.clone(), id);
        self.groups.insert(id, group.clone());
        Ok(group)
    }

    /// The id of the next group that names none: above all that were ever used, or, where the largest of all is taken,
    /// the lowest that is free. At most [`GROUPS_MAX`] are not.
    fn free_id(&self) -> GroupId {
        let ids = (self.next_group..=u64::MAX).chain(1..self.next_group);
        ids.map(GroupId)
            .find(|id| !self.groups.contains_key(id))
            .unwrap_or(GroupId(self.next_group))
    }

    pub(super) fn remove_group(&mut self, id: GroupId) -> Result<Reply, Refusal> {
        let group = self.groups.remove(&id).ok_or_else(|| no_such_group(id))?;
        self.names.remove(&group.name);
        self.added.remove(&id);
        Ok(Reply::Group(group))
    }

    pub(super) fn deploying(
        &mut self,
        id: GroupId,
        component: ComponentId,
    ) -> Result<Reply, Refusal> {
        self.check_component(component)?;
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        Arc::make_mut(group).used.insert(component);
        Ok(Reply::Group(group.clone()))
    }

    /// The group's log decides, and here is only told; a late word of a former activation changes nothing.
    pub(super) fn deployed(
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

    pub(super) fn check_life(&self, id: GroupId, incarnation: Incarnation) -> Result<(), Refusal> {
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        if group.incarnation == incarnation {
            return Ok(());
        }
        Err(Refusal::Invalid(format!(
            "group {id} was removed and created anew meanwhile; look at it and decide again"
        )))
    }

    pub(super) fn add_member(
        &mut self,
        index: LogIndex,
        id: GroupId,
        node: NodeId,
        keeps_wanted: bool,
    ) -> Result<Reply, Refusal> {
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        if group.members.contains(&node) {
            let group = group.clone();
            // Two have asked, and neither may take back what the other one needs.
            self.forget_added(id, node);
            return Ok(Reply::Group(group));
        }
        self.check_takes_replicas(node)?;
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        if group.members.len() >= MEMBERS_MAX {
            return Err(Refusal::Full(format!(
                "group {id} has {MEMBERS_MAX} members, the most it may"
            )));
        }
        let record = Arc::make_mut(group);
        record.members.insert(node);
        // A founder that comes back is a joiner too: its former replica is gone for ever.
        record.joiners.insert(node);
        if !keeps_wanted {
            record.wanted = record.wanted.max(record.members.len());
        }
        let group = group.clone();
        self.added.entry(id).or_default().insert(node, index);
        Ok(Reply::Group(group))
    }

    /// Takes a joiner out again that this command put in, if nobody else has asked for it.
    pub(super) fn take_back_member(
        &mut self,
        id: GroupId,
        node: NodeId,
        added: LogIndex,
        keeps_wanted: bool,
    ) -> Result<Reply, Refusal> {
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        let of = self.added.get(&id).and_then(|added| added.get(&node));
        match of == Some(&added) {
            true => self.remove_member(id, node, keeps_wanted),
            false => Ok(Reply::Group(group.clone())),
        }
    }

    pub(super) fn remove_member(
        &mut self,
        id: GroupId,
        node: NodeId,
        keeps_wanted: bool,
    ) -> Result<Reply, Refusal> {
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        if group.members.contains(&node) {
            let group = Arc::make_mut(group);
            group.members.remove(&node);
            group.joiners.remove(&node);
            if !keeps_wanted {
                group.wanted = group.members.len().max(1);
            }
            group.moving = group
                .moving
                .filter(|moving| moving.from != node && moving.to != node);
        }
        let group = group.clone();
        self.forget_added(id, node);
        Ok(Reply::Group(group))
    }

    pub(super) fn set_replicas(&mut self, id: GroupId, replicas: usize) -> Result<Reply, Refusal> {
        if !(1..=MEMBERS_MAX).contains(&replicas) {
            let message = format!("a group has 1 to {MEMBERS_MAX} replicas, not {replicas}");
            return Err(Refusal::Invalid(message));
        }
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        Arc::make_mut(group).wanted = replicas;
        Ok(Reply::Group(group.clone()))
    }

    pub(super) fn move_replica(&mut self, id: GroupId, moving: Moving) -> Result<Reply, Refusal> {
        let group = self.groups.get(&id).ok_or_else(|| no_such_group(id))?;
        let Moving { from, to } = moving;
        if !group.members.contains(&from) {
            return Err(Refusal::Invalid(format!(
                "node {from} has no replica of group {id}; see `skep member list {id}`"
            )));
        }
        // What was asked for before may be half done.
        if group.moving != Some(moving) {
            if group.members.contains(&to) {
                return Err(Refusal::Invalid(format!(
                    "node {to} has a replica of group {id} already"
                )));
            }
            self.check_takes_replicas(to)?;
        }
        let group = self.groups.get_mut(&id).ok_or_else(|| no_such_group(id))?;
        Arc::make_mut(group).moving = Some(moving);
        Ok(Reply::Group(group.clone()))
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
