//! A directory that is recovered by force, with power cut at each step.

use skep_core::effect::Effect;
use skep_core::group::Group;
use skep_core::id::{GroupId, Incarnation};
use skep_core::state::Role;
use skep_core::{GroupConfig, Member};
use skep_log::sim::Crash;
use skep_log::{SimVfs, StoreId};

use super::*;

const DATA: &str = "/data";
const KEY: GroupKey = GroupKey {
    group: 7,
    incarnation: 3,
};
const OTHER: GroupKey = GroupKey {
    group: 8,
    incarnation: 4,
};

fn vfs(disk: &SimVfs) -> Arc<dyn Vfs> {
    Arc::new(disk.clone())
}

fn founding() -> Founding {
    let founders = (1..=3).map(|node| (NodeId(node), [node as u8; 16]));
    Founding::new("bees", founders.collect())
}

/// As a node opens it.
fn open(disk: &SimVfs) -> Result<Store, LogError> {
    Store::open_with(&vfs(disk), Path::new(DATA), "bees", 1, || {
        Ok(StoreId([1; 16]))
    })
}

fn recovered(disk: &SimVfs) -> Recovered {
    let store = Store::open_for_recovery(&vfs(disk), Path::new(DATA)).expect("a directory");
    store
        .open_log(&vfs(disk), LogOptions::default())
        .expect("a log")
        .1
}

/// What a replica of three founders writes first.
fn founded(key: GroupKey) -> skep_log::Record {
    let members = (1..=3).map(|node| Member {
        node: NodeId(node),
        data: Bytes::new(),
    });
    let mut config = GroupConfig::new(GroupId(key.group), Incarnation(key.incarnation), NodeId(1));
    config.members = members.collect();
    let mut group = Group::create(config).expect("a replica");
    let mut effects = Vec::new();
    group.poll(&mut effects);
    let persist = effects.into_iter().find_map(|effect| match effect {
        Effect::Persist(persist) => Some(persist),
        _ => None,
    });
    convert::record(key, persist.expect("it writes down its members"))
}

/// A directory of a node that ran, and was killed.
fn directory() -> SimVfs {
    let disk = SimVfs::new(1);
    let vfs = vfs(&disk);
    let mut store = open(&disk).expect("new");
    store.found(&vfs, &founding()).expect("founded");
    let (mut log, _) = store.open_log(&vfs, LogOptions::default()).expect("a log");
    for key in [KEY, OTHER] {
        log.append(&founded(key)).expect("taken");
    }
    log.sync().expect("synced");
    drop((log, store));
    disk
}

fn orders(disk: &SimVfs) -> Orders {
    let here = recovered(disk);
    let starts = [KEY, OTHER].map(|key| {
        let group = here.groups.iter().find(|group| group.key == key);
        Start {
            key,
            last: end(group.expect("a replica")),
            term: 9,
            stay: [NodeId(1), NodeId(2)].into(),
            commands: vec![Bytes::from_static(b"a command")],
        }
    });
    Orders {
        former: founding().identity(),
        founding: founding().recovered([(NodeId(1), [1; 16])].into(), [5; 32]),
        position: position(&here),
        starts: starts.into(),
    }
}

fn carry(disk: &SimVfs, orders: &Orders) -> Result<Carried, RecoveryError> {
    carry_out(&vfs(disk), Path::new(DATA), orders)
}

/// All is as it was ordered.
fn assert_done(disk: &SimVfs, orders: &Orders) {
    let identity = open(disk).expect("a node starts").identity().clone();
    assert_eq!(identity.founding.as_ref(), Some(&orders.founding));
    let here = recovered(disk);
    assert_eq!(here.groups.len(), 2);
    for group in &here.groups {
        // Two leave or vote no longer, and a command follows.
        assert_eq!(end(group), LogPosition { index: 6, term: 9 });
        assert_eq!(group.hard_state.commit, 6);
        assert_eq!(
            (group.hard_state.term, group.hard_state.vote),
            (9, group.replica)
        );
        let survey = convert::recovered(group.clone(), None).expect("known entries");
        let survey = Survey::of(&survey).expect("a replica");
        let members = survey.members.members().values();
        let members: Vec<_> = members.map(|member| (member.node.0, member.role)).collect();
        assert_eq!(members, [(1, Role::Voter), (2, Role::Joining)]);
    }
}

// P-110
#[test]
fn a_directory_is_recovered_once() {
    let disk = directory();
    let orders = orders(&disk);
    assert_eq!(carry(&disk, &orders).expect("as planned"), Carried::Out);
    assert_done(&disk, &orders);
    let before = position(&recovered(&disk));
    assert_eq!(carry(&disk, &orders).expect("again"), Carried::OutBefore);
    assert_eq!(position(&recovered(&disk)), before);
    // Another plan over the same survivors comes too late.
    let mut other = orders.clone();
    other.founding = founding().recovered([(NodeId(1), [1; 16])].into(), [6; 32]);
    let late = carry(&disk, &other).expect_err("another plan");
    assert!(matches!(late, RecoveryError::Elsewhere { .. }), "{late}");
}

#[test]
fn nothing_is_changed_where_something_is_not_as_planned() {
    let disk = directory();
    let good = orders(&disk);
    let before = open(&disk).expect("a node starts").identity().clone();
    let refused = |change: &dyn Fn(&mut Orders)| {
        let mut orders = good.clone();
        change(&mut orders);
        let error = carry(&disk, &orders).expect_err("not as planned");
        assert_eq!(open(&disk).expect("a node starts").identity(), &before);
        assert_eq!(position(&recovered(&disk)), good.position);
        error
    };
    let error = refused(&|orders| orders.position = [0; 32]);
    assert!(matches!(error, RecoveryError::Changed { .. }), "{error}");
    let error = refused(&|orders| orders.former = orders.founding.identity());
    assert!(matches!(error, RecoveryError::Elsewhere { .. }), "{error}");
    let error = refused(&|orders| orders.starts[1].last.index = 2);
    assert!(matches!(error, RecoveryError::Changed { .. }), "{error}");
    let error = refused(&|orders| orders.starts[1].key.group = 9);
    assert!(matches!(error, RecoveryError::NoReplica { .. }), "{error}");
    let error = refused(&|orders| orders.starts[1].term = 1);
    assert!(matches!(error, RecoveryError::NoStart { .. }), "{error}");
    let node = open(&disk).expect("a node runs");
    let error = carry(&disk, &good).expect_err("in use");
    assert!(
        matches!(error, RecoveryError::Log(LogError::Locked { .. })),
        "{error}"
    );
    drop(node);
    carry(&disk, &good).expect("as planned");
}

/// Whatever a crash leaves, a node that starts finds all of it as it was, or as it was ordered, or does not start; and the
/// recovery can be ended.
// P-110
#[test]
fn a_recovery_goes_on_wherever_it_was_cut_off() {
    let fresh = directory();
    let orders = orders(&fresh);
    let clean = fresh.fork();
    carry(&clean, &orders).expect("as planned");
    let mut outcomes = [0, 0, 0];
    for call in fresh.calls()..=clean.calls() {
        let disk = fresh.fork();
        disk.cut_power_after(call);
        let said = carry(&disk, &orders).is_ok();
        let crashes = [
            Crash::LoseAll,
            Crash::Subset(call),
            Crash::TearLast(call),
            Crash::ProcessOnly,
        ];
        for crash in crashes {
            let disk = disk.fork();
            disk.crash(crash);
            let started = open(&disk).map(|store| store.identity().founding.clone());
            let outcome = match started {
                Ok(Some(life)) if life == founding() => {
                    assert_eq!(position(&recovered(&disk)), orders.position);
                    0
                }
                Err(LogError::Recovering { .. }) => 1,
                Ok(life) => {
                    assert_eq!(life.as_ref(), Some(&orders.founding));
                    assert_done(&disk, &orders);
                    2
                }
                Err(error) => panic!("call {call}, {crash:?}: {error}"),
            };
            assert!(!said || outcome == 2, "call {call}, {crash:?}");
            outcomes[outcome] += 1;
            let again = carry(&disk, &orders);
            again.unwrap_or_else(|error| panic!("call {call}, {crash:?}: {error}"));
            assert_done(&disk, &orders);
        }
    }
    assert!(outcomes.iter().all(|count| *count > 2), "{outcomes:?}");
}

/// Another plan is not carried out over one that was begun.
#[test]
fn what_was_begun_with_one_plan_is_ended_with_it() {
    let disk = directory();
    let orders = orders(&disk);
    let mut other = orders.clone();
    other.founding = founding().recovered([(NodeId(1), [1; 16])].into(), [6; 32]);
    let mut store = Store::open_for_recovery(&vfs(&disk), Path::new(DATA)).expect("a directory");
    store
        .begin_recovery(&vfs(&disk), &orders.founding)
        .expect("begun");
    drop(store);
    let refused = open(&disk).expect_err("half done");
    assert_eq!(refused.code().name(), "store-recovering");
    let late = carry(&disk, &other).expect_err("another plan");
    assert!(matches!(late, RecoveryError::Elsewhere { .. }), "{late}");
    assert_eq!(carry(&disk, &orders).expect("the same"), Carried::Out);
    assert_done(&disk, &orders);
}
