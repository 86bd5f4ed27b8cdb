use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex};
use skep_machine::wasm::Profile;

use super::super::command::{Command, NewGroup};
use super::super::{At, ComponentRecord, TokenDigest};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn at(now: u64) -> At {
    At {
        index: LogIndex(now),
        now: now * SECOND,
    }
}

fn store(number: u64) -> String {
    format!("{number:032x}")
}

fn founder(id: u64) -> Command {
    Command::PutNode(NodeRecord {
        id: NodeId(id),
        name: format!("node-{id}"),
        peer: format!("127.0.0.1:{id}"),
        store: store(id),
        state: NodeState::Removed,
        ..NodeRecord::default()
    })
}

fn invite(token: &str, seconds: u32) -> Command {
    let token = TokenDigest::of(token);
    Command::Invite { token, seconds }
}

fn join(token: &str, of: u64, above: u64) -> Command {
    Command::Join(Join {
        token: TokenDigest::of(token),
        store: store(of),
        name: None,
        peer: "127.0.0.1:9".into(),
        client: String::new(),
        http: String::new(),
        above: NodeId(above),
    })
}

fn group(name: &str, members: &[u64]) -> Command {
    Command::CreateGroup(NewGroup {
        id: None,
        name: name.into(),
        component: ComponentId::of(b"kv"),
        members: members.iter().copied().map(NodeId).collect(),
        init: Vec::new(),
        profile: Profile::default(),
        quota: Default::default(),
        barriers: Default::default(),
    })
}

/// Three founders, and a component.
fn founded() -> Catalog {
    let mut catalog = Catalog::default();
    for id in 1..=3 {
        catalog.apply(at(id), founder(id)).expect("a founder");
    }
    let component = ComponentRecord {
        id: ComponentId::of(b"kv"),
        size: 2,
        name: "kv".into(),
        uploaded: 0,
    };
    let put = Command::PutComponent(component);
    catalog.apply(at(4), put).expect("a component");
    catalog
}

fn joined(outcome: Result<Reply, Refusal>) -> NodeId {
    match outcome {
        Ok(Reply::Node(node)) => node.id,
        other => panic!("{other:?}"),
    }
}

fn refused(outcome: Result<Reply, Refusal>) -> u32 {
    match outcome {
        Err(refusal) => refusal.number(),
        Ok(reply) => panic!("{reply:?}"),
    }
}

#[test]
fn a_node_joins_once_with_a_token_and_hears_its_id_as_often_as_it_asks() {
    let mut catalog = founded();
    assert_eq!(refused(catalog.apply(at(5), join("t", 9, 0))), 401);
    catalog.apply(at(5), invite("t", 60)).expect("invited");
    assert_eq!(refused(catalog.apply(at(6), invite("t", 60))), 409);
    let id = joined(catalog.apply(at(6), join("t", 9, 0)));
    assert_eq!(id, NodeId(4));
    // It did not hear the answer, and asks again, later than the token is good.
    assert_eq!(joined(catalog.apply(at(600), join("t", 9, 0))), id);
    assert_eq!(refused(catalog.apply(at(7), join("t", 10, 0))), 423);
    assert_eq!(refused(catalog.apply(at(8), invite("t", 60))), 409);
    let record = catalog.node(id).expect("it is part of the cluster");
    assert_eq!(
        (record.name.as_str(), record.state),
        ("node-4", NodeState::Member)
    );
    assert_eq!(record.store, store(9));
}

// P-80
#[test]
fn a_token_is_good_for_its_time_of_the_log_and_no_longer() {
    let mut catalog = founded();
    catalog.apply(at(10), invite("t", 60)).expect("invited");
    let mut late = catalog.clone();
    assert_eq!(refused(late.apply(at(70), join("t", 9, 0))), 403);
    assert_eq!(joined(catalog.apply(at(69), join("t", 9, 0))), NodeId(4));
    for seconds in [0, super::super::INVITATION_SECONDS_MAX + 1, u32::MAX] {
        assert_eq!(refused(catalog.apply(at(70), invite("u", seconds))), 400);
    }
}

#[test]
fn so_many_invitations_are_open_and_those_that_expired_make_room() {
    use super::super::INVITATIONS_MAX;
    let mut catalog = founded();
    for number in 0..INVITATIONS_MAX {
        let command = invite(&number.to_string(), 60);
        catalog.apply(at(10), command).expect("room");
    }
    assert_eq!(refused(catalog.apply(at(69), invite("more", 60))), 507);
    catalog
        .apply(at(70), invite("more", 60))
        .expect("room again");
    assert_eq!(catalog.invitations(), 1);
}

#[test]
fn a_snapshot_of_before_nodes_could_join_is_read() {
    let text = format!(
        r#"{{"version":7,"next_group":2,"nodes":{{"3":{{"id":3,"name":"c","peer":"a:1","client":"a:2","http":"a:3",
            "store":"{}"}}}},"groups":{{}},"components":{{}}}}"#,
        store(3)
    );
    let mut catalog = Catalog::restore(text.as_bytes()).expect("readable");
    assert_eq!(
        catalog.node(NodeId(3)).expect("known").state,
        NodeState::Member
    );
    catalog.apply(at(8), invite("t", 60)).expect("invited");
    assert_eq!(joined(catalog.apply(at(9), join("t", 9, 0))), NodeId(4));
    assert_eq!(
        Catalog::restore(&catalog.save()).expect("its own bytes"),
        catalog
    );
}

#[test]
fn a_node_keeps_its_store_and_has_it_alone() {
    let mut catalog = founded();
    let Command::PutNode(first) = founder(1) else {
        unreachable!("it puts a node")
    };
    let of = |change: fn(&mut NodeRecord)| {
        let mut record = first.clone();
        change(&mut record);
        Command::PutNode(record)
    };
    let moved = of(|record| record.peer = "10.0.0.1:7301".into());
    catalog.apply(at(5), moved).expect("it may move");
    assert_eq!(
        catalog.node(NodeId(1)).expect("known").peer,
        "10.0.0.1:7301"
    );
    let wiped = of(|record| record.store = store(99));
    assert_eq!(refused(catalog.apply(at(6), wiped)), 400);
    let copied = of(|record| record.id = NodeId(8));
    assert_eq!(refused(catalog.apply(at(7), copied)), 400);
    let endless = of(|record| record.http = "a".repeat(ADDRESS_MAX + 1));
    assert_eq!(refused(catalog.apply(at(8), endless)), 400);
}

#[test]
fn the_id_of_a_founder_that_is_slow_is_given_to_nobody() {
    let mut catalog = founded();
    catalog.apply(at(5), invite("t", 60)).expect("invited");
    assert_eq!(joined(catalog.apply(at(6), join("t", 9, 7))), NodeId(8));
    catalog.apply(at(7), founder(7)).expect("the slow founder");
}

// P-81
#[test]
fn a_removed_node_is_gone_for_ever_and_so_is_its_store() {
    let mut catalog = founded();
    catalog
        .apply(at(5), group("g", &[1, 2, 3]))
        .expect("a group");
    let remove = || Command::RemoveNode { node: NodeId(3) };
    let retire = || Command::Retire { node: NodeId(3) };
    assert_eq!(refused(catalog.apply(at(6), remove())), 400, "not retired");
    catalog.apply(at(6), retire()).expect("retired");
    assert_eq!(refused(catalog.apply(at(7), remove())), 412, "it hosts");
    assert_eq!(refused(catalog.apply(at(7), group("h", &[3]))), 400);
    let leave = Command::RemoveMember {
        group: GroupId(1),
        incarnation: Incarnation(5),
        node: NodeId(3),
        keeps_wanted: false,
    };
    catalog.apply(at(8), leave).expect("it left");
    catalog.apply(at(9), remove()).expect("removed");
    assert_eq!(catalog.node(NodeId(3)), None);
    let removed = catalog.removed_node(NodeId(3)).expect("remembered");
    assert_eq!(removed.state, NodeState::Removed);
    assert_eq!(refused(catalog.apply(at(10), founder(3))), 410);
    assert_eq!(refused(catalog.apply(at(10), retire())), 410);
    catalog.apply(at(10), invite("t", 60)).expect("invited");
    assert_eq!(refused(catalog.apply(at(11), join("t", 3, 0))), 410);
    // The token is as good as before; the store is not.
    assert_eq!(joined(catalog.apply(at(11), join("t", 9, 0))), NodeId(4));
}

#[test]
fn a_node_that_is_needed_stays() {
    let mut catalog = founded();
    for number in 0..20 {
        let name = format!("only-{number:02}");
        catalog
            .apply(at(5 + number), group(&name, &[2]))
            .expect("a group");
    }
    let refusal = catalog
        .apply(at(30), Command::Retire { node: NodeId(2) })
        .expect_err("it has the only replicas");
    let said = refusal.to_string();
    assert!(
        said.contains("only-00, only-01") && said.contains("and 4 more"),
        "{said}"
    );
    for node in [1, 3] {
        let retire = Command::Retire { node: NodeId(node) };
        catalog.apply(at(31), retire).expect("others go on");
    }
    let mut alone = Catalog::default();
    alone.apply(at(1), founder(1)).expect("a founder");
    let last = Command::Retire { node: NodeId(1) };
    assert_eq!(refused(alone.apply(at(2), last)), 412);
}

#[test]
fn a_cordoned_node_gets_no_replicas_and_keeps_its_own() {
    let mut catalog = founded();
    catalog.apply(at(5), group("g", &[1, 2])).expect("a group");
    let cordon = Command::Cordon { node: NodeId(2) };
    catalog.apply(at(6), cordon).expect("cordoned");
    assert_eq!(
        catalog.least_loaded(3, 1, &BTreeSet::new()),
        [[1, 3].map(NodeId).into()]
    );
    assert_eq!(refused(catalog.apply(at(7), group("h", &[2]))), 400);
    let add = |node| Command::AddMember {
        group: GroupId(1),
        incarnation: Incarnation(5),
        node: NodeId(node),
        keeps_wanted: false,
    };
    catalog
        .apply(at(8), add(2))
        .expect("it is a member already");
    // Where a node is, it says itself; what may be put on it, it does not.
    catalog.apply(at(8), founder(2)).expect("it moves");
    let state = |catalog: &Catalog| catalog.node(NodeId(2)).expect("known").state;
    assert_eq!(state(&catalog), NodeState::Cordoned);
    let uncordon = Command::Uncordon { node: NodeId(2) };
    catalog.apply(at(9), uncordon).expect("uncordoned");
    assert_eq!(state(&catalog), NodeState::Member);
    catalog.apply(at(10), group("h", &[2])).expect("a group");
}

#[test]
fn a_node_is_drained_or_has_a_successor_until_somebody_decides_otherwise() {
    let mut catalog = founded();
    catalog.apply(at(5), group("g", &[2])).expect("a group");
    let drain = |node| Command::Drain { node: NodeId(node) };
    catalog.apply(at(6), drain(2)).expect("drained");
    assert_eq!(refused(catalog.apply(at(7), group("h", &[2]))), 400);
    // Also the only replica of a group has somewhere to go before the node is removed.
    let replace = |node, by| Command::Replace {
        node: NodeId(node),
        by: NodeId(by),
    };
    for (node, by, number) in [(2, 2, 400), (2, 9, 404), (9, 2, 404), (3, 2, 400)] {
        assert_eq!(refused(catalog.apply(at(7), replace(node, by))), number);
    }
    catalog.apply(at(8), replace(2, 3)).expect("to be replaced");
    catalog.apply(at(9), drain(2)).expect("it goes already");
    catalog.apply(at(9), founder(2)).expect("it moves");
    let said = |catalog: &Catalog| {
        let node = catalog.node(NodeId(2)).expect("known");
        (node.state, node.successor)
    };
    assert_eq!(said(&catalog), (NodeState::Removing, Some(NodeId(3))));
    let uncordon = Command::Uncordon { node: NodeId(2) };
    catalog.apply(at(10), uncordon).expect("it stays");
    assert_eq!(said(&catalog), (NodeState::Member, None));
}

#[test]
fn labels_are_few_and_short() {
    let mut catalog = founded();
    let labelled = |labels: BTreeMap<String, String>| {
        let Command::PutNode(node) = founder(1) else {
            unreachable!("it puts a node")
        };
        Command::PutNode(NodeRecord { labels, ..node })
    };
    let many = |count: usize, value: &str| {
        let label = |number: usize| (format!("label-{number}"), value.to_owned());
        labelled((0..count).map(label).collect())
    };
    catalog.apply(at(5), many(LABELS_MAX, "v")).expect("room");
    assert_eq!(
        refused(catalog.apply(at(6), many(LABELS_MAX + 1, "v"))),
        400
    );
    assert_eq!(refused(catalog.apply(at(6), many(1, "two words"))), 400);
    assert_eq!(refused(catalog.apply(at(6), many(1, &"v".repeat(65)))), 400);
    assert_eq!(
        catalog.node(NodeId(1)).expect("known").labels.len(),
        LABELS_MAX
    );
}

#[test]
fn new_groups_are_spread_over_zones_and_avoid_who_is_silent() {
    let mut catalog = founded();
    let zoned = |id: u64, zone: &str| {
        let Command::PutNode(node) = founder(id) else {
            unreachable!("it puts a node")
        };
        let labels = [("zone".to_owned(), zone.to_owned())].into();
        Command::PutNode(NodeRecord { labels, ..node })
    };
    for (id, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "b")] {
        catalog.apply(at(5), zoned(id, zone)).expect("a node");
    }
    let placed = |ids: [u64; 2]| BTreeSet::from(ids.map(NodeId));
    let none = BTreeSet::new();
    let apart = [placed([1, 3]), placed([2, 4]), placed([1, 3])];
    assert_eq!(catalog.least_loaded(2, 3, &none), apart);
    let silent = BTreeSet::from([3, 4].map(NodeId));
    assert_eq!(catalog.least_loaded(2, 1, &silent), [placed([1, 2])]);
    let three = catalog.least_loaded(3, 1, &silent);
    assert_eq!(three, [[1, 2, 3].map(NodeId).into()], "there are no others");
}

#[test]
fn so_many_removed_nodes_are_remembered() {
    let mut catalog = founded();
    for number in 4..4 + REMOVED_MAX as u64 + 3 {
        let token = number.to_string();
        let commands = [
            invite(&token, 60),
            join(&token, number, 0),
            Command::Retire {
                node: NodeId(number),
            },
            Command::RemoveNode {
                node: NodeId(number),
            },
        ];
        for command in commands {
            catalog.apply(at(number), command).expect("taken");
        }
    }
    assert_eq!(catalog.removed_nodes().len(), REMOVED_MAX);
    assert_eq!(catalog.used.len(), REMOVED_MAX);
    assert_eq!(catalog.removed_node(NodeId(6)), None);
    assert!(catalog.removed_node(NodeId(7)).is_some());
}

/// A step of a random history of nodes.
fn step() -> impl Strategy<Value = Command> {
    let token = (0_u8..6).prop_map(|number| number.to_string());
    let id = (1_u64..12).prop_map(NodeId);
    let (of, above) = (0_u64..8, 0_u64..6);
    prop_oneof![
        (token.clone(), 1_u32..4).prop_map(|(token, seconds)| invite(&token, seconds)),
        (token, of, above).prop_map(|(token, of, above)| join(&token, of, above)),
        (1_u64..12).prop_map(founder),
        id.clone().prop_map(|node| Command::Cordon { node }),
        id.clone().prop_map(|node| Command::Uncordon { node }),
        id.clone().prop_map(|node| Command::Retire { node }),
        id.clone().prop_map(|node| Command::Drain { node }),
        (id.clone(), 1_u64..12).prop_map(|(node, by)| Command::Replace {
            node,
            by: NodeId(by)
        }),
        id.prop_map(|node| Command::RemoveNode { node }),
    ]
}

proptest! {
    /// Whatever is asked in whatever order: an id stands for one store, a token for one node, and what is restored goes on
    /// equally.
    // P-80
    #[test]
    fn an_id_and_a_token_are_never_given_twice(steps in proptest::collection::vec(step(), 0..120)) {
        let mut catalog = Catalog::default();
        let mut stores: BTreeMap<NodeId, String> = BTreeMap::new();
        let mut came: BTreeMap<TokenDigest, NodeId> = BTreeMap::new();
        let mut removed: BTreeSet<NodeId> = BTreeSet::new();
        for (step, now) in steps.into_iter().zip(1..) {
            let before = catalog.save();
            let mut copy = Catalog::restore(&before).expect("its own bytes");
            let joins = match &step {
                Command::Join(join) => Some(join.clone()),
                _ => None,
            };
            let outcome = catalog.apply(at(now), step.clone());
            prop_assert_eq!(&copy.apply(at(now), step), &outcome);
            prop_assert_eq!(copy.save(), catalog.save());
            if outcome.is_err() {
                prop_assert_eq!(catalog.save(), before, "refused, and changed");
            }
            if let (Some(join), Ok(Reply::Node(node))) = (joins, &outcome) {
                prop_assert_eq!(&node.store, &join.store);
                // One that was there, or came before, is told again without using the token up.
                if !stores.contains_key(&node.id) {
                    prop_assert!(node.id > join.above);
                    prop_assert_eq!(came.insert(join.token, node.id), None, "a token twice");
                }
            }
            for node in catalog.nodes().chain(catalog.removed_nodes()) {
                let first = stores.entry(node.id).or_insert_with(|| node.store.clone());
                prop_assert_eq!(&*first, &node.store, "an id twice");
            }
            removed.extend(catalog.removed_nodes().map(|node| node.id));
            prop_assert!(removed.iter().all(|id| catalog.node(*id).is_none()), "a removed node is back");
            for token in came.keys() {
                let again = Command::Invite { token: *token, seconds: 1 };
                let invited = catalog.clone().apply(at(now), again);
                prop_assert!(invited.is_err(), "a used token is given again");
            }
        }
    }
}
