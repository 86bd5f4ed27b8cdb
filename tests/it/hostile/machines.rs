//! Every hostile guest in three machines that live differently, as replicas do: one runs on, one is asked and looked at
//! all the time, one is made anew from its last snapshot before every step. Whatever they answer, and what it costs, must be
//! the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use skep_core::id::{GroupId, LogIndex, NodeId, Term};
use skep_core::outcome::{
    ChangeKind, ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome,
};
use skep_machine::ToEnd;
use skep_machine::state_machine::{Applied, MachineError, StateMachine};
use skep_machine::wasm::{APPLY_THREAD_STACK_BYTES, Component, Engine, MachineLabel, WasmMachine};
use skep_tests::guests;

use super::table::{ATTACKS, Attack, End, Expect, Step, profile};

/// Threads that run attacks beside each other.
const THREADS: usize = 2;

/// Queries of the one that is asked all the time: an honest one, and all that some guest knows.
const QUERIES: [&str; 6] = ["get", "x", "order", "tick", "probe", "loop"];

#[test]
fn every_guest_file_has_its_row_in_the_table() {
    let rows: Vec<_> = ATTACKS.iter().map(|attack| attack.guest).collect();
    assert_eq!(
        guests::names(),
        rows,
        "files of tests/guests, rows of the table"
    );
}

// P-30
#[test]
fn every_attack_meets_its_end_on_machines_of_different_lives() {
    let engine = Engine::new().expect("an engine");
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(attack) = ATTACKS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let met = catch_unwind(AssertUnwindSafe(|| meets_its_end(&engine, attack)));
            if met.is_err() {
                failed
                    .lock()
                    .expect("no panic while it is held")
                    .push(attack.guest);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            std::thread::Builder::new()
                .stack_size(APPLY_THREAD_STACK_BYTES)
                .spawn_scoped(scope, work)
                .expect("a thread");
        }
    });
    // What each of them did is in the panics above.
    let failed = failed.into_inner().expect("no panic while it was held");
    assert!(failed.is_empty(), "{failed:?}");
}

fn meets_its_end(engine: &Engine, attack: &Attack) {
    let guest = attack.guest;
    let compiled = Component::compile(engine, &guests::component(guest));
    let component = match (&attack.end, compiled) {
        (End::Refused(_, words), Err(error)) => {
            assert!(error.to_string().contains(words), "{guest}: {error}");
            return;
        }
        (_, Ok(component)) => Arc::new(component),
        (_, Err(error)) => panic!("{guest}: {error}"),
    };
    let replicas = [Life::Plain, Life::Asked, Life::Restarted].map(|life| {
        let replica = Replica::start(&component, life);
        if let (Err(error), End::Unstartable(words)) = (&replica, &attack.end) {
            assert!(error.to_string().contains(words), "{guest}: {error}");
        }
        replica
    });
    let steps = match attack.end {
        End::Refused(..) => panic!("{guest} was not refused"),
        End::Unstartable(_) => {
            assert!(replicas.iter().all(Result::is_err), "{guest} was started");
            return;
        }
        End::Stillborn(_) => &[],
        End::Runs(steps) => steps,
    };
    let replicas =
        replicas.map(|replica| replica.unwrap_or_else(|error| panic!("{guest}: {error}")));
    let mut group = Group {
        guest,
        replicas,
        index: 0,
    };
    let born = group.run(&Work::Init);
    if let End::Stillborn(words) = attack.end {
        assert!(format!("{born:?}").contains(words), "{guest}: {born:?}");
        return;
    }
    assert_eq!(born, [Outcome::Reply(Bytes::new())], "{guest}");
    let mut counted = 0;
    for step in steps {
        group.between_steps();
        counted = match step {
            Step::Gains(more) => counted + more,
            Step::Becomes(number) => *number,
            step => {
                counted += 1;
                group.counts(counted);
                counted + group.step(*step, counted)
            }
        };
    }
    group.between_steps();
    group.counts(counted + 1);
    if !steps.iter().any(|step| matches!(step, Step::NoSnapshot)) {
        group
            .barrier()
            .unwrap_or_else(|fault| panic!("{guest}: no snapshot: {fault}"));
    }
}

/// Three replicas of one group.
struct Group {
    guest: &'static str,
    replicas: [Replica; 3],
    index: u64,
}

impl Group {
    fn between_steps(&mut self) {
        for replica in &mut self.replicas {
            match replica.life {
                Life::Plain => {}
                Life::Asked => QUERIES.iter().for_each(|query| drop(replica.query(query))),
                Life::Restarted => replica.restart(self.guest),
            }
        }
    }

    /// One honest command, after which the counter is this.
    fn counts(&mut self, counted: u64) {
        let honest = self.run(&Work::apply(&["add"]));
        assert_eq!(honest, [reply(counted)], "{}", self.guest);
    }

    /// What the step does to the counter.
    fn step(&mut self, step: Step, counted: u64) -> u64 {
        let guest = self.guest;
        match step {
            Step::Command(command, expect) => {
                let outcomes = self.run(&Work::apply(&[command]));
                check(guest, command, &outcomes[0], expect);
                0
            }
            Step::Together(command, expect) => {
                let outcomes = self.run(&Work::apply(&[
                    "add", "ping", command, "add", command, "get",
                ]));
                check(guest, command, &outcomes[2], expect);
                check(guest, command, &outcomes[4], expect);
                let honest = [&outcomes[0], &outcomes[1], &outcomes[3], &outcomes[5]];
                let pong = Outcome::Reply(Bytes::from_static(b"pong"));
                let count = |more| reply(counted + more);
                assert_eq!(honest, [&count(1), &pong, &count(2), &count(2)], "{guest}");
                2
            }
            Step::Query(query, expect) => {
                // What a query saw of the queries before it is its replica's own.
                for replica in &mut self.replicas {
                    let answer = replica.query(query);
                    check(guest, query, &answer, expect);
                }
                let state = self.run(&Work::apply(&["get"]));
                assert_eq!(state, [reply(counted)], "{guest} after {query}");
                0
            }
            Step::Snapshot => {
                if let Err(fault) = self.barrier() {
                    panic!("{guest}: no snapshot: {fault}");
                }
                0
            }
            Step::NoSnapshot => {
                assert!(self.barrier().is_err(), "{guest} has a snapshot");
                0
            }
            Step::Members(expect) => {
                let outcomes = self.run(&Work::Members);
                check(guest, "a change of members", &outcomes[0], expect);
                0
            }
            Step::Leader => {
                self.run(&Work::Leader);
                0
            }
            Step::Gains(_) | Step::Becomes(_) => unreachable!("these are no steps of a group"),
        }
    }

    /// One entry, which must do the same everywhere.
    fn run(&mut self, work: &Work) -> Vec<Outcome> {
        let guest = self.guest;
        self.index += 1;
        let context = context(self.index);
        let [plain, others @ ..] = &mut self.replicas;
        let expected = plain
            .run(context, work.clone())
            .unwrap_or_else(|error| panic!("{guest}: {error}"));
        for other in others {
            let applied = other
                .run(context, work.clone())
                .unwrap_or_else(|error| panic!("{guest}: {error}"));
            assert_eq!(applied, expected, "{guest}: {work:?} on {:?}", other.life);
        }
        expected.outcomes
    }

    /// A barrier, which must give the same bytes or the same failure everywhere.
    fn barrier(&mut self) -> Result<Bytes, GuestFault> {
        self.index += 1;
        let context = context(self.index);
        let guest = self.guest;
        let [plain, others @ ..] = &mut self.replicas;
        let expected = plain.barrier(guest, &context);
        for other in others {
            assert_eq!(
                other.barrier(guest, &context),
                expected,
                "{guest}: the snapshot of {:?}",
                other.life
            );
        }
        expected
    }
}

/// How a replica lives.
#[derive(Clone, Copy, Debug)]
enum Life {
    Plain,
    Asked,
    Restarted,
}

/// An entry.
#[derive(Clone, Debug)]
enum Work {
    Init,
    Apply(Vec<Bytes>),
    Members,
    Leader,
}

impl Work {
    fn apply(commands: &[&'static str]) -> Self {
        Self::Apply(
            commands
                .iter()
                .map(|command| Bytes::from_static(command.as_bytes()))
                .collect(),
        )
    }
}

/// A machine with what a node would have on its disk: the last snapshot, and the log since.
struct Replica {
    life: Life,
    component: Arc<Component>,
    machine: WasmMachine,
    snapshot: Option<(EntryContext, Bytes)>,
    log: Vec<(EntryContext, Work, Applied)>,
}

impl Replica {
    fn start(component: &Arc<Component>, life: Life) -> Result<Self, MachineError> {
        Ok(Self {
            life,
            component: component.clone(),
            machine: new_machine(component)?,
            snapshot: None,
            log: Vec::new(),
        })
    }

    fn run(&mut self, context: EntryContext, work: Work) -> Result<Applied, MachineError> {
        let applied = run(&mut self.machine, &context, &work)?;
        self.log.push((context, work, applied.clone()));
        Ok(applied)
    }

    fn query(&mut self, request: &'static str) -> Outcome {
        let answer = self
            .machine
            .query(&Bytes::from_static(request.as_bytes()))
            .to_end();
        answer.unwrap_or_else(|error| panic!("the query {request}: {error}"))
    }

    fn barrier(&mut self, guest: &str, context: &EntryContext) -> Result<Bytes, GuestFault> {
        let fault = |error| match error {
            MachineError::Guest { fault, .. } => fault,
            local => panic!("{guest}: {local}"),
        };
        let mut bytes = Vec::new();
        self.machine
            .save(context, &mut bytes)
            .to_end()
            .map_err(fault)?;
        let bytes = Bytes::from(bytes);
        let schema = self.component.descriptor().schema;
        self.machine
            .restore(context, schema, bytes.clone())
            .to_end()
            .map_err(fault)?;
        self.snapshot = Some((*context, bytes.clone()));
        self.log.clear();
        Ok(bytes)
    }

    /// Begins a new life with what is on the disk. What was done before must come out as it did.
    fn restart(&mut self, guest: &str) {
        self.machine =
            new_machine(&self.component).unwrap_or_else(|error| panic!("{guest}: {error}"));
        if let Some((context, bytes)) = &self.snapshot {
            let schema = self.component.descriptor().schema;
            let restored = self
                .machine
                .restore(context, schema, bytes.clone())
                .to_end();
            restored.unwrap_or_else(|error| panic!("{guest}: {error}"));
        }
        for (context, work, before) in &self.log {
            let again = run(&mut self.machine, context, work)
                .unwrap_or_else(|error| panic!("{guest}: {error}"));
            assert_eq!(again, *before, "{guest}: {work:?}, again");
        }
    }
}

fn run(
    machine: &mut WasmMachine,
    context: &EntryContext,
    work: &Work,
) -> Result<Applied, MachineError> {
    match work {
        Work::Init => machine.init(context, &Bytes::new()).to_end(),
        Work::Apply(commands) => machine.apply(context, commands).to_end(),
        Work::Members => {
            let change = ConfChange {
                kind: ChangeKind::AddLearner,
                node: NodeId(9),
                data: Bytes::from_static(b"data"),
            };
            machine.apply_conf_change(context, &change).to_end()
        }
        Work::Leader => {
            let event = LeaderChanged {
                old: NodeId(1),
                new: NodeId(2),
                term: context.term,
            };
            machine.process_status_change(context, &event).to_end()
        }
    }
}

fn new_machine(component: &Arc<Component>) -> Result<WasmMachine, MachineError> {
    let label = MachineLabel {
        group: GroupId(7),
        name: "hostile".to_owned(),
    };
    WasmMachine::new(component.clone(), profile(), context(0), label)
}

fn context(index: u64) -> EntryContext {
    let mut entropy = [0x5a; 16];
    entropy[..8].copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    EntryContext {
        index: LogIndex(index),
        term: Term(3),
        now: 1_700_000_000_000_000_000 + index * 1_000_000,
        entropy,
    }
}

fn reply(counted: u64) -> Outcome {
    Outcome::Reply(counted.to_string().into())
}

/// Panics if the outcome is not the one expected.
pub fn check(guest: &str, request: &str, outcome: &Outcome, expect: Expect) {
    let met = match (outcome, expect) {
        (Outcome::Reply(reply), Expect::Reply(expected)) => reply == expected.as_bytes(),
        (Outcome::Reply(_), Expect::Some) => true,
        (Outcome::Rejected { code, .. }, Expect::Rejected(expected)) => *code == expected,
        (Outcome::Fault(fault), Expect::Fault(expected)) => *fault == expected,
        _ => false,
    };
    assert!(met, "{guest}: {request}: {outcome:?}, expected {expect:?}");
}
