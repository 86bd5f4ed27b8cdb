//! New groups, and where they are put.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::id::{LogIndex, NodeId};

use super::Catalog;
use super::command::{NewGroup, Refusal, Reply};

impl Catalog {
    /// The nodes that so many new groups of `size` members should be put on: for each, of those that take replicas, in different
    /// zones where that is possible, the ones with the fewest, lower ids first. Nodes that do not answer are taken where there are
    /// no others.
    pub fn least_loaded(
        &self,
        size: usize,
        groups: usize,
        silent: &BTreeSet<NodeId>,
    ) -> Vec<BTreeSet<NodeId>> {
        let nodes = self.nodes.values();
        let nodes: Vec<_> = nodes.filter(|node| node.state.takes_replicas()).collect();
        let mut load: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (node.id, 0)).collect();
        for node in self.groups.values().flat_map(|group| &group.members) {
            load.entry(*node).and_modify(|replicas| *replicas += 1);
        }
        let mut place = || {
            let mut members = BTreeSet::new();
            let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
            for _ in 0..size {
                let free = nodes.iter().filter(|node| !members.contains(&node.id));
                let best = free.min_by_key(|node| {
                    let zone = node.zone().and_then(|zone| zones.get(zone));
                    (silent.contains(&node.id), zone, load.get(&node.id), node.id)
                });
                let Some(node) = best else { break };
                members.insert(node.id);
                *load.entry(node.id).or_default() += 1;
                if let Some(zone) = node.zone() {
                    *zones.entry(zone).or_default() += 1;
                }
            }
            members
        };
        (0..groups).map(|_| place()).collect()
    }

    pub(super) fn create_groups(
        &mut self,
        index: LogIndex,
        like: &NewGroup,
        each: BTreeMap<String, BTreeSet<NodeId>>,
    ) -> Result<Reply, Refusal> {
        // All or none.
        let mut after = self.clone();
        let created: Result<_, _> = each
            .into_iter()
            .map(|(name, members)| {
                let new = NewGroup {
                    name,
                    members,
                    ..like.clone()
                };
                after.create_group(index, new).map(|group| group.id)
            })
            .collect();
        let created = created?;
        *self = after;
        Ok(Reply::Created(created))
    }
}

#[cfg(test)]
mod tests {

    use skep_core::id::{ComponentId, GroupId, Incarnation};

    use super::super::command::Command;
    use super::*;
    use crate::catalog::{At, ComponentRecord, Moving, NodeRecord};

    fn like(name: &str, members: &[u64]) -> NewGroup {
        NewGroup {
            id: None,
            name: name.into(),
            component: ComponentId::of(b"kv"),
            members: nodes(members),
            init: Vec::new(),
            profile: Default::default(),
            quota: Default::default(),
            barriers: Default::default(),
        }
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn apply(catalog: &mut Catalog, index: u64, command: Command) -> Result<Reply, Refusal> {
        let at = At {
            index: LogIndex(index),
            now: 0,
        };
        catalog.apply(at, command)
    }

    /// Three nodes, and a group `a` on all of them.
    fn seeded() -> Catalog {
        let mut catalog = Catalog::default();
        let node = |id| {
            Command::PutNode(NodeRecord {
                id: NodeId(id),
                name: format!("node-{id}"),
                peer: format!("127.0.0.1:{}", 7300 + id),
                client: format!("127.0.0.1:{}", 7400 + id),
                http: format!("127.0.0.1:{}", 7500 + id),
                store: format!("{id:032x}"),
                ..NodeRecord::default()
            })
        };
        let component = ComponentRecord {
            id: ComponentId::of(b"kv"),
            size: 2,
            name: "kv".into(),
            uploaded: 0,
        };
        let first = [
            node(1),
            node(2),
            node(3),
            Command::PutComponent(component),
            Command::CreateGroup(like("a", &[1, 2, 3])),
        ];
        for (index, command) in (1..).zip(first) {
            apply(&mut catalog, index, command).expect("taken");
        }
        catalog
    }

    #[test]
    fn new_groups_go_where_there_is_least() {
        let mut catalog = seeded();
        for (index, name, members) in [(6, "b", &[1][..]), (7, "c", &[1, 2])] {
            apply(
                &mut catalog,
                index,
                Command::CreateGroup(like(name, members)),
            )
            .expect("taken");
        }
        assert_eq!(catalog.least_loaded(1, 1, &BTreeSet::new()), [nodes(&[3])]);
        assert_eq!(
            catalog.least_loaded(2, 1, &BTreeSet::new()),
            [nodes(&[2, 3])]
        );
        assert_eq!(
            catalog.least_loaded(9, 1, &BTreeSet::new()),
            [nodes(&[1, 2, 3])]
        );
        // The next ones count those before them.
        let placed = [3, 2, 3, 1].map(|node| nodes(&[node]));
        assert_eq!(catalog.least_loaded(1, 4, &BTreeSet::new()), placed);
    }

    #[test]
    fn groups_are_created_together_or_not_at_all() {
        let mut catalog = seeded();
        let many = |names: &[&str], members: &[u64]| Command::CreateGroups {
            like: like("many", &[]),
            each: names
                .iter()
                .map(|name| ((*name).to_owned(), nodes(members)))
                .collect::<BTreeMap<_, _>>(),
        };
        let before = catalog.clone();
        // One exists, one has no members, one has a member that nobody knows.
        for (command, number) in [
            (many(&["b", "a"], &[1]), 409),
            (many(&["b", "c"], &[]), 400),
            (many(&["b", "c"], &[9]), 404),
        ] {
            let refused = apply(&mut catalog, 6, command).expect_err("refused");
            assert_eq!(refused.number(), number);
            assert_eq!(catalog, before, "nothing is left of them");
        }
        let created = apply(&mut catalog, 9, many(&["m-2", "m-1"], &[1, 2]));
        assert_eq!(created, Ok(Reply::Created(vec![GroupId(2), GroupId(3)])));
        for (id, name) in [(2, "m-1"), (3, "m-2")] {
            let record = catalog.group(GroupId(id)).expect("created");
            let said = (record.name.as_str(), record.incarnation.0);
            assert_eq!(said, (name, 9));
            assert_eq!(record.founders, nodes(&[1, 2]));
            assert_eq!(catalog.find(name), Some(record));
        }
        // They take turns in leading first.
        let first = |id| {
            catalog
                .group(GroupId(id))
                .and_then(|group| group.first_leader())
        };
        assert_eq!((first(2), first(3)), (Some(NodeId(1)), Some(NodeId(2))));
    }

    /// F5: what a group refuses is taken back by whoever asked, unless somebody else asked for it too.
    #[test]
    fn a_member_is_taken_back_only_by_whoever_alone_asked_for_it() {
        let mut catalog = seeded();
        apply(&mut catalog, 6, Command::CreateGroup(like("b", &[1]))).expect("taken");
        let (group, incarnation, node) = (GroupId(2), Incarnation(6), NodeId(2));
        let add = || Command::AddMember {
            group,
            incarnation,
            node,
            keeps_wanted: false,
        };
        let back = |added| Command::TakeBackMember {
            group,
            incarnation,
            node,
            added: LogIndex(added),
            keeps_wanted: false,
        };
        let members = |catalog: &Catalog| catalog.group(group).expect("it exists").members.clone();
        apply(&mut catalog, 7, add()).expect("taken");
        apply(&mut catalog, 8, back(6)).expect("of nobody");
        assert_eq!(members(&catalog), nodes(&[1, 2]));
        apply(&mut catalog, 9, back(7)).expect("its own");
        assert_eq!(members(&catalog), nodes(&[1]));
        let record = catalog.group(group).expect("it exists");
        assert!(record.joiners.is_empty() && catalog.added.is_empty());
        // Two ask: neither knows whether the other one was heard.
        apply(&mut catalog, 10, add()).expect("taken");
        apply(&mut catalog, 11, add()).expect("taken");
        for added in [10, 11] {
            apply(&mut catalog, 12, back(added)).expect("of nobody alone");
        }
        assert_eq!(members(&catalog), nodes(&[1, 2]));
    }

    // P-120
    #[test]
    fn the_number_of_replicas_follows_people_and_stays_when_replicas_only_move() {
        let mut catalog = seeded();
        let (group, incarnation) = (GroupId(1), Incarnation(5));
        let node = |id: u64| NodeRecord {
            id: NodeId(id),
            name: format!("node-{id}"),
            store: format!("{id:032x}"),
            ..NodeRecord::default()
        };
        apply(&mut catalog, 6, Command::PutNode(node(4))).expect("a node");
        let add = |id, keeps_wanted| Command::AddMember {
            group,
            incarnation,
            node: NodeId(id),
            keeps_wanted,
        };
        let remove = |id, keeps_wanted| Command::RemoveMember {
            group,
            incarnation,
            node: NodeId(id),
            keeps_wanted,
        };
        let set = |replicas| Command::SetReplicas {
            group,
            incarnation,
            replicas,
        };
        let wanted = |catalog: &Catalog| catalog.group(group).expect("it exists").wanted;
        assert_eq!(wanted(&catalog), 3);
        for (command, then) in [
            (add(4, true), 3),
            (remove(1, true), 3),
            (remove(2, true), 3),
            // Somebody adds what is lacking, one more, and takes one away.
            (add(1, false), 3),
            (add(2, false), 4),
            (remove(2, false), 3),
            (set(1), 1),
            (set(5), 5),
        ] {
            apply(&mut catalog, 7, command.clone()).expect("taken");
            assert_eq!(wanted(&catalog), then, "{command:?}");
        }
        for replicas in [0, crate::catalog::MEMBERS_MAX + 1] {
            let refused = apply(&mut catalog, 8, set(replicas)).expect_err("refused");
            assert_eq!(refused.number(), 400);
        }
        // Of before there was a number: what is there is what is wanted.
        let mut text = String::from_utf8(catalog.save()).expect("JSON");
        text = text.replace(r#""wanted":5,"#, "");
        let old = Catalog::restore(text.as_bytes()).expect("readable");
        assert_eq!(wanted(&old), 3);
    }

    #[test]
    fn a_move_is_remembered_until_it_is_done() {
        let mut catalog = seeded();
        let (group, incarnation) = (GroupId(1), Incarnation(5));
        let record = NodeRecord {
            id: NodeId(4),
            name: "node-4".into(),
            store: "4".repeat(32),
            ..NodeRecord::default()
        };
        apply(&mut catalog, 6, Command::PutNode(record)).expect("a node");
        let moves = |from, to| Command::MoveReplica {
            group,
            incarnation,
            moving: Moving {
                from: NodeId(from),
                to: NodeId(to),
            },
        };
        for (from, to, number) in [(4, 1, 400), (1, 2, 400), (1, 1, 400), (1, 9, 404)] {
            let refused = apply(&mut catalog, 7, moves(from, to)).expect_err("refused");
            assert_eq!(refused.number(), number, "{from} to {to}");
        }
        apply(&mut catalog, 8, moves(1, 4)).expect("taken");
        let add = Command::AddMember {
            group,
            incarnation,
            node: NodeId(4),
            keeps_wanted: true,
        };
        apply(&mut catalog, 9, add).expect("taken");
        apply(&mut catalog, 10, moves(1, 4)).expect("it is so already");
        let moving = |catalog: &Catalog| catalog.group(group).expect("it exists").moving;
        assert!(moving(&catalog).is_some());
        let remove = Command::RemoveMember {
            group,
            incarnation,
            node: NodeId(1),
            keeps_wanted: true,
        };
        apply(&mut catalog, 11, remove).expect("taken");
        assert_eq!(moving(&catalog), None);
        assert_eq!(
            catalog.group(group).expect("it exists").members,
            nodes(&[2, 3, 4])
        );
    }
}
