//! The nodes of a cluster: how one comes, what may be put on it, how it goes. An id is given once and never again.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_core::id::NodeId;
use skep_log::StoreId;

use super::command::{Join, Refusal, Reply};
use super::{Catalog, NODES_MAX, NodeRecord, NodeState, REMOVED_MAX, check_name};

/// Longest address of a node, in bytes: a host name has 253 at most.
pub const ADDRESS_MAX: usize = 300;
/// Most labels of one node.
pub const LABELS_MAX: usize = 16;
/// Groups that a refusal names.
const NAMED_MAX: usize = 16;

impl Catalog {
    /// The node of an id.
    pub fn node(&self, id: NodeId) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&id)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<NodeRecord>> {
        self.nodes.values()
    }

    /// A node that was removed.
    pub fn removed_node(&self, id: NodeId) -> Option<&Arc<NodeRecord>> {
        self.removed.get(&id)
    }

    /// The nodes that were removed and are remembered, by id.
    pub fn removed_nodes(&self) -> impl ExactSizeIterator<Item = &Arc<NodeRecord>> {
        self.removed.values()
    }

    pub(super) fn put_node(&mut self, node: NodeRecord) -> Result<Reply, Refusal> {
        if node.id == NodeId(0) {
            return Err(Refusal::Invalid("node id 0 names no node".into()));
        }
        check_name("node", &node.name)?;
        check_addresses([&node.peer, &node.client, &node.http])?;
        check_labels(&node.labels)?;
        self.check_not_removed(|removed| removed.id == node.id || removed.store == node.store)?;
        let twin = self
            .nodes
            .values()
            .find(|known| known.store == node.store && known.id != node.id);
        if let Some(twin) = twin {
            return Err(Refusal::Invalid(format!(
                "node {} has the store of node {}: was its data directory copied?",
                node.id, twin.id
            )));
        }
        let (state, successor) = match self.nodes.get(&node.id) {
            Some(known) if known.store != node.store => {
                return Err(Refusal::Invalid(format!(
                    "node {} is known with another store: was its data directory wiped or replaced? Remove it from the cluster \
                     (`skep node remove {}`) and have it join as a new node",
                    node.id, node.id
                )));
            }
            Some(known) => (known.state, known.successor),
            None => {
                self.check_room_for_nodes()?;
                (NodeState::Member, None)
            }
        };
        self.next_node = self.next_node.max(node.id.0.saturating_add(1));
        let node = NodeRecord {
            state,
            successor,
            ..node
        };
        self.nodes.insert(node.id, Arc::new(node));
        Ok(Reply::Done)
    }

    pub(super) fn join(&mut self, now: u64, join: Join) -> Result<Reply, Refusal> {
        if let Some(name) = &join.name {
            check_name("node", name)?;
        }
        check_addresses([&join.peer, &join.client, &join.http])?;
        if StoreId::parse(&join.store).is_none() {
            let message = "the id of a store is 32 hexadecimal digits";
            return Err(Refusal::Invalid(message.to_owned()));
        }
        self.check_not_removed(|removed| removed.store == join.store)?;
        let known = self.nodes.values().find(|node| node.store == join.store);
        let known = known.map(|node| node.id);
        // Whoever asks again did not hear the answer.
        let (id, is_new) = match (self.used.get(&join.token), known) {
            (Some(came), Some(known)) if *came == known => (known, false),
            (Some(_), _) => {
                return Err(Refusal::InvitationUsed(
                    "another node came with this token, and it is good for one; ask for another with `skep node invite`"
                        .to_owned(),
                ));
            }
            (None, known) => {
                self.check_invited(now, join.token)?;
                match known {
                    Some(known) => (known, false),
                    None => (self.next_node_id(join.above)?, true),
                }
            }
        };
        let known = self.nodes.get(&id);
        let state = known.map_or(NodeState::Member, |of| of.state);
        let successor = known.and_then(|known| known.successor);
        // It says them when it is there.
        let labels = known.map(|known| known.labels.clone());
        let name = join
            .name
            .or_else(|| Some(self.nodes.get(&id)?.name.clone()));
        let record = Arc::new(NodeRecord {
            id,
            name: name.unwrap_or_else(|| format!("node-{id}")),
            peer: join.peer,
            client: join.client,
            http: join.http,
            store: join.store,
            state,
            labels: labels.unwrap_or_default(),
            successor,
        });
        if is_new {
            self.next_node = id.0.saturating_add(1);
            self.use_up(join.token, id);
        }
        self.nodes.insert(id, Arc::clone(&record));
        Ok(Reply::Node(record))
    }

    pub(super) fn cordon(&mut self, id: NodeId) -> Result<Reply, Refusal> {
        let state = match self.known(id)?.state {
            NodeState::Member => NodeState::Cordoned,
            // It takes no replicas already, for a weightier reason.
            state => state,
        };
        self.set_state(id, state)
    }

    pub(super) fn uncordon(&mut self, id: NodeId) -> Result<Reply, Refusal> {
        self.set_state(id, NodeState::Member)
    }

    pub(super) fn drain(&mut self, id: NodeId) -> Result<Reply, Refusal> {
        let state = match self.known(id)?.state {
            NodeState::Member | NodeState::Cordoned => NodeState::Draining,
            state => state,
        };
        self.set_state(id, state)
    }

    pub(super) fn replace(&mut self, id: NodeId, by: NodeId) -> Result<Reply, Refusal> {
        self.known(id)?;
        if id == by {
            return Err(Refusal::Invalid(format!(
                "node {id} cannot take its own place; name another node"
            )));
        }
        self.known(by)?;
        self.check_takes_replicas(by)?;
        self.set_state(id, NodeState::Removing)?;
        let node = self.nodes.get_mut(&id).ok_or_else(|| unknown(id))?;
        Arc::make_mut(node).successor = Some(by);
        Ok(Reply::Node(Arc::clone(node)))
    }

    pub(super) fn retire(&mut self, id: NodeId) -> Result<Reply, Refusal> {
        self.known(id)?;
        let alone: Vec<_> = self
            .groups_on(id)
            .filter(|group| group.members.len() == 1)
            .map(|group| group.name.as_str())
            .collect();
        if !alone.is_empty() {
            return Err(Refusal::Needed(format!(
                "node {id} has the only replica of {}; have other nodes take them first (`skep node drain {id}`), or remove them (`skep group remove`)",
                named(&alone)
            )));
        }
        if self
            .nodes
            .values()
            .all(|node| node.id == id || node.state == NodeState::Removing)
        {
            return Err(Refusal::Needed(format!(
                "node {id} is the last of the cluster; nothing would be left"
            )));
        }
        self.set_state(id, NodeState::Removing)
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<Reply, Refusal> {
        if self.known(id)?.state != NodeState::Removing {
            return Err(Refusal::Invalid(format!(
                "node {id} is not about to be removed; see `skep node remove`"
            )));
        }
        let hosted: Vec<_> = self
            .groups_on(id)
            .map(|group| group.name.as_str())
            .collect();
        if !hosted.is_empty() {
            return Err(Refusal::Needed(format!(
                "node {id} hosts replicas of {} still",
                named(&hosted)
            )));
        }
        let mut node = self.nodes.remove(&id).ok_or_else(|| unknown(id))?;
        Arc::make_mut(&mut node).state = NodeState::Removed;
        self.removed.insert(id, Arc::clone(&node));
        if self.removed.len() > REMOVED_MAX
            && let Some((forgotten, _)) = self.removed.pop_first()
        {
            self.used.retain(|_, came| *came != forgotten);
        }
        Ok(Reply::Node(node))
    }

    /// Whether a new replica may be put on a node.
    pub(super) fn check_takes_replicas(&self, id: NodeId) -> Result<(), Refusal> {
        let state = self.known(id)?.state;
        if state.takes_replicas() {
            return Ok(());
        }
        Err(Refusal::Invalid(format!(
            "node {id} is {state} and gets no new replicas; `skep node uncordon {id}` changes that"
        )))
    }

    fn known(&self, id: NodeId) -> Result<&Arc<NodeRecord>, Refusal> {
        self.check_not_removed(|removed| removed.id == id)?;
        self.nodes.get(&id).ok_or_else(|| unknown(id))
    }

    fn set_state(&mut self, id: NodeId, state: NodeState) -> Result<Reply, Refusal> {
        self.known(id)?;
        let node = self.nodes.get_mut(&id).ok_or_else(|| unknown(id))?;
        if node.state != state {
            let node = Arc::make_mut(node);
            node.state = state;
            node.successor = node.successor.filter(|_| state == NodeState::Removing);
        }
        Ok(Reply::Node(Arc::clone(node)))
    }

    fn check_not_removed(&self, is_it: impl Fn(&NodeRecord) -> bool) -> Result<(), Refusal> {
        match self.removed.values().find(|removed| is_it(removed)) {
            None => Ok(()),
            Some(removed) => Err(Refusal::Removed(format!(
                "node {}, with the store {}, was removed from the cluster for ever; begin with an empty data directory and a new \
                 token (`skep node invite`)",
                removed.id, removed.store
            ))),
        }
    }

    fn check_room_for_nodes(&self) -> Result<(), Refusal> {
        if self.nodes.len() < NODES_MAX {
            return Ok(());
        }
        Err(Refusal::Full(format!(
            "the catalogue knows {NODES_MAX} nodes, the most it may"
        )))
    }

    fn next_node_id(&self, above: NodeId) -> Result<NodeId, Refusal> {
        self.check_room_for_nodes()?;
        match self.next_node.max(above.0.saturating_add(1)) {
            u64::MAX => Err(Refusal::Full("all ids of nodes are given".to_owned())),
            next => Ok(NodeId(next)),
        }
    }
}

fn unknown(id: NodeId) -> Refusal {
    Refusal::NotFound(format!(
        "node {id} is not part of the cluster; see `skep node list`"
    ))
}

/// The first of these groups, and how many more there are.
fn named(groups: &[&str]) -> String {
    let first = &groups[..groups.len().min(NAMED_MAX)];
    let more = match groups.len() - first.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let groups = if groups.len() == 1 { "group" } else { "groups" };
    format!("{groups} {}{more}", first.join(", "))
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        let message = format!("a node has at most {LABELS_MAX} labels");
        return Err(Refusal::Invalid(message));
    }
    for (key, value) in labels {
        check_name("label", key)?;
        check_name("label", value)?;
    }
    Ok(())
}

fn check_addresses(addresses: [&String; 3]) -> Result<(), Refusal> {
    match addresses.iter().any(|address| address.len() > ADDRESS_MAX) {
        false => Ok(()),
        true => Err(Refusal::Invalid(format!(
            "an address of a node has at most {ADDRESS_MAX} bytes"
        ))),
    }
}

#[cfg(test)]
mod tests;
