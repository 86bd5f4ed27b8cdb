//! What is wrong with a cluster, as all of its nodes say it.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::join_all;
use skep::NodeId;
use skep_types::admin::{GroupInfo, LIST_MAX, NodeInfo, NodeView, Page, method};
use skep_types::record::NodeState;
use skep_types::status::Role;
use skep_types::trouble::Kind;

use super::{Connection, Finding};

/// Groups of one kind of trouble that are named.
const NAMED_MAX: usize = 8;

/// What a cluster says of itself.
pub(super) struct Seen {
    /// Who was asked.
    asked: NodeInfo,
    /// The nodes, as the leader of the catalogue sees them; why they are not known, if nobody says.
    views: Result<Vec<NodeView>, String>,
    /// What each node says itself, or why it says nothing.
    nodes: BTreeMap<NodeId, Result<NodeInfo, String>>,
    groups: Vec<GroupInfo>,
}

impl Seen {
    /// Asks a node for its cluster, and each of its nodes for itself.
    pub(super) async fn look(connection: &Connection, timeout: u64) -> anyhow::Result<Self> {
        let asked: NodeInfo = connection.call(method::STATUS, &()).await?;
        let views = connection.call(method::NODE_LIST, &()).await;
        let views = views.map_err(|error| format!("{error:#}"));
        let others = asked.nodes.iter().filter(|node| node.id != asked.id);
        let others = others.map(|node| async {
            let said = async {
                let connection = Connection::to(vec![node.client.clone()], timeout).await?;
                connection.call::<NodeInfo>(method::STATUS, &()).await
            };
            let said = said.await.map_err(|error| format!("{error:#}"));
            (node.id, said)
        });
        let mut nodes: BTreeMap<_, _> = join_all(others).await.into_iter().collect();
        nodes.insert(asked.id, Ok(asked.clone()));
        Ok(Self {
            groups: groups(connection).await?,
            asked,
            views,
            nodes,
        })
    }

    /// All that is not as it should be.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let dead: Vec<NodeId> = match &self.views {
            Ok(views) => {
                findings.extend(self.catalogue(views));
                views
                    .iter()
                    .flat_map(states)
                    .for_each(|found| findings.push(found));
                let dead = views.iter().filter(|view| view.alive == Some(false));
                dead.map(|view| view.node.id).collect()
            }
            Err(error) => {
                findings.push(Finding::problem(
                    "the catalogue",
                    format!("nobody says who is alive: {error}"),
                    "a-majority-is-lost",
                ));
                let silent = self.nodes.iter().filter(|(_, said)| said.is_err());
                silent.map(|(node, _)| *node).collect()
            }
        };
        for (id, said) in &self.nodes {
            match said {
                Ok(info) => findings.extend(self.said(info)),
                Err(_) if dead.contains(id) => findings.push(Finding::problem(
                    format!("node {id}"),
                    "it answers neither its cluster nor this command",
                    "a-node-is-down",
                )),
                Err(error) => findings.push(Finding::problem(
                    format!("node {id}"),
                    format!("it answers its cluster, and not this command: {error}"),
                    "a-node-is-down",
                )),
            }
        }
        findings.extend(self.strength(&dead));
        findings
    }

    /// Of the voters of the catalogue.
    fn catalogue(&self, views: &[NodeView]) -> Option<Finding> {
        let voters = views.iter().filter(|view| view.role == Some(Role::Voter));
        let (mut all, mut alive) = (0, 0);
        for voter in voters {
            all += 1;
            alive += usize::from(voter.alive != Some(false));
        }
        let spare = alive.saturating_sub(all / 2 + 1);
        (all > 1 && spare == 0).then(|| {
            let text = format!("{alive} of its {all} voters answer: it bears no further loss");
            Finding::warning("the catalogue", text, "a-node-is-down")
        })
    }

    /// What a node says of itself.
    fn said(&self, info: &NodeInfo) -> Vec<Finding> {
        let of = || format!("node {}", info.id);
        let mut findings = Vec::new();
        if info.identity != self.asked.identity {
            let text = "it belongs to another cluster than the node that was asked first";
            findings.push(Finding::problem(of(), text, "an-old-or-a-copied-disk"));
        }
        if info.version != self.asked.version {
            let (version, other) = (&info.version, &self.asked.version);
            let text = format!(
                "it runs release {version}, and node {} runs {other}",
                self.asked.id
            );
            findings.push(Finding::warning(
                of(),
                text,
                "restart-the-nodes-one-after-another",
            ));
        }
        if !info.ready {
            let text = format!(
                "it is not ready, and waits for {}",
                info.waiting_for.join(", ")
            );
            findings.push(Finding::problem(of(), text, "a-node-is-down"));
        }
        let mut kinds: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        for troubled in &info.troubled {
            let named = kinds.entry(troubled.trouble.kind).or_default();
            named.push(format!("{} ({})", troubled.name, troubled.trouble.text));
        }
        for (kind, groups) in kinds {
            let text = format!("{}: {}", kind.code(), some_of(&groups));
            let page = "a-group-waits-for-somebody";
            let waits = kind.waits_for_somebody() || matches!(kind, Kind::Suspended | Kind::Paused);
            findings.push(match waits {
                true => Finding::problem(of(), text, page),
                false => Finding::warning(of(), text, page),
            });
        }
        findings
    }

    /// Of groups whose members are dead.
    fn strength(&self, dead: &[NodeId]) -> Vec<Finding> {
        let (mut stuck, mut weak) = (Vec::new(), Vec::new());
        for group in &self.groups {
            let all = group.members.len();
            let lost = group
                .members
                .iter()
                .filter(|member| dead.contains(member))
                .count();
            let name = || format!("{} ({} of {all} replicas)", group.name, all - lost);
            match lost {
                0 => {}
                _ if all - lost <= all / 2 => stuck.push(name()),
                _ => weak.push(name()),
            }
        }
        let mut findings = Vec::new();
        if !stuck.is_empty() {
            let text = format!("they have no majority: {}", some_of(&stuck));
            findings.push(Finding::problem(count(&stuck), text, "a-majority-is-lost"));
        }
        if !weak.is_empty() {
            let text = format!("replicas are missing: {}", some_of(&weak));
            findings.push(Finding::warning(count(&weak), text, "a-node-is-down"));
        }
        findings
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, groups) = (self.nodes.len(), self.groups.len());
        write!(
            f,
            "{nodes} nodes and {groups} groups of the cluster {}",
            self.asked.cluster
        )
    }
}

/// What an operator said is to become of a node.
fn states(view: &NodeView) -> Option<Finding> {
    let text = match view.node.state {
        NodeState::Member | NodeState::Removed => return None,
        state => format!("it is {state}, and gets no new replicas"),
    };
    let of = format!("node {}", view.node.id);
    Some(Finding::warning(of, text, "take-a-node-out"))
}

fn count(groups: &[String]) -> String {
    match groups.len() {
        1 => "1 group".to_owned(),
        many => format!("{many} groups"),
    }
}

fn some_of(groups: &[String]) -> String {
    let named = groups.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>();
    match groups.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// All groups, page by page.
async fn groups(connection: &Connection) -> anyhow::Result<Vec<GroupInfo>> {
    let mut groups: Vec<GroupInfo> = Vec::new();
    loop {
        let page = Page {
            after: groups.last().map(|group| group.id),
            ..Page::default()
        };
        let more: Vec<GroupInfo> = connection.call(method::GROUP_LIST, &page).await?;
        let is_last = more.len() < LIST_MAX;
        groups.extend(more);
        if is_last {
            return Ok(groups);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skep_types::id::{ComponentId, GroupId, Incarnation};
    use skep_types::record::NodeRecord;
    use skep_types::trouble::{Trouble, Troubled};

    use super::*;
    use crate::verbs::doctor::tests::assert_page;

    fn record(id: u64) -> NodeRecord {
        NodeRecord {
            id: NodeId(id),
            name: format!("node-{id}"),
            ..NodeRecord::default()
        }
    }

    fn info(id: u64) -> NodeInfo {
        NodeInfo {
            id: NodeId(id),
            name: format!("node-{id}"),
            cluster: "hive".to_owned(),
            identity: Some("1".to_owned()),
            version: "1.0.0".to_owned(),
            ready: true,
            waiting_for: Vec::new(),
            troubled: Vec::new(),
            replicas: 1,
            leading: 0,
            snapshots_received: 0,
            nodes: (1..=3).map(record).collect(),
            groups: Vec::new(),
            group_count: 1,
            log: json!({}),
        }
    }

    fn view(id: u64) -> NodeView {
        NodeView {
            node: record(id),
            role: Some(Role::Voter),
            alive: Some(true),
            replicas: 1,
            groups: Vec::new(),
        }
    }

    fn well() -> Seen {
        let group = GroupInfo {
            id: GroupId(1),
            name: "kv".to_owned(),
            incarnation: Incarnation(1),
            component: ComponentId([0; 32]),
            members: (1..=3).map(NodeId).collect(),
            wanted: 3,
            leader: Some(NodeId(1)),
            term: None,
            memory: None,
            problem: None,
        };
        Seen {
            asked: info(1),
            views: Ok((1..=3).map(view).collect()),
            nodes: (1..=3).map(|id| (NodeId(id), Ok(info(id)))).collect(),
            groups: vec![group],
        }
    }

    fn words(seen: &Seen) -> Vec<String> {
        let findings = seen.findings();
        findings.iter().for_each(assert_page);
        let words = findings.iter().map(|found| {
            let (gravity, of, text) = (found.gravity, &found.of, &found.text);
            format!("{gravity}: {of}: {text}")
        });
        words.collect()
    }

    #[test]
    fn of_a_cluster_that_is_well_nothing_is_said() {
        assert_eq!(words(&well()), Vec::<String>::new());
    }

    #[test]
    fn a_dead_node_weakens_the_catalogue_and_its_groups() {
        let mut seen = well();
        seen.nodes.insert(NodeId(3), Err("refused".to_owned()));
        if let Ok(views) = &mut seen.views {
            views[2].alive = Some(false);
        }
        assert_eq!(
            words(&seen),
            [
                "warning: the catalogue: 2 of its 3 voters answer: it bears no further loss",
                "problem: node 3: it answers neither its cluster nor this command",
                "warning: 1 group: replicas are missing: kv (2 of 3 replicas)",
            ]
        );
    }

    #[test]
    fn without_a_majority_somebody_has_to_act() {
        let mut seen = well();
        for id in [2, 3] {
            seen.nodes.insert(NodeId(id), Err("refused".to_owned()));
        }
        seen.views = Err("no leader".to_owned());
        let said = words(&seen);
        assert!(said[0].starts_with("problem: the catalogue"), "{said:?}");
        let group = "problem: 1 group: they have no majority: kv (1 of 3 replicas)";
        assert!(said.iter().any(|line| line == group), "{said:?}");
    }

    #[test]
    fn what_nodes_say_of_themselves_is_passed_on() {
        let mut seen = well();
        let mut odd = info(2);
        odd.identity = Some("2".to_owned());
        odd.version = "1.1.0".to_owned();
        (odd.ready, odd.waiting_for) = (false, vec!["a leader".to_owned()]);
        let troubled = |kind| Troubled {
            group: GroupId(1),
            name: "kv".to_owned(),
            trouble: Trouble::new(kind, "why"),
        };
        odd.troubled = [Kind::Halted, Kind::Degraded].map(troubled).into();
        seen.nodes.insert(NodeId(2), Ok(odd));
        if let Ok(views) = &mut seen.views {
            views[1].node.state = NodeState::Cordoned;
        }
        assert_eq!(
            words(&seen),
            [
                "warning: node 2: it is cordoned, and gets no new replicas",
                "problem: node 2: it belongs to another cluster than the node that was asked first",
                "warning: node 2: it runs release 1.1.0, and node 1 runs 1.0.0",
                "problem: node 2: it is not ready, and waits for a leader",
                "problem: node 2: halted: kv (why)",
                "warning: node 2: degraded: kv (why)",
            ]
        );
    }
}
