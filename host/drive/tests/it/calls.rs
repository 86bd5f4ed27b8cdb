//! What the calls of an entry become.

use std::future::poll_fn;

use skep_core::effect::{Call, Work};
use skep_core::id::LogIndex;
use skep_core::input::{Input, Stopped};
use skep_core::outcome::{GuestFault, Outcome};
use skep_drive::{Done, Driver, LocalCode, StateMachine, ToEnd};

use crate::model::{Model, Stage, Trouble, apply, at, change, commands, leader};

fn reply(text: &'static str) -> Outcome {
    Outcome::Reply(text.into())
}

#[test]
fn an_entry_is_the_sum_of_its_calls() {
    let mut stage = Stage::new(Model {
        init: Some(reply("taken")),
        ..Model::default()
    });
    let calls = vec![
        Call::Init("config".into()),
        leader(),
        commands(&["a", "b"]),
        change(),
    ];
    let Input::Applied {
        index,
        outcomes,
        fuel,
        ..
    } = stage.tell(apply(3, calls))
    else {
        panic!("it was applied");
    };
    // Nobody waits for what `init` and a change of leader say; whoever asks for a change waits for one outcome.
    assert_eq!(outcomes, [reply("a"), reply("ab"), reply("")]);
    assert_eq!((index, fuel), (LogIndex(3), 8));
    assert_eq!(stage.driver.applied(), LogIndex(3));
    let seen = stage.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen[0].starts_with("init [Reply(b\"taken\")]"), "{seen:?}");
}

#[test]
fn a_machine_that_refuses_its_configuration_is_driven_no_further() {
    let refusals = [
        Outcome::Rejected {
            code: 7,
            message: "not this".into(),
        },
        Outcome::Refused {
            code: 7,
            message: "not this".into(),
        },
        Outcome::Fault(GuestFault::OutOfFuel),
    ];
    for refusal in refusals {
        let mut stage = Stage::new(Model {
            init: Some(refusal.clone()),
            ..Model::default()
        });
        let calls = vec![Call::Init("config".into()), commands(&["a"])];
        let failed = stage.drive(apply(1, calls)).expect_err("it refused");
        assert!(failed.is_broken, "{failed}");
        let words = match refusal {
            Outcome::Fault(_) => "init failed on the configuration of the group: Fault(OutOfFuel)",
            _ => "init refused the configuration of the group (code 7): not this",
        };
        assert_eq!(failed.reason, words);
        // Who watches has heard what it said, and that nothing came behind.
        assert_eq!(stage.seen().len(), 1);
        assert_eq!(stage.driver.applied(), LogIndex(0));
    }
}

#[test]
fn each_command_has_its_outcome() {
    let mut stage = Stage::new(Model {
        silent: 1,
        ..Model::default()
    });
    let failed = stage.drive(apply(1, vec![commands(&["a", "b"])]));
    let failed = failed.expect_err("one is missing");
    assert!(failed.is_broken);
    assert_eq!(failed.reason, "apply gave 1 outcomes for 2 commands");
}

#[test]
fn a_failing_hook_is_an_outcome_and_a_node_that_cannot_run_it_stops() {
    let mut stage = Stage::new(Model {
        hook: Some(Trouble::Guest),
        ..Model::default()
    });
    let Input::Applied { outcomes, fuel, .. } = stage.tell(apply(1, vec![change(), leader()]))
    else {
        panic!("it was applied");
    };
    assert_eq!(outcomes, [Outcome::Fault(GuestFault::Unreachable)]);
    assert_eq!(fuel, 0);
    let fault = "[Fault(Unreachable)]";
    assert_eq!(
        stage.seen(),
        [format!("change {fault}"), format!("leader {fault}")]
    );

    stage.model().hook = Some(Trouble::Local);
    for call in [change(), leader()] {
        let failed = stage.drive(apply(2, vec![call])).expect_err("it cannot");
        assert!(!failed.is_broken, "{failed}");
    }
}

#[test]
fn the_core_hears_which_command_a_machine_stopped_at() {
    let mut stage = Stage::new(Model {
        stops_at: Some(b'x'),
        ..Model::default()
    });
    let failed = stage.drive(apply(5, vec![leader(), commands(&["a", "x", "b"])]));
    let failed = failed.expect_err("it stops");
    assert!(!failed.is_broken);
    let stopped = Stopped {
        index: LogIndex(5),
        place: 1,
        code: LocalCode::Memory.code(),
    };
    let Input::MachineFailed { at, .. } = failed.input() else {
        panic!("the machine has failed");
    };
    assert_eq!(at, Some(stopped));
}

#[test]
fn a_query_that_fails_alone_changes_nothing() {
    let mut stage = Stage::new(Model::default());
    stage.tell(apply(4, vec![commands(&["a"])]));
    let ask = |stage: &mut Stage, hook, index| {
        stage.model().hook = hook;
        let work = Work::Query {
            waiter: 9,
            request: "".into(),
            index: LogIndex(index),
            term: skep_core::id::Term(1),
        };
        match stage.drive(work) {
            Ok(Done::Answer {
                waiter: 9,
                answer,
                index,
            }) => (answer, index.0),
            other => panic!("{other:?}"),
        }
    };
    // An answer is as new as the query wants it, where entries that the machine has no part in have moved the log on.
    let (answer, index) = ask(&mut stage, None, 2);
    assert_eq!((answer.expect("an answer"), index), (reply("a"), 4));
    let (answer, index) = ask(&mut stage, None, 6);
    assert_eq!((answer.expect("an answer"), index), (reply("a"), 6));
    let (answer, _) = ask(&mut stage, Some(Trouble::Guest), 6);
    assert_eq!(
        answer.expect("an answer"),
        Outcome::Fault(GuestFault::Unreachable)
    );
    let (answer, _) = ask(&mut stage, Some(Trouble::Local), 6);
    answer.expect_err("this query cannot be run");
    stage.model().hook = None;
    stage.tell(apply(7, vec![commands(&["b"])]));
    assert_eq!(stage.model().state, b"ab");
}

#[test]
fn a_call_that_lets_others_go_first_does_the_same() {
    let mut outcomes = Vec::new();
    for yields in [0, 1, 7] {
        let mut driver = Driver::new(Model {
            yields,
            ..Model::default()
        });
        let mut pending = 0;
        let applied = async {
            let calls = vec![commands(&["a", "b"])];
            let (context, mut nobody) = (at(1), ());
            let mut call = Box::pin(driver.apply(&context, calls, &mut nobody));
            poll_fn(|cx| {
                let polled = call.as_mut().poll(cx);
                pending += usize::from(polled.is_pending());
                polled
            })
            .await
        }
        .to_end();
        assert_eq!(pending, yields);
        assert_eq!(driver.applied(), LogIndex(1));
        outcomes.push(applied.expect("it is applied"));
    }
    assert!(outcomes.iter().all(|applied| *applied == outcomes[0]));
}

#[test]
fn a_machine_in_a_box_hides_nothing() {
    let model = Model {
        stops_at: Some(b'x'),
        ..Model::default()
    };
    let mut driver: Driver<Box<dyn StateMachine>> = Driver::new(Box::new(model));
    let failed = driver
        .apply(&at(1), vec![commands(&["a", "x"])], &mut ())
        .to_end();
    let stopped = failed.expect_err("it stops").at.expect("a command");
    assert_eq!(stopped.place, 1);
    let machine = driver.machine();
    assert!(machine.memory().is_some());
    assert!(machine.reader().is_some());
}
