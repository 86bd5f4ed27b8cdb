//! Bytes as what administration says: the JSON bodies of both doors, and the commands and snapshots of the catalogue.
//!
//! Byte 0 chooses which; the rest is the text. For the catalogue each line is a command, as the log of group 0 has it.

use std::fmt::Debug;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep::{ComponentId, EntryContext, LogIndex, NodeId, Outcome, StateMachine, Term};
use skep_machine::ToEnd;
use skep_machine::wasm::Profile;
use skep_server::catalog::command::{Command, NewGroup, Reply};
use skep_server::catalog::machine::{CatalogMachine, SCHEMA};
use skep_server::catalog::{
    Catalog, ComponentRecord, MEMBERS_MAX, NodeRecord, NodeState, TokenDigest,
};
use skep_types::admin::{CreateGroup, OfGroup, OfGroupAndNode, Upgrade};

/// Codes of the catalogue's refusals.
const REFUSALS: [u32; 9] = [400, 401, 403, 404, 409, 410, 412, 423, 507];
/// Characters of a refusal at most: what a caller sent is not sent back at length.
const MESSAGE_CHARS: usize = 1024;

/// Reads the text.
///
/// # Panics
/// If a value changes on its way through JSON, or two catalogues that are told the same do not agree.
pub fn run(data: &[u8]) {
    let Some((&kind, text)) = data.split_first() else {
        return;
    };
    match kind % 7 {
        0 => stays::<CreateGroup>(text),
        1 => stays::<OfGroup>(text),
        2 => stays::<OfGroupAndNode>(text),
        3 => stays::<Upgrade>(text),
        4 => stays::<Profile>(text),
        5 => commands(text),
        _ => snapshot(text),
    }
}

fn stays<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(text) else {
        return;
    };
    let written = serde_json::to_vec(&value).expect("plain values");
    let again: T = serde_json::from_slice(&written).expect("its own JSON");
    assert_eq!(again, value);
}

fn commands(text: &[u8]) {
    let (mut one, states) = catalogue();
    let (mut other, other_states) = catalogue();
    let lines: Vec<Bytes> = text
        .split(|byte| *byte == b'\n')
        .map(Bytes::copy_from_slice)
        .collect();
    for (line, index) in lines.iter().zip(100..) {
        let before = states.borrow().save();
        let outcome = apply(&mut one, index, line);
        assert_eq!(apply(&mut other, index, line), outcome, "replicas differ");
        match &outcome {
            Outcome::Reply(reply) => {
                serde_json::from_slice::<Reply>(reply).expect("a reply of the catalogue");
            }
            Outcome::Rejected { .. } => panic!("{outcome:?}"),
            Outcome::Refused { code, message } => {
                assert!(REFUSALS.contains(code), "{code}: {message}");
                // A line that is no command comes from no node, and its error quotes it.
                assert!(
                    serde_json::from_slice::<Command>(line).is_err()
                        || message.chars().count() <= MESSAGE_CHARS,
                    "{} bytes",
                    message.len()
                );
                assert_eq!(states.borrow().save(), before, "refused, and changed");
            }
            Outcome::Fault(fault) => panic!("the catalogue failed: {fault}"),
        }
        // The other one is as new as its last snapshot.
        let bytes = other_states.borrow().save();
        let context = context(index);
        other
            .restore(&context, SCHEMA, bytes.into())
            .to_end()
            .expect("its own bytes");
        assert_eq!(other_states.borrow().save(), states.borrow().save());
    }
    sound(&states.borrow());

    // Whatever was said, a group that leaves its id to the catalogue gets one.
    let create = Command::CreateGroup(NewGroup {
        id: None,
        name: "the-last-one".into(),
        component: ComponentId([1; 32]),
        members: [NodeId(1)].into(),
        init: Vec::new(),
        profile: Profile::default(),
        quota: Default::default(),
        barriers: Default::default(),
    });
    let taken = states.borrow().find("the-last-one").is_some();
    let line = serde_json::to_vec(&create).expect("plain values");
    let outcome = apply(&mut one, 90_000, &line.into());
    assert_eq!(matches!(outcome, Outcome::Reply(_)), !taken, "{outcome:?}");
}

fn sound(catalog: &Catalog) {
    for removed in catalog.removed_nodes() {
        assert_eq!(catalog.node(removed.id), None, "an id is given twice");
    }
    for group in catalog.groups() {
        assert!(group.id != skep_server::catalog::GROUP && group.members.len() <= MEMBERS_MAX);
        let found = catalog.find(&group.name).expect("its name leads to it");
        assert_eq!(found.id, group.id, "two groups have one name");
        assert!(
            (1..=MEMBERS_MAX).contains(&group.wanted),
            "{}",
            group.wanted
        );
        assert_eq!(catalog.group(group.id), Some(group));
    }
}

/// A catalogue that knows three nodes, a component and a group.
fn catalogue() -> (
    CatalogMachine,
    tokio::sync::watch::Receiver<std::sync::Arc<Catalog>>,
) {
    let (mut machine, states) = CatalogMachine::new();
    for (command, index) in prelude().iter().zip(1..) {
        let line = serde_json::to_vec(command).expect("plain values");
        let outcome = apply(&mut machine, index, &line.into());
        assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    }
    (machine, states)
}

fn prelude() -> Vec<Command> {
    let node = |id: u64| NodeRecord {
        id: NodeId(id),
        name: format!("node-{id}"),
        peer: format!("127.0.0.1:74{id:02}"),
        client: format!("127.0.0.1:75{id:02}"),
        http: format!("127.0.0.1:76{id:02}"),
        store: format!("{id:032x}"),
        state: NodeState::Member,
        ..NodeRecord::default()
    };
    let component = ComponentRecord {
        id: ComponentId([1; 32]),
        size: 9,
        name: "kv".into(),
        uploaded: 0,
    };
    let mut commands: Vec<_> = (1..=3).map(|id| Command::PutNode(node(id))).collect();
    commands.push(Command::PutComponent(component));
    commands.push(Command::CreateGroup(NewGroup {
        id: None,
        name: "kv".into(),
        component: ComponentId([1; 32]),
        members: [NodeId(1), NodeId(2)].into(),
        init: b"a".to_vec(),
        profile: Profile::default(),
        quota: Default::default(),
        barriers: Default::default(),
    }));
    commands
}

fn apply(machine: &mut CatalogMachine, index: u64, line: &Bytes) -> Outcome {
    let applied = machine
        .apply(&context(index), std::slice::from_ref(line))
        .to_end()
        .expect("the catalogue never stops");
    let mut outcomes = applied.outcomes;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

fn context(index: u64) -> EntryContext {
    EntryContext {
        index: LogIndex(index),
        term: Term(1),
        ..EntryContext::default()
    }
}

fn snapshot(text: &[u8]) {
    let Ok(catalog) = Catalog::restore(text) else {
        return;
    };
    let saved = catalog.save();
    let again = Catalog::restore(&saved).expect("its own bytes");
    assert_eq!(again.save(), saved);
}

/// One body of each kind, complete and bare, and a catalogue's log and snapshot.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let body = |name: &str, kind: u8, text: &str| {
        (name.to_owned(), [&[kind][..], text.as_bytes()].concat())
    };
    let profile = serde_json::to_string(&Profile::default()).expect("plain values");
    let id = ComponentId([1; 32]);
    let create = format!(
        r#"{{"name":"orders","id":7,"component":"{id}","members":[1,2],"init":"x","profile":{profile}}}"#
    );
    let upgrade =
        format!(r#"{{"group":"orders","component":"{id}","profile":{profile},"dry_run":true}}"#);
    let mut log: Vec<String> = prelude()
        .iter()
        .map(|command| serde_json::to_string(command).expect("plain values"))
        .collect();
    log.extend(
        [
            r#"{"add-member":{"group":1,"node":3}}"#,
            r#"{"remove-member":{"group":1,"node":1}}"#,
            r#"{"add-member":{"group":1,"node":9}}"#,
            r#"{"add-member":{"group":1,"incarnation":5,"node":3,"keeps_wanted":true}}"#,
            r#"{"set-replicas":{"group":1,"incarnation":5,"replicas":3}}"#,
            r#"{"move-replica":{"group":1,"incarnation":5,"moving":{"from":1,"to":2}}}"#,
            r#"{"move-replica":{"group":1,"incarnation":5,"moving":{"from":1,"to":3}}}"#,
            r#"{"remove-group":{"group":1}}"#,
        ]
        .map(str::to_owned),
    );
    let token = TokenDigest::of("a token");
    let join = |store: &str| {
        format!(
            r#"{{"join":{{"token":"{token}","store":"{store:0>32}","name":null,"peer":"a:1","client":"a:2","http":"a:3","above":9}}}}"#
        )
    };
    let nodes = [
        format!(r#"{{"invite":{{"token":"{token}","seconds":60}}}}"#),
        join("a"),
        join("a"),
        join("b"),
        r#"{"cordon":{"node":10}}"#.to_owned(),
        r#"{"uncordon":{"node":10}}"#.to_owned(),
        r#"{"drain":{"node":10}}"#.to_owned(),
        r#"{"replace":{"node":10,"by":1}}"#.to_owned(),
        r#"{"retire":{"node":10}}"#.to_owned(),
        r#"{"remove-node":{"node":10}}"#.to_owned(),
    ];
    let group = |id: &str, name: &str| {
        format!(
            r#"{{"create-group":{{"id":{id},"name":"{name}","component":"{}","members":[1,3],"init":"6162","profile":{profile}}}}}"#,
            ComponentId([1; 32])
        )
    };
    log.push(group("null", "orders"));
    log.push(group("7", "stock"));
    let (_, states) = catalogue();
    let saved = String::from_utf8(states.borrow().save()).expect("JSON");
    vec![
        body("create-full", 0, &create),
        body("create-bare", 0, r#"{"name":"orders"}"#),
        body("create-replicas", 0, r#"{"id":4,"replicas":3}"#),
        body("create-unknown-key", 0, r#"{"nam":"z"}"#),
        body("group", 1, r#"{"group":"kv"}"#),
        body(
            "group-and-node",
            2,
            r#"{"group":"kv","node":2,"data":"é\u0000"}"#,
        ),
        body("upgrade", 3, &upgrade),
        body("profile", 4, &profile),
        body("catalogue", 5, &log.join("\n")),
        body("catalogue-nodes", 5, &nodes.join("\n")),
        body(
            "catalogue-largest-id",
            5,
            &group(&u64::MAX.to_string(), "z"),
        ),
        body("snapshot", 6, &saved),
        body("nested", 6, &"[".repeat(300)),
    ]
}
