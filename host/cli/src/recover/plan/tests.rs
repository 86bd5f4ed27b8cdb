use skep_core::id::ReplicaId;
use skep_server::catalog::NodeRecord;

use super::super::description::Member;
use super::*;

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn store(node: u64) -> String {
    format!("{node:032x}")
}

/// A cluster of five nodes whose catalogue all vote in, and these groups.
fn known(groups: &[(u64, &str, &[u64])]) -> Known {
    let node = |id: u64| NodeRecord {
        id: NodeId(id),
        name: format!("node-{id}"),
        peer: format!("127.0.0.1:{id}"),
        store: store(id),
        ..NodeRecord::default()
    };
    let group = |(id, name, members): &(u64, &str, &[u64])| KnownGroup {
        id: GroupId(*id),
        name: (*name).to_owned(),
        incarnation: Incarnation(7),
        members: ids(members),
    };
    Known {
        nodes: (1..=5).map(node).collect(),
        groups: groups.iter().map(group).collect(),
    }
}

/// The replica of a node in a group of these voters, whose log ends there.
fn replica(group: u64, node: u64, voters: &[u64], (term, index): (u64, u64)) -> Replica {
    let member = |id: &u64| {
        let replica = ReplicaId(*id);
        (
            NodeId(*id),
            Member {
                replica,
                votes: true,
            },
        )
    };
    Replica {
        group: GroupId(group),
        incarnation: Incarnation(if group == 0 { 0 } else { 7 }),
        replica: ReplicaId(node),
        term,
        committed: index.saturating_sub(2),
        last: Place { term, index },
        voters: ids(voters),
        members: voters.iter().map(member).collect(),
        suspended: false,
        trouble: None,
    }
}

fn description(node: u64, known: &Known, replicas: Vec<Replica>) -> Description {
    let catalogue = replica(0, node, &[1, 2, 3, 4, 5], (4, 20));
    Description {
        format: 1,
        node: NodeId(node),
        store: store(node),
        cluster: "bees".to_owned(),
        identity: ClusterIdentity([3; 32]).to_string(),
        incarnation: 1,
        former: Vec::new(),
        position: ClusterIdentity([node as u8; 32]).to_string(),
        replicas: [vec![catalogue], replicas].concat(),
        catalogue: Some(known.clone()),
    }
}

fn wish(lost: &[u64]) -> Wish {
    Wish {
        lost: ids(lost),
        give_up_groups: false,
    }
}

fn made(descriptions: &[Description]) -> Plan {
    let here: BTreeSet<_> = descriptions.iter().map(|of| of.node.0).collect();
    let lost: Vec<_> = (1..=5).filter(|id| !here.contains(id)).collect();
    let made = Plan::make(descriptions, &wish(&lost));
    made.unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn start(plan: &Plan, group: u64) -> &Started {
    let of = plan.starts.iter().find(|start| start.group.0 == group);
    of.unwrap_or_else(|| panic!("group {group} starts nowhere: {plan:?}"))
}

// P-111
#[test]
fn a_group_starts_from_the_replica_whose_log_has_most() {
    let voters: &[u64] = &[1, 2, 3, 4, 5];
    let known = known(&[
        (1, "term", voters),
        (2, "index", voters),
        (3, "equal", voters),
    ]);
    let one = vec![
        replica(1, 1, voters, (5, 9)),
        replica(2, 1, voters, (4, 10)),
        replica(3, 1, voters, (4, 10)),
    ];
    let two = vec![
        replica(1, 2, voters, (4, 99)),
        replica(2, 2, voters, (4, 11)),
        replica(3, 2, voters, (4, 10)),
    ];
    let plan = made(&[description(2, &known, two), description(1, &known, one)]);
    let from = |group| start(&plan, group).from.0;
    assert_eq!((from(1), from(2), from(3)), (1, 2, 1));
    let term = start(&plan, 1);
    assert_eq!((term.term, term.last), (6, Place { term: 5, index: 9 }));
    assert_eq!(term.committed, 9, "not more than its log has");
    assert_eq!(term.stay, ids(&[1, 2]));
    let said = plan.text();
    assert!(said.contains("entries 10 to 11 were in doubt"), "{said}");
    assert!(said.contains("given up for ever: node 5"), "{said}");
}

// P-111
#[test]
fn what_has_its_majority_stays_as_it_is() {
    let known = known(&[(1, "held", &[1, 2, 3]), (2, "single", &[1, 3, 4])]);
    let one = vec![
        replica(1, 1, &[1, 2, 3], (4, 9)),
        replica(2, 1, &[1, 3, 4], (4, 9)),
    ];
    let two = vec![replica(1, 2, &[1, 2, 3], (4, 9))];
    let plan = made(&[description(1, &known, one), description(2, &known, two)]);
    assert_eq!(plan.kept, [(GroupId(1), "held".to_owned())].into());
    assert_eq!(start(&plan, 2).stay, ids(&[1]));
    assert_eq!(plan.starts.len(), 2);
    let recover = plan.recover();
    assert_eq!(recover.members, [(GroupId(2), ids(&[1]))].into());
    assert_eq!(recover.lost, ids(&[3, 4, 5]));
    // The last change may not be committed: then both memberships have to be there.
    let mut grown = replica(1, 1, &[1, 2, 3], (4, 9));
    for node in [4, 5] {
        let replica = ReplicaId(node);
        grown.members.insert(
            NodeId(node),
            Member {
                replica,
                votes: true,
            },
        );
    }
    let two = vec![replica(1, 2, &[1, 2, 3], (3, 9))];
    let plan = made(&[
        description(1, &known, vec![grown, replica(2, 1, &[1, 3, 4], (4, 9))]),
        description(2, &known, two),
    ]);
    assert_eq!(start(&plan, 1).from, NodeId(1));
}

// P-111
#[test]
fn a_replica_that_is_of_no_use_is_no_start() {
    let known = known(&[(1, "kv", &[1, 2, 3, 4, 5])]);
    let mut damaged = replica(1, 1, &[1, 2, 3, 4, 5], (9, 99));
    damaged.trouble = Some("its snapshot is damaged".to_owned());
    let good = replica(1, 2, &[1, 2, 3, 4, 5], (4, 9));
    let descriptions = [
        description(1, &known, vec![damaged.clone()]),
        description(2, &known, vec![good]),
    ];
    let plan = made(&descriptions);
    let kv = start(&plan, 1);
    assert_eq!((kv.from, kv.stay.clone()), (NodeId(2), ids(&[2])));
    assert!(kv.term > 9, "nobody else can have been elected in it");
    assert!(kv.dropped[&NodeId(1)].contains("damaged"));
    // Where nothing else is left the group is gone, and not without a word.
    let descriptions = [
        description(1, &known, vec![damaged]),
        description(2, &known, Vec::new()),
    ];
    let refusal = Plan::make(&descriptions, &wish(&[3, 4, 5])).expect_err("it is gone");
    assert_eq!(refusal, Refusal::GroupsGone("kv".to_owned()));
    let wish = Wish {
        give_up_groups: true,
        ..wish(&[3, 4, 5])
    };
    let plan = Plan::make(&descriptions, &wish).expect("they may go");
    assert!(
        plan.text()
            .contains("LOST. node 1: its snapshot is damaged")
    );
    assert_eq!(plan.recover().gone, [GroupId(1)].into());
}

// P-112
#[test]
fn who_does_not_know_enough_is_refused() {
    let known = known(&[]);
    let of = |node| description(node, &known, Vec::new());
    let refused = |descriptions: &[Description], lost: &[u64]| {
        Plan::make(descriptions, &wish(lost)).expect_err("refused")
    };
    assert_eq!(refused(&[], &[1]), Refusal::Nothing);
    assert_eq!(
        refused(&[of(1), of(1)], &[2, 3, 4, 5]),
        Refusal::Twice(NodeId(1))
    );
    let mut other = of(2);
    other.identity = ClusterIdentity([4; 32]).to_string();
    let apart = Refusal::Apart(NodeId(1), NodeId(2));
    assert_eq!(refused(&[of(1), other], &[3, 4, 5]), apart);
    for wrong in [&[3, 4][..], &[3, 4, 5, 6], &[1, 3, 4, 5]] {
        let refusal = refused(&[of(1), of(2)], wrong);
        assert!(matches!(refusal, Refusal::NotTheLost { .. }), "{refusal}");
    }
    let mut stranger = of(2);
    stranger.store = store(9);
    let refusal = refused(&[of(1), stranger], &[3, 4, 5]);
    assert_eq!(refusal, Refusal::Stranger(NodeId(2)));
    let mut without = of(1);
    without.replicas.clear();
    let refusal = refused(&[without], &[2, 3, 4, 5]);
    assert!(matches!(refusal, Refusal::NoCatalogue(_)), "{refusal}");
    assert_eq!(refused(&[of(1), of(2), of(3)], &[4, 5]), Refusal::NotNeeded);
}

// P-111
#[test]
fn a_plan_is_the_same_whoever_makes_it_and_nobody_changes_it() {
    let voters: &[u64] = &[1, 3, 4];
    let known = known(&[(1, "kv", voters)]);
    let one = || description(1, &known, vec![replica(1, 1, voters, (4, 9))]);
    let two = || description(2, &known, Vec::new());
    let plan = made(&[one(), two()]);
    assert_eq!(plan, made(&[two(), one()]));
    let file = plan.write().expect("a file");
    let read = Plan::read(&file).expect("the same");
    assert_eq!(read, plan);
    assert_eq!(read.founding(), plan.founding());
    let text = String::from_utf8(file).expect("text");
    let changed = text.replace("node-3", "node-6");
    assert_eq!(Plan::read(changed.as_bytes()), Err(Refusal::Tampered));
    let of_two = StoreId::parse(&store(2)).expect("a store");
    assert_eq!(
        plan.orders(NodeId(1), of_two).map(drop),
        Err(Refusal::NotPlanned(NodeId(1)))
    );
    // Each node starts what starts from it.
    let of_one = StoreId::parse(&store(1)).expect("a store");
    let starts = |node, store| {
        let orders = plan.orders(NodeId(node), store).expect("a survivor");
        let keys = orders.starts.iter().map(|start| start.key.group);
        keys.collect::<Vec<_>>()
    };
    assert_eq!((starts(1, of_one), starts(2, of_two)), (vec![0, 1], vec![]));
    let life = plan.founding().expect("a life");
    assert_eq!(life.incarnation, 2);
    assert_eq!(life.former(), [ClusterIdentity([3; 32])]);
}
