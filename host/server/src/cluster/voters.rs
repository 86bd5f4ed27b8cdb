//! Who is a member of the catalogue, and who of them votes. Every node is a member; three nodes vote, five from five nodes on. Whoever
//! leads the catalogue makes it so: one change at a time, and only while a majority is well.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use skep::clock;
use skep_core::id::NodeId;
use skep_core::proposal::Change;
use skep_types::status::{MemberStatus, Role};

use super::silence::Silence;
use super::{Host, catalog};
use crate::catalog::{Catalog, NodeState};
use crate::error::HostError;

/// Most voters of the catalogue: two of them may fail.
pub(super) const VOTERS: usize = 5;

/// How often the members are compared with the nodes although nothing is known to have changed.
const LOOK: Duration = Duration::from_millis(500);
/// How long one change may take before another one is thought of.
const CHANGE_WITHIN: Duration = Duration::from_secs(5);

/// How many of so many nodes vote, where so many do now. Of two either one or both do: with one the other may be lost, with two
/// nothing is.
pub(super) fn wanted(nodes: usize, now: usize) -> usize {
    match nodes {
        0 | 1 => 1,
        2 => now.clamp(1, 2),
        3 | 4 => 3,
        _ => VOTERS,
    }
}

/// Runs until it is dropped.
pub(super) async fn run(host: Host) {
    let mut states = host.inner.catalog.clone();
    let mut silence = Silence::default();
    loop {
        let leads = host.inner.node.leader(catalog::GROUP);
        let mut changed = false;
        if matches!(leads, Ok(Some(leader)) if leader == host.id()) {
            match step(&host, &mut silence).await {
                Ok(more) => changed = more,
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "the catalogue's members are not as they should be yet")
                }
            }
        } else {
            silence = Silence::default();
        }
        if changed {
            continue;
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = clock::sleep(LOOK) => {}
        }
    }
}

/// `true` if a change was made: another one may be due at once.
async fn step(host: &Host, silence: &mut Silence) -> Result<bool, HostError> {
    let mut changed = false;
    let patience = Duration::from_secs(host.inner.config.cluster.replace_voter_seconds);
    let members = host.catalogue_members().await?;
    silence.heard(&members);
    let dead = silence.longer_than(patience);
    if !due(&host.catalog(), &members, &dead, host.id()).is_empty() {
        // A leader that is new may not know all of the catalogue yet.
        host.refresh().await?;
        for change in due(&host.catalog(), &members, &dead, host.id()) {
            let done = host
                .inner
                .node
                .change_members(catalog::GROUP, change.clone());
            match clock::timeout(CHANGE_WITHIN, done).await {
                Some(Ok(_)) => {
                    tracing::info!(?change, "the catalogue has other members, or voters");
                    changed = true;
                    break;
                }
                Some(Err(error)) => {
                    tracing::debug!(?change, %error, "the catalogue's members are not changed yet");
                }
                None => break,
            }
        }
    }
    Ok(changed)
}

/// The changes that would bring the members nearer to what they should be, the first to be tried first; one is made, and then it is
/// looked again.
fn due(
    catalog: &Catalog,
    members: &[MemberStatus],
    dead: &BTreeSet<NodeId>,
    own: NodeId,
) -> Vec<Change> {
    let removed = members
        .iter()
        .filter(|member| catalog.removed_node(member.node).is_some());
    let removed: Vec<_> = removed
        .map(|member| Change::Remove {
            node: member.node,
            data: Bytes::new(),
        })
        .collect();
    if !removed.is_empty() {
        return removed;
    }
    let is_member = |node: NodeId| members.iter().any(|member| member.node == node);
    let newcomer = catalog
        .nodes()
        // A node that is lost for good may be on its way out of the groups, and is none of this one any more.
        .find(|node| !is_member(node.id) && node.state != NodeState::Removing);
    if let Some(newcomer) = newcomer {
        let (node, data) = (newcomer.id, Bytes::new());
        return vec![Change::AddLearner { node, data }];
    }
    // A founder that is slow to say that it is there is a node like any other.
    let suits = |node: NodeId| {
        catalog
            .node(node)
            .is_none_or(|node| matches!(node.state, NodeState::Member | NodeState::Cordoned))
    };
    let is_good = |member: &MemberStatus| suits(member.node) && !dead.contains(&member.node);
    let (voters, others): (Vec<_>, Vec<_>) = members
        .iter()
        .partition(|member| member.role == Role::Voter);
    let nodes = members.iter().filter(|member| suits(member.node)).count();
    let wanted = wanted(nodes, voters.len());
    let good = voters.iter().filter(|voter| is_good(voter)).count();
    if good < wanted {
        let answers = |member: &&&MemberStatus| is_good(member) && member.active == Some(true);
        let promoted = others.iter().filter(answers);
        return promoted
            .map(|member| Change::Promote { node: member.node })
            .collect();
    }
    if voters.len() > wanted {
        let mut voters = voters;
        // Who is of no use first, then those with the highest ids; the leader last.
        voters.sort_by_key(|voter| {
            let node = voter.node;
            (is_good(voter), node == own, std::cmp::Reverse(node))
        });
        return voters
            .iter()
            .map(|voter| Change::Demote { node: voter.node })
            .take(1)
            .collect();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use skep_core::id::{LogIndex, ReplicaId};

    use super::*;
    use crate::catalog::command::Command;
    use crate::catalog::{At, NodeRecord};

    const NONE: &BTreeSet<NodeId> = &BTreeSet::new();

    fn apply(catalog: &mut Catalog, command: Command) {
        let at = At {
            index: LogIndex(1),
            now: 0,
        };
        catalog.apply(at, command).expect("taken");
    }

    fn nodes(ids: impl IntoIterator<Item = u64>) -> Catalog {
        let mut catalog = Catalog::default();
        for id in ids {
            let record = NodeRecord {
                id: NodeId(id),
                name: format!("node-{id}"),
                store: format!("{id:032x}"),
                ..NodeRecord::default()
            };
            apply(&mut catalog, Command::PutNode(record));
        }
        catalog
    }

    fn remove(catalog: &mut Catalog, id: u64) {
        let node = NodeId(id);
        apply(catalog, Command::Retire { node });
        apply(catalog, Command::RemoveNode { node });
    }

    fn member(id: u64, role: Role, active: Option<bool>) -> MemberStatus {
        MemberStatus {
            node: NodeId(id),
            replica: ReplicaId(id),
            role,
            matched: None,
            active,
            catching_up: None,
        }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Vec<MemberStatus> {
        let of = |ids: &[u64], role| {
            let members = ids.iter().map(|id| member(*id, role, Some(true)));
            members.collect::<Vec<_>>()
        };
        [of(voters, Role::Voter), of(learners, Role::Learner)].concat()
    }

    fn promotes(changes: &[Change]) -> Vec<u64> {
        let promoted = changes.iter().map(|change| match change {
            Change::Promote { node } => node.0,
            other => panic!("{other:?}"),
        });
        promoted.collect()
    }

    fn demotes(changes: &[Change]) -> u64 {
        match changes {
            [Change::Demote { node }] => node.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn three_vote_and_five_from_five_nodes_on() {
        for (count, voters) in [(1, 1), (3, 3), (4, 3), (5, 5), (6, 5), (100, 5)] {
            assert_eq!(wanted(count, 63), voters);
        }
        assert_eq!((wanted(2, 1), wanted(2, 2), wanted(2, 3)), (1, 2, 2));
    }

    #[test]
    fn whoever_joins_learns_first_and_votes_when_there_are_enough() {
        let own = NodeId(1);
        let catalog = nodes(1..=4);
        let added = due(&catalog, &members(&[1, 2, 3], &[]), NONE, own);
        assert!(matches!(
            added[..],
            [Change::AddLearner {
                node: NodeId(4),
                ..
            }]
        ));
        assert_eq!(due(&catalog, &members(&[1, 2, 3], &[4]), NONE, own), []);
        let catalog = nodes(1..=5);
        let changes = due(&catalog, &members(&[1, 2, 3], &[4, 5]), NONE, own);
        assert_eq!(promotes(&changes), [4, 5]);
        let changes = due(&catalog, &members(&[1, 2, 3, 4], &[5]), NONE, own);
        assert_eq!(promotes(&changes), [5]);
        assert_eq!(
            due(&catalog, &members(&[1, 2, 3, 4, 5], &[]), NONE, own),
            []
        );
        // A second node of one alone endangers nothing.
        assert_eq!(due(&nodes(1..=2), &members(&[1], &[2]), NONE, own), []);
        let changes = due(&nodes(1..=3), &members(&[1], &[2, 3]), NONE, own);
        assert_eq!(promotes(&changes), [2, 3]);
    }

    // P-82
    #[test]
    fn a_silent_voter_is_replaced_where_there_is_another() {
        let (own, dead) = (NodeId(1), &BTreeSet::from([NodeId(3)]));
        assert_eq!(due(&nodes(1..=3), &members(&[1, 2, 3], &[]), dead, own), []);
        let catalog = nodes(1..=5);
        let catalog_of_four = nodes(1..=4);
        let changes = due(&catalog_of_four, &members(&[1, 2, 3], &[4]), dead, own);
        assert_eq!(promotes(&changes), [4]);
        let changes = due(&catalog_of_four, &members(&[1, 2, 3, 4], &[]), dead, own);
        assert_eq!(demotes(&changes), 3);
        assert_eq!(
            due(&catalog_of_four, &members(&[1, 2, 4], &[3]), dead, own),
            []
        );
        assert_eq!(
            due(&catalog, &members(&[1, 2, 3, 4, 5], &[]), dead, own),
            []
        );
        // Nobody takes a silent one's place who is silent too.
        let mut members = members(&[1, 2, 3], &[]);
        members.push(member(4, Role::Learner, Some(false)));
        assert_eq!(due(&catalog_of_four, &members, dead, own), []);
    }

    #[test]
    fn a_removed_node_leaves_before_anything_else() {
        let own = NodeId(1);
        let mut catalog = nodes(1..=4);
        remove(&mut catalog, 3);
        let changes = due(&catalog, &members(&[1, 2, 3], &[]), NONE, own);
        assert!(matches!(
            changes[..],
            [Change::Remove {
                node: NodeId(3),
                ..
            }]
        ));
        let changes = due(&catalog, &members(&[1, 2], &[4]), NONE, own);
        assert_eq!(promotes(&changes), [4]);
        assert_eq!(due(&catalog, &members(&[1, 2, 4], &[]), NONE, own), []);
    }

    /// After a forced recovery lost nodes are in the catalogue until no group names them, and no members of it any more.
    // P-112
    #[test]
    fn whoever_is_to_be_removed_and_is_no_member_is_not_added() {
        let mut catalog = nodes(1..=3);
        apply(&mut catalog, Command::Retire { node: NodeId(3) });
        let changes = due(&catalog, &members(&[1, 2], &[]), NONE, NodeId(1));
        assert_eq!(changes, []);
    }

    #[test]
    fn whoever_is_to_be_removed_votes_no_longer_and_the_leader_goes_last() {
        let mut catalog = nodes(1..=4);
        apply(&mut catalog, Command::Retire { node: NodeId(1) });
        let changes = due(&catalog, &members(&[1, 2, 3], &[4]), NONE, NodeId(1));
        assert_eq!(promotes(&changes), [4]);
        for leader in [1, 2] {
            let changes = due(&catalog, &members(&[1, 2, 3, 4], &[]), NONE, NodeId(leader));
            assert_eq!(demotes(&changes), 1);
        }
        let mut three = nodes(1..=3);
        apply(&mut three, Command::Retire { node: NodeId(1) });
        for leader in 1..=3 {
            let changes = due(&three, &members(&[1, 2, 3], &[]), NONE, NodeId(leader));
            assert_eq!(demotes(&changes), 1, "also where it leads");
        }
        let changes = due(&nodes(1..=4), &members(&[1, 2, 3, 4], &[]), NONE, NodeId(4));
        assert_eq!(demotes(&changes), 3);
    }

    #[test]
    fn founders_that_are_slow_stay_what_they_are() {
        let changes = due(&nodes(1..=1), &members(&[1, 2, 3], &[]), NONE, NodeId(1));
        assert_eq!(changes, []);
        let none = due(
            &Catalog::default(),
            &members(&[1, 2, 3], &[]),
            NONE,
            NodeId(1),
        );
        assert_eq!(none, []);
    }
}
