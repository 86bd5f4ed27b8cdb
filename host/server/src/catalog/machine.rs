//! The catalogue as the state machine of group 0.

use std::future::ready;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};
use skep_machine::{Applied, Descriptor, LocalCode, MachineError, Running, StateMachine};
use tokio::sync::watch;

use super::command::{Command, Refusal};
use super::{At, Catalog};

/// Version of the bytes of [`Catalog::save`]. From 2 on nodes come and go; from 3 on groups have a number of replicas to keep.
pub const SCHEMA: u32 = 3;
/// The oldest version that is read.
const OLDEST_SCHEMA: u32 = 1;

/// Runs a [`Catalog`] and publishes it after every entry that changed it, and after every restore.
#[derive(Debug)]
pub struct CatalogMachine {
    catalog: Catalog,
    published: watch::Sender<Arc<Catalog>>,
}

impl CatalogMachine {
    /// An empty catalogue, and where its states appear.
    pub fn new() -> (Self, watch::Receiver<Arc<Catalog>>) {
        let (published, states) = watch::channel(Arc::new(Catalog::default()));
        (Self::publishing(published), states)
    }

    /// An empty catalogue whose states appear where those of one before it did.
    pub fn publishing(published: watch::Sender<Arc<Catalog>>) -> Self {
        Self {
            catalog: Catalog::default(),
            published,
        }
    }

    /// Shows the state, unless a machine before this one was further: what it is told again it shows to nobody.
    fn publish(&self) {
        self.published.send_if_modified(|shown| {
            let is_newer = self.catalog.version >= shown.version;
            if is_newer {
                *shown = Arc::new(self.catalog.clone());
            }
            is_newer
        });
    }

    fn run(&mut self, at: At, command: &[u8]) -> Outcome {
        let command: Command = match serde_json::from_slice(command) {
            Ok(command) => command,
            Err(error) => {
                return refused(&Refusal::Invalid(format!(
                    "not a catalogue command: {error}"
                )));
            }
        };
        match self.catalog.apply(at, command) {
            Ok(reply) => match serde_json::to_vec(&reply) {
                Ok(bytes) => Outcome::Reply(bytes.into()),
                Err(_) => Outcome::Fault(GuestFault::Malformed),
            },
            Err(refusal) => refused(&refusal),
        }
    }
}

impl StateMachine for CatalogMachine {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "skep-catalogue".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            schema: SCHEMA,
            oldest_schema: OLDEST_SCHEMA,
        }
    }

    fn init(&mut self, _: &EntryContext, _: &Bytes) -> Running<'_, Applied> {
        Box::pin(ready(Ok(Applied::default())))
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        Box::pin(async {
            let before = self.catalog.version;
            let outcomes = commands
                .iter()
                .map(|command| self.run(context.into(), command))
                .collect();
            if self.catalog.version != before {
                self.publish();
            }
            Ok(Applied { outcomes, fuel: 0 })
        })
    }

    fn apply_conf_change(&mut self, _: &EntryContext, _: &ConfChange) -> Running<'_, Applied> {
        Box::pin(ready(Ok(Applied {
            outcomes: vec![Outcome::default()],
            fuel: 0,
        })))
    }

    fn process_status_change(
        &mut self,
        _: &EntryContext,
        _: &LeaderChanged,
    ) -> Running<'_, Applied> {
        Box::pin(ready(Ok(Applied::default())))
    }

    /// Answers every request with the version of the state: a linearizable one is how a node makes sure that its
    /// own catalogue is as new as anything acknowledged before.
    fn query(&mut self, _: &Bytes) -> Running<'_, Outcome> {
        let version = self.catalog.version.0.to_string();
        Box::pin(ready(Ok(Outcome::Reply(version.into()))))
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async {
            let written = to.write_all(&self.catalog.save());
            written.map_err(|error| MachineError::Local {
                call: "save",
                code: LocalCode::Io,
                reason: error.to_string(),
            })
        })
    }

    fn restore(&mut self, _: &EntryContext, schema: u32, from: Bytes) -> Running<'_, ()> {
        Box::pin(async move {
            self.catalog = restored(schema, &from)?;
            self.publish();
            Ok(())
        })
    }
}

fn restored(schema: u32, from: &Bytes) -> Result<Catalog, MachineError> {
    let refused = |detail: String| MachineError::Guest {
        call: "restore",
        fault: GuestFault::Malformed,
        detail: Some(detail),
    };
    if !(OLDEST_SCHEMA..=SCHEMA).contains(&schema) {
        return Err(refused(format!(
            "a catalogue of schema {schema}; this version of skep reads {OLDEST_SCHEMA} to {SCHEMA}"
        )));
    }
    Catalog::restore(from).map_err(|error| refused(error.to_string()))
}

fn refused(refusal: &Refusal) -> Outcome {
    Outcome::Refused {
        code: refusal.number(),
        message: refusal.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId};
    use skep_machine::wasm::Profile;

    use super::super::command::{NewGroup, Reply};
    use super::super::{ComponentRecord, GroupRecord, NodeRecord};
    use super::*;
    use skep_machine::ToEnd;

    fn at(index: u64) -> At {
        At {
            index: LogIndex(index),
            now: 0,
        }
    }

    fn node(id: u64) -> Command {
        Command::PutNode(NodeRecord {
            id: NodeId(id),
            name: format!("node-{id}"),
            peer: format!("127.0.0.1:{}", 7300 + id),
            client: format!("127.0.0.1:{}", 7400 + id),
            http: format!("127.0.0.1:{}", 7500 + id),
            store: format!("{id:032x}"),
            ..NodeRecord::default()
        })
    }

    fn component() -> ComponentRecord {
        ComponentRecord {
            id: ComponentId::of(b"kv"),
            size: 2,
            name: "kv".into(),
            uploaded: 0,
        }
    }

    fn create(name: &str, members: &[u64]) -> Command {
        Command::CreateGroup(NewGroup {
            id: None,
            name: name.into(),
            component: component().id,
            members: members.iter().copied().map(NodeId).collect(),
            init: vec![0, 255, 16],
            profile: Profile::default(),
            quota: Default::default(),
            barriers: Default::default(),
        })
    }

    /// A machine on which the commands were applied, one an entry from 1 on, and what each answered.
    fn run(machine: &mut CatalogMachine, first: u64, commands: &[Command]) -> Vec<Outcome> {
        let apply = |(at, command): (usize, &Command)| {
            let context = EntryContext {
                index: LogIndex(first + at as u64),
                ..EntryContext::default()
            };
            let command = serde_json::to_vec(command).unwrap().into();
            machine
                .apply(&context, &[command])
                .to_end()
                .unwrap()
                .outcomes
                .remove(0)
        };
        commands.iter().enumerate().map(apply).collect()
    }

    fn seeded() -> (CatalogMachine, watch::Receiver<Arc<Catalog>>) {
        let (mut machine, states) = CatalogMachine::new();
        let commands = [
            node(1),
            node(2),
            node(3),
            Command::PutComponent(component()),
            create("a", &[1, 2, 3]),
        ];
        for outcome in run(&mut machine, 1, &commands) {
            assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
        }
        (machine, states)
    }

    fn group(outcome: &Outcome) -> Arc<GroupRecord> {
        let Outcome::Reply(reply) = outcome else {
            panic!("{outcome:?}")
        };
        match serde_json::from_slice(reply).unwrap() {
            Reply::Group(group) => group,
            other => panic!("no group in {other:?}"),
        }
    }

    fn code(outcome: &Outcome) -> u32 {
        match outcome {
            Outcome::Refused { code, .. } => *code,
            other => panic!("{other:?}"),
        }
    }

    fn saved(machine: &mut CatalogMachine) -> Vec<u8> {
        let mut bytes = Vec::new();
        machine
            .save(&EntryContext::default(), &mut bytes)
            .to_end()
            .unwrap();
        bytes
    }

    fn upload(text: &str, uploaded: u64) -> (ComponentId, Command) {
        let id = ComponentId::of(text.as_bytes());
        let record = ComponentRecord {
            id,
            size: 1,
            name: text.into(),
            uploaded,
        };
        (id, Command::PutComponent(record))
    }

    fn collected(outcome: &Outcome) -> Vec<ComponentId> {
        let Outcome::Reply(reply) = outcome else {
            panic!("{outcome:?}")
        };
        match serde_json::from_slice(reply).unwrap() {
            Reply::Collected(components) => components.iter().map(|of| of.id).collect(),
            other => panic!("nothing collected in {other:?}"),
        }
    }

    // P-28
    #[test]
    fn only_components_that_no_group_ever_used_are_collected_and_new_ones_stay() {
        let (mut machine, states) = seeded();
        let record = states.borrow().find("a").unwrap().clone();
        let (old, put_old) = upload("old", 5);
        let (new, put_new) = upload("new", 50);
        let (tried, put_tried) = upload("tried", 5);
        let (ran, put_ran) = upload("ran", 5);
        let (runs, put_runs) = upload("runs", 5);
        let deploying = |component| Command::Deploying {
            group: record.id,
            incarnation: record.incarnation,
            component,
        };
        let deployed = |component, index| Command::Deployed {
            group: record.id,
            incarnation: record.incarnation,
            index: LogIndex(index),
            deployed: super::super::Deployed {
                component,
                ..record.current()
            },
        };
        let commands = [
            put_old,
            put_new,
            put_tried,
            put_ran,
            put_runs,
            deploying(tried),
            deploying(ran),
            deployed(ran, 7),
            deployed(runs, 8),
            Command::Collect { before: 20 },
        ];
        let outcomes = run(&mut machine, 10, &commands);
        assert_eq!(collected(outcomes.last().unwrap()), [old]);
        for kept in [component().id, new, tried, ran, runs] {
            assert!(states.borrow().component(kept).is_some());
        }
        // What is gone must be uploaded again before it can be used; what is uploaded again is new again.
        let (_, again) = upload("new", 90);
        let outcomes = run(
            &mut machine,
            30,
            &[deploying(old), again, Command::Collect { before: 80 }],
        );
        assert_eq!(code(&outcomes[0]), 404);
        assert_eq!(collected(&outcomes[2]), []);
        // A group takes with it what it alone used.
        let commands = [
            Command::RemoveGroup { group: record.id },
            Command::Collect { before: u64::MAX },
        ];
        let outcomes = run(&mut machine, 40, &commands);
        assert_eq!(collected(&outcomes[1]).len(), 5);
        assert_eq!(states.borrow().components().len(), 0);
    }

    #[test]
    fn the_largest_id_leaves_ids_for_others() {
        let (mut machine, _) = seeded();
        let Command::CreateGroup(mut largest) = create("largest", &[1]) else {
            unreachable!("a group is created")
        };
        largest.id = Some(GroupId(u64::MAX));
        let commands = [
            Command::CreateGroup(largest),
            create("b", &[1]),
            create("c", &[1]),
        ];
        let ids: Vec<_> = run(&mut machine, 10, &commands)
            .iter()
            .map(|outcome| group(outcome).id.0)
            .collect();
        assert_eq!(ids, [u64::MAX, 2, 3]);
    }

    #[test]
    fn a_group_is_created_published_and_found_by_id_and_name() {
        let (_machine, states) = seeded();
        let catalog = states.borrow().clone();
        let group = catalog.find("a").unwrap();
        assert_eq!((group.id, group.incarnation), (GroupId(1), Incarnation(5)));
        assert_eq!(group.founders, [1, 2, 3].map(NodeId).into());
        assert_eq!(group.init, [0, 255, 16]);
        assert_eq!(catalog.find("1"), Some(group));
        assert_eq!(catalog.find("2"), None);
        assert_eq!(catalog.version, LogIndex(5));
    }

    #[test]
    fn refusals_change_and_publish_nothing() {
        let (mut machine, mut states) = seeded();
        states.mark_unchanged();
        let before = saved(&mut machine);
        let mut zero = create("z", &[1]);
        let mut unknown = create("u", &[1]);
        if let (Command::CreateGroup(zero), Command::CreateGroup(unknown)) =
            (&mut zero, &mut unknown)
        {
            zero.id = Some(GroupId(0));
            unknown.component = ComponentId::of(b"other");
        }
        let outcomes = run(
            &mut machine,
            6,
            &[
                create("a", &[1]),
                create("12", &[1]),
                create("", &[1]),
                create("b", &[]),
                create("b", &[1, 9]),
                zero,
                unknown,
                Command::RemoveGroup { group: GroupId(7) },
                Command::AddMember {
                    group: GroupId(1),
                    incarnation: Incarnation(5),
                    node: NodeId(9),
                    keeps_wanted: false,
                },
                Command::RemoveMember {
                    group: GroupId(1),
                    incarnation: Incarnation(4),
                    node: NodeId(3),
                    keeps_wanted: false,
                },
            ],
        );
        let codes: Vec<u32> = outcomes.iter().map(code).collect();
        assert_eq!(codes, [409, 400, 400, 400, 404, 400, 404, 404, 404, 400]);
        let garbage = machine
            .apply(&EntryContext::default(), &[Bytes::from_static(b"{")])
            .to_end()
            .unwrap();
        assert_eq!(code(&garbage.outcomes[0]), 400);
        assert_eq!(saved(&mut machine), before);
        assert!(!states.has_changed().unwrap());
    }

    #[test]
    fn an_id_is_not_given_twice_and_a_new_life_has_a_new_incarnation() {
        let (mut machine, _states) = seeded();
        let outcomes = run(
            &mut machine,
            6,
            &[
                Command::RemoveGroup { group: GroupId(1) },
                create("a", &[1]),
                create("b", &[1]),
            ],
        );
        assert_eq!(group(&outcomes[0]).id, GroupId(1));
        assert_eq!(
            (group(&outcomes[1]).id, group(&outcomes[1]).incarnation),
            (GroupId(2), Incarnation(7))
        );
        assert_eq!(group(&outcomes[2]).id, GroupId(3));
    }

    #[test]
    fn members_come_as_joiners_also_when_they_come_back() {
        let (mut machine, _states) = seeded();
        let outcomes = run(&mut machine, 6, &[create("b", &[1])]);
        let id = group(&outcomes[0]).id;
        let incarnation = Incarnation(6);
        let (add, remove) = (
            |node| Command::AddMember {
                group: id,
                incarnation,
                node: NodeId(node),
                keeps_wanted: false,
            },
            |node| Command::RemoveMember {
                group: id,
                incarnation,
                node: NodeId(node),
                keeps_wanted: false,
            },
        );
        let outcomes = run(
            &mut machine,
            7,
            &[add(1), add(2), add(2), remove(2), remove(2), add(2)],
        );
        assert_eq!(
            group(&outcomes[0]).joiners,
            BTreeSet::new(),
            "a founder stays one"
        );
        assert_eq!(group(&outcomes[1]).joiners, [NodeId(2)].into());
        assert_eq!(outcomes[1], outcomes[2], "adding twice changes nothing");
        let left = group(&outcomes[3]);
        assert_eq!(left.members, [NodeId(1)].into());
        assert_eq!(left.joiners, BTreeSet::new());
        assert_eq!(outcomes[3], outcomes[4], "removing twice changes nothing");
        let founder = run(&mut machine, 13, &[remove(1), add(1)]);
        assert_eq!(group(&founder[1]).joiners, [NodeId(1), NodeId(2)].into());
        assert_eq!(group(&founder[1]).founders, [NodeId(1)].into());
    }

    #[test]
    fn its_bytes_are_known_about() {
        let (_machine, states) = seeded();
        let mut catalog = (**states.borrow()).clone();
        let empty = catalog.save().len() as u64;
        for id in 1..=100 {
            let mut new = create("g", &[1, 2, 3]);
            if let Command::CreateGroup(new) = &mut new {
                new.name = format!("group-of-some-length-{id}");
                new.init = vec![7; 1000];
            }
            catalog.apply(at(100 + id), new).unwrap();
        }
        assert_eq!(catalog.init_bytes(), 100_003);
        let (real, about) = (catalog.save().len() as u64 - empty, catalog.bytes());
        assert!(
            about > real / 10 * 7 && about < real / 10 * 13,
            "{about} of {real}"
        );
    }

    #[test]
    fn restored_is_equal_and_goes_on_equally() {
        let (mut machine, _states) = seeded();
        let bytes = saved(&mut machine);
        let (mut copy, states) = CatalogMachine::new();
        copy.restore(&EntryContext::default(), SCHEMA, bytes.clone().into())
            .to_end()
            .unwrap();
        assert_eq!(saved(&mut copy), bytes);
        assert!(states.borrow().find("a").is_some());
        let commands = [
            create("b", &[2, 3]),
            create("b", &[1]),
            Command::RemoveGroup { group: GroupId(1) },
        ];
        assert_eq!(
            run(&mut machine, 6, &commands),
            run(&mut copy, 6, &commands)
        );
        assert_eq!(saved(&mut machine), saved(&mut copy));
    }

    #[test]
    fn a_foreign_snapshot_is_refused_and_the_state_kept() {
        let (mut machine, _states) = seeded();
        let before = saved(&mut machine);
        let context = EntryContext::default();
        assert!(
            machine
                .restore(&context, SCHEMA + 1, before.clone().into())
                .to_end()
                .is_err()
        );
        assert!(
            machine
                .restore(&context, SCHEMA, Bytes::from_static(b"nonsense"))
                .to_end()
                .is_err()
        );
        assert_eq!(saved(&mut machine), before);
    }
}
