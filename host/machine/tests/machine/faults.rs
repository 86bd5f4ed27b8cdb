//! Every way for a guest to fail: the code that is replicated, and a state without a trace of it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use skep_core::id::{NodeId, Term};
use skep_core::outcome::{ChangeKind, ConfChange, GuestFault, LeaderChanged, Outcome};
use skep_machine::wasm::{Component, Engine, MachineLabel, Profile, WasmMachine};
use skep_machine::{MachineError, StateMachine, ToEnd};

use crate::guest::{
    FULL, IMAGELESS, PLAIN, apply, compile, context, machine, miscounting, number, on_apply_thread,
    profile, query, text,
};

const ATTACKS: [(&str, GuestFault); 20] = [
    ("loop", GuestFault::OutOfFuel),
    ("unreachable", GuestFault::Unreachable),
    ("recurse", GuestFault::Unreachable),
    ("divide", GuestFault::Arithmetic),
    ("out of bounds", GuestFault::MemoryOutOfBounds),
    ("function", GuestFault::BadCall),
    ("bit too large", GuestFault::ReplyTooLarge),
    ("Big", GuestFault::ReplyTooLarge),
    ("past memory", GuestFault::Malformed),
    ("Past memory", GuestFault::Malformed),
    ("x: no such case", GuestFault::Malformed),
    ("invalid text", GuestFault::Malformed),
    ("memory", GuestFault::OutOfMemory),
    ("exit", GuestFault::Exit),
    ("wait", GuestFault::ForbiddenImport),
    ("handles", GuestFault::Limit),
    ("Handle", GuestFault::Malformed),
    ("loop again", GuestFault::OutOfFuel),
    ("No room", GuestFault::Limit),
    ("unreachable again", GuestFault::Unreachable),
];

// P-30
#[test]
fn every_attack_has_its_code_and_leaves_no_trace() {
    on_apply_thread(|| {
        for component in [&*FULL, &*PLAIN] {
            let mut machine = machine(component);
            let mut index = 0;
            for (count, (attack, fault)) in (1..).zip(ATTACKS) {
                index += 1;
                assert_eq!(
                    apply(&mut machine, index, &["add"]),
                    [number(count)],
                    "before {attack}"
                );
                index += 1;
                assert_eq!(
                    apply(&mut machine, index, &[attack]),
                    [Outcome::Fault(fault)],
                    "{attack}"
                );
                index += 1;
                assert_eq!(
                    apply(&mut machine, index, &["get"]),
                    [number(count)],
                    "after {attack}"
                );
            }
        }
    });
}

// P-32
#[test]
fn a_fault_in_an_entry_takes_only_its_own_command() {
    on_apply_thread(|| {
        let mut machine = machine(&FULL);
        assert_eq!(
            apply(
                &mut machine,
                1,
                &["add", "unreachable", "add", "recurse", "j", "get"]
            ),
            [
                number(1),
                Outcome::Fault(GuestFault::Unreachable),
                number(2),
                Outcome::Fault(GuestFault::Unreachable),
                Outcome::Rejected {
                    code: 42,
                    message: "hostile".into()
                },
                number(2),
            ]
        );
    });
}

#[test]
fn batches_and_single_commands_mean_the_same() {
    let commands = ["add", "add", "j", "get", "x", "add", "n", "?", "get"];
    on_apply_thread(move || {
        let (mut full, mut plain) = (machine(&FULL), machine(&PLAIN));
        assert_eq!(
            apply(&mut full, 1, &commands),
            apply(&mut plain, 1, &commands)
        );
        assert_eq!(apply(&mut full, 2, &["get"]), [number(3)]);
    });
}

#[test]
fn a_batch_with_too_many_answers_is_run_one_by_one() {
    let mut machine = machine(&compile(&miscounting()));
    assert_eq!(
        apply(&mut machine, 1, &["add", "add"]),
        [number(1), number(2)]
    );
}

#[test]
fn fuel_is_counted_and_a_fault_costs_its_allowance() {
    let mut machine = machine(&FULL);
    let fuel = |machine: &mut dyn StateMachine, index, commands: &[&'static str]| {
        let commands = commands
            .iter()
            .map(|command| Bytes::from_static(command.as_bytes()))
            .collect::<Vec<_>>();
        machine
            .apply(&context(index), &commands)
            .to_end()
            .unwrap()
            .fuel
    };
    let allowance = profile().command_fuel;
    let one = fuel(&mut machine, 1, &["add"]);
    assert!((1..1_000).contains(&one), "{one}");
    assert_eq!(fuel(&mut machine, 2, &["add"]), one);
    assert_eq!(fuel(&mut machine, 3, &["divide"]), allowance);
    assert_eq!(fuel(&mut machine, 4, &["loop"]), allowance);
    // The batch fails and costs the allowance of both, then each is paid for.
    assert_eq!(
        fuel(&mut machine, 5, &["add", "divide"]),
        2 * allowance + one + allowance
    );
}

#[test]
fn a_trap_in_a_hook_is_an_outcome_and_leaves_no_trace() {
    let mut machine = machine(&FULL);
    let change = |kind, node| ConfChange {
        kind,
        node: NodeId(node),
        data: Bytes::from_static(b"data"),
    };
    let leader = LeaderChanged {
        old: NodeId(0),
        new: NodeId(10),
        term: Term(3),
    };

    assert_eq!(
        machine
            .apply_conf_change(&context(1), &change(ChangeKind::AddVoter, 5))
            .to_end()
            .unwrap()
            .outcomes,
        [Outcome::Reply(Bytes::new())]
    );
    assert_eq!(
        machine
            .apply_conf_change(&context(2), &change(ChangeKind::Remove, 1))
            .to_end()
            .unwrap()
            .outcomes,
        [Outcome::Rejected {
            code: 42,
            message: "hostile".into()
        }]
    );
    assert!(
        machine
            .process_status_change(&context(3), &leader)
            .to_end()
            .unwrap()
            .outcomes
            .is_empty()
    );
    assert_eq!(apply(&mut machine, 4, &["get"]), [number(16)]);

    apply(&mut machine, 5, &["Ac"]);
    assert_eq!(
        machine
            .apply_conf_change(&context(6), &change(ChangeKind::AddVoter, 5))
            .to_end()
            .unwrap()
            .outcomes,
        [Outcome::Fault(GuestFault::Unreachable)]
    );
    apply(&mut machine, 7, &["Al"]);
    let applied = machine
        .process_status_change(&context(8), &leader)
        .to_end()
        .unwrap();
    assert!(applied.outcomes.is_empty());
    assert_eq!(applied.fuel, profile().command_fuel);
    assert_eq!(apply(&mut machine, 9, &["get"]), [number(16)]);
}

#[test]
fn a_trap_in_init_is_an_outcome_and_a_machine_without_one_says_so() {
    let mut full = machine(&FULL);
    assert_eq!(
        full.init(&context(1), &Bytes::from_static(b"trap!"))
            .to_end()
            .unwrap()
            .outcomes,
        [Outcome::Fault(GuestFault::Unreachable)]
    );
    assert_eq!(apply(&mut full, 2, &["get"]), [number(0)]);
    let mut other = machine(&FULL);
    assert_eq!(
        other
            .init(&context(1), &Bytes::from_static(b"four"))
            .to_end()
            .unwrap()
            .outcomes,
        [Outcome::Reply(Bytes::new())]
    );
    assert_eq!(apply(&mut other, 2, &["get"]), [number(4)]);

    let mut plain = machine(&PLAIN);
    assert_eq!(
        plain
            .init(&context(1), &Bytes::new())
            .to_end()
            .unwrap()
            .outcomes,
        [Outcome::Reply(Bytes::new())]
    );
    let applied = plain
        .init(&context(1), &Bytes::from_static(b"config"))
        .to_end()
        .unwrap();
    assert!(
        matches!(&applied.outcomes[..], [Outcome::Rejected { code: 0, message }] if message.contains("initializer"))
    );
}

#[test]
fn a_failing_query_harms_only_itself() {
    on_apply_thread(|| {
        let mut machine = machine(&FULL);
        apply(&mut machine, 1, &["add"]);
        for (attack, fault) in [
            ("u", GuestFault::Unreachable),
            ("l", GuestFault::OutOfFuel),
            ("r", GuestFault::Unreachable),
        ] {
            assert_eq!(query(&mut machine, attack), Outcome::Fault(fault));
            assert_eq!(query(&mut machine, "get"), number(1));
        }
        assert_eq!(apply(&mut machine, 2, &["add"]), [number(2)]);
        assert_eq!(query(&mut machine, "get"), number(2));
        assert_eq!(query(&mut machine, "index"), number(2));
    });
}

// P-18
#[test]
fn a_query_that_writes_changes_nothing_that_the_log_can_see() {
    let (mut asked, mut unasked) = (machine(&FULL), machine(&FULL));
    apply(&mut asked, 1, &["add"]);
    apply(&mut unasked, 1, &["add"]);
    assert_eq!(query(&mut asked, "write"), number(555));
    for index in 2..6 {
        let commands = [
            Bytes::from_static(b"add"),
            Bytes::from_static(b"Memory"),
            Bytes::from_static(b"time"),
        ];
        let expected = unasked.apply(&context(index), &commands).to_end().unwrap();
        assert_eq!(
            asked.apply(&context(index), &commands).to_end().unwrap(),
            expected
        );
        query(&mut asked, "write");
    }
    // Another reader has only seen the log.
    let mut reader = asked.reader().unwrap();
    let answer = reader.query(&Bytes::from_static(b"get")).to_end().unwrap();
    assert_eq!((answer.outcome, answer.index.0), (number(5), 5));
}

#[test]
fn a_machine_without_queries_says_so() {
    let answer = query(&mut machine(&PLAIN), "get");
    assert!(
        matches!(&answer, Outcome::Rejected { code: 0, message } if message.contains("queries")),
        "{answer:?}"
    );
}

#[test]
fn memory_ends_where_the_profile_says() {
    let mut machine = machine(&FULL);
    assert_eq!(
        apply(&mut machine, 1, &["Memory"]),
        [number(profile().memory_bytes >> 16)]
    );
}

#[test]
fn a_component_that_does_not_fit_its_profile_does_not_start() {
    let profile = Profile {
        memory_bytes: 1 << 16,
        ..profile()
    };
    let error = WasmMachine::new(FULL.clone(), profile, context(0), Default::default())
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            MachineError::Guest {
                call: "instantiate",
                fault: GuestFault::Limit,
                ..
            }
        ),
        "{error}"
    );
}

/// Fuel for minutes.
fn patient(component: &Arc<Component>) -> WasmMachine {
    let profile = Profile {
        command_fuel: 100_000_000_000,
        query_fuel: 100_000_000_000,
        ..profile()
    };
    WasmMachine::new(
        component.clone(),
        profile,
        context(0),
        MachineLabel::default(),
    )
    .unwrap()
}

/// Polls a call so often, and drops it; whether it had not ended.
fn let_go_after<T>(polls: u32, call: impl Future<Output = T>) -> bool {
    let mut call = pin!(call);
    let mut context = Context::from_waker(Waker::noop());
    (0..polls).all(|_| call.as_mut().poll(&mut context).is_pending())
}

// P-41
#[test]
fn calls_of_a_machine_that_is_let_go_end_and_no_other_machine_sees_it() {
    on_apply_thread(|| {
        let mut asked = patient(&FULL);
        let mut reader = asked.reader().unwrap();
        assert_eq!(apply(&mut asked, 1, &["add"]), [number(1)]);
        // Of the same component, meanwhile.
        let (mut still, mut beside) = (machine(&FULL), machine(&FULL));
        for index in 1..100 {
            let command = [["add", "loop", "get", "memory"][index as usize % 4].into()];
            let before = still.apply(&context(index), &command).to_end().unwrap();
            let after = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut machine = patient(&FULL);
                    let (context, looping) = (context(1), ["loop".into()]);
                    assert!(let_go_after(3, machine.apply(&context, &looping)));
                    assert!(let_go_after(3, reader.query(&"loop".into())));
                });
                beside.apply(&context(index), &command).to_end().unwrap()
            });
            assert_eq!(before, after, "{command:?}");
        }
        // A query that was let go is nothing to those that come after it, and nothing to the commands.
        let answer = reader.query(&"get".into()).to_end().unwrap();
        assert_eq!(answer.outcome, number(1));
        assert_eq!(apply(&mut asked, 2, &["add"]), [number(2)]);
    });
}

/// What imports take of its fuel does not keep a machine from its end.
// P-41
#[test]
fn a_loop_of_imports_ends_as_well() {
    on_apply_thread(|| {
        const FOREVER: &str = "(loop $l (br $l))";
        // Its growth shows that it is there.
        let asking = "(drop (memory.grow (i32.const 1))) (loop $l (drop (call $now)) (br $l))";
        let text = text(&[], "", "0");
        assert!(text.contains(FOREVER));
        let bytes = wat::parse_str(text.replace(FOREVER, asking)).unwrap();
        let engine = Engine::new().unwrap();
        let mut machine = patient(&Arc::new(Component::compile(&engine, &bytes).unwrap()));
        let memory = || engine.budget().held().memory_bytes;
        let before = memory();
        let (context, looping) = (context(1), ["loop".into()]);
        let call = async {
            let mut call = machine.apply(&context, &looping);
            poll_fn(|cx| {
                let polled = call.as_mut().poll(cx);
                assert!(memory() > before);
                polled
            })
            .await
        };
        assert!(let_go_after(100, call));
        assert!(memory() < before);
    });
}

/// A call may be polled on any thread, and it does the same.
#[test]
fn a_call_goes_on_on_another_thread() {
    let command = ["loop".into()];
    let expected = machine(&FULL)
        .apply(&context(1), &command)
        .to_end()
        .unwrap();
    let mut machine = machine(&FULL);
    let context = context(1);
    let mut call = machine.apply(&context, &command);
    let mut polls = 0;
    let ran = loop {
        let poll = || {
            let mut context = Context::from_waker(Waker::noop());
            call.as_mut().poll(&mut context)
        };
        let polled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(256 << 10);
            thread.spawn_scoped(scope, poll).unwrap().join().unwrap()
        });
        polls += 1;
        if let Poll::Ready(ran) = polled {
            break ran.unwrap();
        }
    };
    assert_eq!(ran, expected);
    assert!(polls > 1);
}

#[test]
fn after_one_rebuild_a_command_that_fails_costs_a_fork() {
    on_apply_thread(|| {
        for (component, rebuilds) in [(&FULL, 1), (&IMAGELESS, 20)] {
            let mut machine = machine(component);
            for round in 1..=20u64 {
                let outcomes = apply(&mut machine, round, &["add", "unreachable", "add"]);
                let fault = Outcome::Fault(GuestFault::Unreachable);
                assert_eq!(outcomes, [number(2 * round - 1), fault, number(2 * round)]);
            }
            // The batch fails, and then the command: each time in an instance of its own.
            let costs = machine.costs().unwrap();
            assert!(
                (rebuilds..=2 * rebuilds).contains(&costs.rebuilds),
                "{costs:?}"
            );
            // What is run again does not count what failed.
            assert!(costs.fuel > 0 && costs.fuel < 2_000_000, "{costs:?}");
        }
    });
}
