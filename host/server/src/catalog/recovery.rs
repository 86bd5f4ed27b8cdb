//! What a forced recovery leaves of the catalogue.

use std::sync::Arc;

use super::command::{Recover, Reply};
use super::{Catalog, NodeState};

impl Catalog {
    /// Takes over what was decided. What it names and is not here is passed over: it was decided on this very state, and the rest of
    /// it has to count whatever else is so.
    pub(super) fn recover(&mut self, recover: Recover) -> Reply {
        for node in recover.lost {
            if let Some(node) = self.nodes.get_mut(&node) {
                Arc::make_mut(node).state = NodeState::Removing;
            }
        }
        for (id, members) in recover.members {
            let Some(group) = self.groups.get_mut(&id) else {
                continue;
            };
            let group = Arc::make_mut(group);
            group.joiners.retain(|joiner| members.contains(joiner));
            group.members = members;
            self.added.remove(&id);
        }
        for id in recover.gone {
            // Whoever named it may have been told of it after it was removed.
            let _was_gone = self.remove_group(id);
        }
        Reply::Done
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use skep_core::id::{ComponentId, GroupId, LogIndex, NodeId};
    use skep_machine::wasm::Profile;

    use super::super::command::{Command, NewGroup};
    use super::super::{At, ComponentRecord, NodeRecord};
    use super::*;

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn apply(catalog: &mut Catalog, command: Command) -> Reply {
        let at = At {
            index: LogIndex(catalog.version.0 + 1),
            now: 0,
        };
        catalog.apply(at, command).expect("taken")
    }

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        for id in 1..=5 {
            let record = NodeRecord {
                id: NodeId(id),
                name: format!("node-{id}"),
                store: format!("{id:032x}"),
                ..NodeRecord::default()
            };
            apply(&mut catalog, Command::PutNode(record));
        }
        let component = ComponentRecord {
            id: ComponentId::of(b"kv"),
            size: 2,
            name: "kv".into(),
            uploaded: 0,
        };
        apply(&mut catalog, Command::PutComponent(component.clone()));
        for (name, members) in [("a", [1, 3, 4]), ("b", [1, 2, 3]), ("c", [3, 4, 5])] {
            let group = NewGroup {
                id: None,
                name: name.into(),
                component: component.id,
                members: nodes(&members),
                init: Vec::new(),
                profile: Profile::default(),
                quota: Default::default(),
                barriers: Default::default(),
            };
            apply(&mut catalog, Command::CreateGroup(group));
        }
        catalog
    }

    // P-112
    #[test]
    fn lost_nodes_leave_like_any_other_and_groups_have_the_members_that_are_left() {
        let mut catalog = catalog();
        let recover = Recover {
            lost: nodes(&[3, 4, 5, 9]),
            members: [(GroupId(1), nodes(&[1])), (GroupId(7), nodes(&[1]))].into(),
            gone: [GroupId(3), GroupId(8)].into(),
        };
        apply(&mut catalog, Command::Recover(recover));
        let of = |name: &str| catalog.find(name).map(|group| group.members.clone());
        assert_eq!(of("a"), Some(nodes(&[1])));
        assert_eq!(of("b"), Some(nodes(&[1, 2, 3])), "its majority is there");
        assert_eq!(of("c"), None);
        let removing = catalog.nodes().filter(|of| of.state == NodeState::Removing);
        assert_eq!(
            removing.map(|of| of.id).collect::<BTreeSet<_>>(),
            nodes(&[3, 4, 5])
        );
        for node in [4, 5] {
            apply(&mut catalog, Command::RemoveNode { node: NodeId(node) });
        }
        let at = At {
            index: LogIndex(99),
            now: 0,
        };
        let refused = catalog.apply(at, Command::RemoveNode { node: NodeId(3) });
        assert!(refused.is_err(), "group b has to be rid of it first");
        let saved = Catalog::restore(&catalog.save()).expect("a snapshot");
        assert_eq!(saved, catalog);
    }
}
