//! The nodes of the cluster: who they are, who comes, who goes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep::clock::{self, Stopwatch};
use skep_core::id::NodeId;
use skep_log::StoreId;
use skep_types::admin::{
    Done, InviteNode, Invited, JoinCluster, Joined, NodeAt, NodeView, OfNode, ReplaceNode, method,
};
use skep_types::founding::ClusterIdentity;
use skep_types::status::{MemberStatus, Role};

use super::members::ANSWERS_WITHIN;
use super::{Host, Reach, catalog};
use crate::catalog::command::{Command, Join, Refusal, Reply};
use crate::catalog::{ADDRESS_MAX, Catalog, NodeRecord, TokenDigest};
use crate::config::ClusterNode;
use crate::error::HostError;

/// For how long an invitation is good if nobody says.
const INVITATION_SECONDS: u32 = 3600;
/// How long whoever removes a node waits for the end of it. It goes on without anybody who waits.
const REMOVED_WITHIN: Duration = Duration::from_secs(7);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(50);
/// How often nodes that are silent are told where the leader of the catalogue is.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// How long another node may take to hear where this one is.
const TELL_WITHIN: Duration = Duration::from_secs(1);
/// Groups that a view of a node, or a refusal, names.
const NAMED_MAX: usize = 16;

impl Host {
    /// All nodes, as the leader of the catalogue sees them.
    pub async fn nodes(&self, reach: Reach) -> Result<Vec<NodeView>, HostError> {
        let here = || async {
            self.refresh().await?;
            self.views().await
        };
        self.at_the_leader(method::NODE_LIST, &(), reach, here)
            .await
    }

    /// One node, likewise; also one that was removed.
    pub async fn node_view(&self, asked: OfNode, reach: Reach) -> Result<NodeView, HostError> {
        let here = || async {
            self.refresh().await?;
            self.view(asked.node).await
        };
        self.at_the_leader(method::NODE_STATUS, &asked, reach, here)
            .await
    }

    /// Invites one node. The token is in the answer and nowhere else.
    pub async fn invite_node(&self, request: InviteNode) -> Result<Invited, HostError> {
        let seconds = request.seconds.unwrap_or(INVITATION_SECONDS);
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| HostError::Internal(error.to_string()))?;
        let token = format!("{:032x}", u128::from_be_bytes(random));
        let digest = TokenDigest::of(&token);
        self.change_catalog(&Command::Invite {
            token: digest,
            seconds,
        })
        .await?;
        tracing::info!(seconds, "a node was invited");
        Ok(Invited {
            token,
            seconds,
            join: self.inner.config.own().client.clone(),
        })
    }

    /// Takes a node in that has a token; the same node as often as it asks.
    pub async fn take_in(&self, request: JoinCluster) -> Result<Joined, HostError> {
        let cluster = &self.inner.config.cluster.id;
        if request
            .cluster
            .as_ref()
            .is_some_and(|named| named != cluster)
        {
            // Who does not know the name of the cluster does not learn it here.
            let message =
                "this node belongs to another cluster; check the address and [cluster] id";
            return Err(HostError::Invalid(message.to_owned()));
        }
        let founding = &self.inner.founding;
        let founders = founding.founders.keys().max().copied();
        let join = Join {
            token: TokenDigest::of(&request.token),
            store: request.store,
            name: request.name,
            peer: request.peer,
            client: request.client,
            http: request.http,
            above: founders.unwrap_or(NodeId(0)),
        };
        let Reply::Node(record) = self.change_catalog(&Command::Join(join)).await? else {
            let message = "the catalogue answered without a node";
            return Err(HostError::Internal(message.to_owned()));
        };
        tracing::info!(node = %record.id, peer = %record.peer, "a node joins");
        let configured = &self.inner.config.cluster.nodes;
        Ok(Joined {
            node: record.id,
            cluster: cluster.clone(),
            incarnation: founding.incarnation,
            founders: founding
                .founders
                .iter()
                .map(|(node, store)| (*node, StoreId(*store).to_string()))
                .collect(),
            nodes: known(configured, &self.catalog()).into_values().collect(),
            plan: founding
                .recovery
                .as_ref()
                .map(|recovery| ClusterIdentity(recovery.plan).to_string()),
            former: founding.former().iter().map(ToString::to_string).collect(),
        })
    }

    /// From now on a node gets no new replicas.
    pub async fn cordon_node(&self, node: NodeId) -> Result<NodeView, HostError> {
        self.changed_node(node, &Command::Cordon { node }).await
    }

    /// From now on a node gets new replicas again, and it is not removed.
    pub async fn uncordon_node(&self, node: NodeId) -> Result<NodeView, HostError> {
        self.changed_node(node, &Command::Uncordon { node }).await
    }

    /// From now on the replicas of a node go to other nodes, and its leaders first.
    pub async fn drain_node(&self, node: NodeId) -> Result<NodeView, HostError> {
        self.changed_node(node, &Command::Drain { node }).await
    }

    /// Has one node take the replicas of another, dead or alive, which is removed then. Answers when that is done, or after a
    /// while, when it goes on.
    pub async fn replace_node(
        &self,
        asked: ReplaceNode,
        reach: Reach,
    ) -> Result<NodeView, HostError> {
        let here = || async {
            self.refresh().await?;
            let ReplaceNode { node, by } = asked;
            if self.catalog().removed_node(node).is_none() {
                let taker = self.catalog().node(by).cloned();
                if let Some(taker) = taker.filter(|taker| taker.id != self.id()) {
                    self.inner.peers.look(&taker, ANSWERS_WITHIN).await?;
                }
                self.change_catalog(&Command::Replace { node, by }).await?;
                tracing::info!(%node, %by, "the node is to be replaced");
                self.await_removal(node).await;
            }
            self.view(node).await
        };
        self.at_the_leader(method::NODE_REPLACE, &asked, reach, here)
            .await
    }

    /// Removes a node for ever: its replicas leave their groups, and then it leaves the cluster. Answers when that is done, or
    /// after a while, when it goes on.
    pub async fn remove_node(&self, asked: OfNode, reach: Reach) -> Result<NodeView, HostError> {
        let here = || async {
            self.refresh().await?;
            let node = asked.node;
            if self.catalog().removed_node(node).is_none() {
                self.check_dispensable(node).await?;
                self.change_catalog(&Command::Retire { node }).await?;
                tracing::info!(%node, "the node is to be removed");
                self.await_removal(node).await;
            }
            self.view(node).await
        };
        self.at_the_leader(method::NODE_REMOVE, &asked, reach, here)
            .await
    }

    /// A node says where it is now: nobody may know, and then it hears of no leader.
    pub fn note_address(&self, from: NodeId, at: NodeAt) -> Result<Done, HostError> {
        if at.peer.is_empty() || at.peer.len() > ADDRESS_MAX {
            let message = format!("an address of a node has 1 to {ADDRESS_MAX} bytes");
            return Err(HostError::Invalid(message));
        }
        if self.inner.roster.note_address(from, at.peer) {
            self.connect_to(&self.catalog(), from);
        }
        Ok(Done::DONE)
    }

    /// Tells the nodes that are asked for, of those that this one knows of, where it is.
    pub(super) async fn tell_address(&self, whom: impl Fn(NodeId) -> bool) {
        let (catalog, own) = (self.catalog(), self.inner.config.own());
        let mut others = known(&self.inner.config.cluster.nodes, &catalog);
        others.retain(|node, _| *node != self.id() && whom(*node));
        let at = NodeAt {
            peer: own.peer.clone(),
        };
        let told = others.values().map(|node| async {
            let told = self.ask::<Done>(node, method::NODE_AT, &at);
            if !matches!(clock::timeout(TELL_WITHIN, told).await, Some(Ok(_))) {
                tracing::debug!(node = %node.id, "another node does not hear where this one is");
            }
        });
        join_all(told).await;
    }

    /// Has something done by the leader of the catalogue.
    pub(super) async fn at_the_leader<T: DeserializeOwned, Here>(
        &self,
        method: &str,
        asked: &impl Serialize,
        reach: Reach,
        here: impl FnOnce() -> Here,
    ) -> Result<T, HostError>
    where
        Here: Future<Output = Result<T, HostError>>,
    {
        let leader = self.inner.node.leader(catalog::GROUP)?;
        match leader.filter(|leader| *leader != self.id() && reach == Reach::Cluster) {
            Some(leader) => {
                let leader = self.node_record(leader)?;
                self.ask(&leader, method, asked).await
            }
            None => here().await,
        }
    }

    async fn changed_node(&self, node: NodeId, command: &Command) -> Result<NodeView, HostError> {
        self.change_catalog(command).await?;
        tracing::info!(%node, ?command, "a node is something else to its cluster");
        let asked = OfNode { node };
        self.node_view(asked, Reach::Cluster).await
    }

    async fn await_removal(&self, node: NodeId) {
        let watch = Stopwatch::start();
        while self.catalog().removed_node(node).is_none() && watch.elapsed() < REMOVED_WITHIN {
            clock::sleep(LOOK).await;
        }
    }

    /// Refuses to remove a node without which a group, or the catalogue, would have no majority alive.
    async fn check_dispensable(&self, node: NodeId) -> Result<(), HostError> {
        let catalog = self.catalog();
        let members = self.catalogue_members().await?;
        let voters = members.iter().filter(|member| member.role == Role::Voter);
        let voters: Vec<NodeId> = voters.map(|member| member.node).collect();
        let alive = |id: NodeId| is_alive(&members, self.id(), id) != Some(false);
        let groups = catalog.groups_on(node);
        let stuck: Vec<&str> = groups
            .filter(|group| !survives(group.members.iter().copied(), node, alive))
            .map(|group| group.name.as_str())
            .chain((!survives(voters, node, alive)).then_some("the catalogue"))
            .collect();
        if stuck.is_empty() {
            return Ok(());
        }
        let first = stuck.iter().take(NAMED_MAX).copied().collect::<Vec<_>>();
        let more = match stuck.len() - first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(HostError::Refused(Refusal::Needed(format!(
            "node {node} cannot be removed: too few of the other members of these groups answer: {}{more}; start their nodes, or \
             remove the groups",
            first.join(", ")
        ))))
    }

    /// Makes the transport know the nodes of the catalogue, where they are, and those that it must not speak to.
    pub(super) fn connect(&self, catalog: &Catalog) {
        for removed in catalog.removed_nodes() {
            self.inner.transport.remove_peer(removed.id);
        }
        for node in catalog.nodes() {
            self.connect_to(catalog, node.id);
        }
    }

    fn connect_to(&self, catalog: &Catalog, node: NodeId) {
        let cluster = &self.inner.config.cluster;
        let configured = cluster.nodes.iter().find(|known| known.id == node.0);
        let configured = configured.map(|known| known.peer.clone());
        let addresses = match configured {
            Some(address) if cluster.fixed_addresses => vec![address],
            configured => {
                let said = self.inner.roster.address(node);
                let recorded = catalog.node(node).map(|node| node.peer.clone());
                addresses([said, recorded, configured])
            }
        };
        if !addresses.is_empty() {
            self.inner.transport.set_addresses(node, addresses);
        }
    }

    /// The members of the catalogue's group, as this node's replica has them.
    pub(super) async fn catalogue_members(&self) -> Result<Vec<MemberStatus>, HostError> {
        let status = self.inner.node.status(catalog::GROUP).await?;
        Ok(status.replica.members)
    }

    async fn views(&self) -> Result<Vec<NodeView>, HostError> {
        let (catalog, members) = (self.catalog(), self.catalogue_members().await?);
        let mut hosted: BTreeMap<NodeId, usize> = BTreeMap::new();
        for node in catalog.groups().flat_map(|group| &group.members) {
            *hosted.entry(*node).or_default() += 1;
        }
        let view = |node: &NodeRecord| NodeView {
            replicas: hosted.get(&node.id).copied().unwrap_or_default(),
            ..seen(node, &members, self.id())
        };
        Ok(catalog.nodes().map(|node| view(node)).collect())
    }

    async fn view(&self, id: NodeId) -> Result<NodeView, HostError> {
        let (catalog, members) = (self.catalog(), self.catalogue_members().await?);
        let node = catalog.node(id).or_else(|| catalog.removed_node(id));
        let node = node.ok_or_else(|| {
            let message = format!("node {id} is not part of the cluster; see `skep node list`");
            HostError::Refused(Refusal::NotFound(message))
        })?;
        let groups = catalog.groups_on(id).take(NAMED_MAX);
        Ok(NodeView {
            replicas: catalog.groups_on(id).count(),
            groups: groups.map(|group| group.name.clone()).collect(),
            ..seen(node, &members, self.id())
        })
    }
}

/// Every node that is known here: those of the configuration too, since a founder may not have registered yet.
fn known(configured: &[ClusterNode], catalog: &Catalog) -> BTreeMap<NodeId, NodeRecord> {
    let configured = configured.iter().map(|node| NodeRecord {
        id: NodeId(node.id),
        peer: node.peer.clone(),
        client: node.client.clone(),
        http: node.http.clone(),
        ..NodeRecord::default()
    });
    let registered = catalog.nodes().map(|node| (**node).clone());
    configured
        .filter(|node| catalog.removed_node(node.id).is_none())
        .chain(registered)
        .map(|node| (node.id, node))
        .collect()
}

/// While this node leads the catalogue, tells members that are silent where it is. One that comes back may know it at a former
/// address only: then it hears of this leader, and cannot answer. Runs until it is dropped.
pub(super) async fn tell_the_silent(host: Host) {
    loop {
        clock::sleep(TELL_EVERY).await;
        let leader = host.inner.node.leader(catalog::GROUP);
        if !matches!(leader, Ok(Some(leader)) if leader == host.id()) {
            continue;
        }
        let Ok(members) = host.catalogue_members().await else {
            continue;
        };
        let silent = |node| {
            let member = members.iter().find(|member| member.node == node);
            member.is_some_and(|member| member.active == Some(false))
        };
        host.tell_address(silent).await;
    }
}

/// A node without what it hosts.
fn seen(node: &NodeRecord, members: &[MemberStatus], own: NodeId) -> NodeView {
    let member = members.iter().find(|member| member.node == node.id);
    NodeView {
        node: node.clone(),
        role: member.map(|member| member.role),
        alive: is_alive(members, own, node.id),
        replicas: 0,
        groups: Vec::new(),
    }
}

/// Whether a node answers the leader of the catalogue.
fn is_alive(members: &[MemberStatus], own: NodeId, node: NodeId) -> Option<bool> {
    let member = members.iter().find(|member| member.node == node)?;
    if node == own {
        Some(true)
    } else {
        member.active
    }
}

/// Whether a group of these members can remove one of them, and go on.
fn survives(
    members: impl IntoIterator<Item = NodeId>,
    node: NodeId,
    alive: impl Fn(NodeId) -> bool,
) -> bool {
    let members: Vec<NodeId> = members.into_iter().collect();
    let answers = members.iter().filter(|member| alive(**member)).count();
    let rest: Vec<_> = members.iter().filter(|member| **member != node).collect();
    let rest_answers = rest.iter().filter(|member| alive(***member)).count();
    answers > members.len() / 2 && rest_answers > rest.len() / 2
}

/// Those of these addresses that are known, each once, the most likely first.
fn addresses(known: [Option<String>; 3]) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for address in known.into_iter().flatten() {
        if !address.is_empty() && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use skep_core::id::LogIndex;

    use super::*;
    use crate::catalog::At;

    /// Whoever joins before a founder has registered has to reach that founder all the same.
    #[test]
    fn a_founder_that_has_not_registered_is_known() {
        let configured = [1, 2, 3].map(|id| ClusterNode {
            id,
            peer: format!("configured:{id}"),
            client: String::new(),
            http: String::new(),
        });
        let mut catalog = Catalog::default();
        for id in [1, 3, 4] {
            let record = NodeRecord {
                id: NodeId(id),
                name: format!("node-{id}"),
                peer: format!("registered:{id}"),
                store: format!("{id:032x}"),
                ..NodeRecord::default()
            };
            let node = NodeId(id);
            let removed = [Command::Retire { node }, Command::RemoveNode { node }];
            let commands = std::iter::once(Command::PutNode(record)).chain(removed);
            for command in commands.take(if id == 3 { 3 } else { 1 }) {
                let at = At {
                    index: LogIndex(1),
                    now: 0,
                };
                catalog.apply(at, command).expect("taken");
            }
        }
        let known = known(&configured, &catalog);
        let at = known.values().map(|node| node.peer.as_str());
        assert_eq!(
            at.collect::<Vec<_>>(),
            ["registered:1", "configured:2", "registered:4"]
        );
    }

    #[test]
    fn a_node_is_sought_where_it_says_first() {
        let known = |address: &str| Some(address.to_owned());
        let of = |known| addresses(known).join(" ");
        assert_eq!(of([known("a"), known("b"), known("c")]), "a b c");
        assert_eq!(of([None, known("b"), known("b")]), "b");
        assert_eq!(of([known("c"), known(""), known("c")]), "c");
        assert_eq!(of([None, None, None]), "");
    }

    #[test]
    fn a_group_survives_with_a_majority_before_and_after() {
        let of = |members: &[u64], dead: &[u64], node: u64| {
            let members: Vec<_> = members.iter().copied().map(NodeId).collect();
            survives(members, NodeId(node), |id| !dead.contains(&id.0))
        };
        assert!(of(&[1, 2, 3], &[3], 3), "a dead one of three goes");
        assert!(of(&[1, 2, 3], &[], 3));
        assert!(!of(&[1, 3], &[3], 3), "nobody can decide that it goes");
        assert!(of(&[1, 3], &[], 3));
        assert!(!of(&[1, 2, 3], &[2], 3), "one of two would be left");
        assert!(!of(&[3], &[], 3), "it is the only one");
        assert!(of(&[1, 2, 3, 4, 5], &[4, 5], 5));
    }
}
