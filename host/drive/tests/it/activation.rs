//! Another machine for a group: prepared, then exchanged or given up.

use bytes::Bytes;
use skep_core::activation::{AbortReason, Decision, Readiness, Refusal};
use skep_core::effect::Work;
use skep_core::form::Form;
use skep_core::id::LogIndex;
use skep_core::input::Input;
use skep_core::outcome::GuestFault;

use crate::model::{Model, Stage, Trouble, apply, at, commands, deployment, restore};

type Change = fn(&mut Stage);

const ABORTED: Decision = Decision::Aborted(AbortReason::Deadline);

fn prepare(stage: &mut Stage, index: u64) -> Readiness {
    let work = Work::Prepare {
        context: at(index),
        deployment: deployment(2),
    };
    match stage.tell(work) {
        Input::Prepared {
            index: of,
            readiness,
        } if of.0 == index => readiness,
        other => panic!("{other:?}"),
    }
}

/// Whether it was done; otherwise how far the node is.
fn decide(stage: &mut Stage, index: u64, decision: Decision) -> Result<(), Readiness> {
    let context = at(index);
    match stage.tell(Work::Decide { context, decision }) {
        Input::Exchanged { index: of } if of.0 == index => Ok(()),
        Input::Prepared { readiness, .. } => Err(readiness),
        other => panic!("{other:?}"),
    }
}

/// A group that runs 1 and has applied something.
fn running() -> Stage {
    let mut stage = Stage::exchangeable(1, 1);
    stage.tell(apply(1, vec![commands(&["a"])]));
    stage.seen();
    stage
}

#[test]
fn what_is_confirmed_goes_on_from_the_bytes_of_what_ran() {
    let mut stage = running();
    assert_eq!(prepare(&mut stage, 2), Readiness::Prepared);
    assert_eq!(stage.node.made, [(2, false)]);
    let seen = ["goes on from None", "prepared"];
    assert_eq!(stage.seen(), seen);
    // Until it is decided the former one runs.
    assert_eq!(stage.model().component, 1);
    assert_eq!(decide(&mut stage, 2, Decision::Confirmed), Ok(()));
    assert_eq!(stage.seen(), ["replaced by 2", "decided Confirmed"]);
    assert_eq!(
        (stage.model().component, &stage.model().state[..]),
        (2, &b"a"[..])
    );
    assert_eq!(stage.driver.deployment(), Some(&deployment(2)));
    assert_eq!(stage.driver.applied(), LogIndex(2));
}

#[test]
fn what_is_aborted_leaves_the_former_machine_rebuilt_from_its_bytes() {
    // Those that had got the other one, and those that had not, go on alike.
    for lacks in [None, Some(Trouble::Local)] {
        let mut stage = running();
        stage.node.lacks = lacks;
        prepare(&mut stage, 2);
        assert_eq!(decide(&mut stage, 2, ABORTED), Ok(()));
        let model = stage.model();
        assert_eq!(
            (model.component, &model.state[..], model.rebuilt),
            (1, &b"a"[..], 1)
        );
        assert_eq!(stage.driver.deployment(), Some(&deployment(1)));
        assert_eq!(stage.seen().last().map(|line| &line[..7]), Some("decided"));
    }
}

#[test]
fn a_node_that_lacks_the_machine_is_asked_again() {
    let mut stage = running();
    stage.node.lacks = Some(Trouble::Local);
    for _ in 0..2 {
        assert_eq!(prepare(&mut stage, 2), Readiness::NotYet);
    }
    let confirmed = decide(&mut stage, 2, Decision::Confirmed);
    assert_eq!(confirmed, Err(Readiness::NotYet));
    // The state is saved once, whatever the machine would say now.
    stage.model().save = Some(Trouble::Guest);
    stage.node.lacks = None;
    assert_eq!(decide(&mut stage, 2, Decision::Confirmed), Ok(()));
    assert_eq!(
        (stage.model().component, &stage.model().state[..]),
        (2, &b"a"[..])
    );
}

#[test]
fn a_refusal_lasts_and_says_whose_it_is() {
    let fault = GuestFault::Unreachable;
    let refusals: [(Refusal, Change); 3] = [
        (Refusal::Save(fault), |stage| {
            stage.model().save = Some(Trouble::Guest)
        }),
        (Refusal::Start(fault), |stage| {
            stage.node.lacks = Some(Trouble::Guest)
        }),
        (Refusal::Restore(fault), |stage| {
            stage.node.refuses = Some(Trouble::Guest)
        }),
    ];
    for (refusal, set) in refusals {
        let mut stage = running();
        set(&mut stage);
        assert_eq!(prepare(&mut stage, 2), Readiness::Refused(refusal));
        let told = format!("refused: {refusal} Some(\"its own words\")");
        assert_eq!(stage.seen().last(), Some(&told));
        // It is not tried again.
        stage.model().save = None;
        (stage.node.lacks, stage.node.refuses) = (None, None);
        let made = stage.node.made.len();
        assert_eq!(prepare(&mut stage, 2), Readiness::Refused(refusal));
        assert_eq!(stage.node.made.len(), made);
        let confirmed = decide(&mut stage, 2, Decision::Confirmed);
        assert_eq!(confirmed, Err(Readiness::Refused(refusal)));
        assert_eq!(decide(&mut stage, 2, ABORTED), Ok(()));
        // What could not save itself then is not asked to.
        let rebuilt = usize::from(refusal != Refusal::Save(fault));
        assert_eq!(
            (stage.model().component, stage.model().rebuilt),
            (1, rebuilt)
        );
    }
}

#[test]
fn a_machine_that_is_never_exchanged_refuses_and_goes_on_untouched() {
    let mut stage = Stage::new(Model::default());
    stage.tell(apply(1, vec![commands(&["a"])]));
    assert_eq!(prepare(&mut stage, 2), Readiness::Refused(Refusal::Fixed));
    assert_eq!(decide(&mut stage, 2, ABORTED), Ok(()));
    assert_eq!(
        (stage.model().rebuilt, &stage.model().state[..]),
        (0, &b"a"[..])
    );
    assert_eq!(stage.node.made, []);
}

#[test]
fn a_former_machine_that_a_node_cannot_rebuild_waits() {
    let mut stage = running();
    assert_eq!(prepare(&mut stage, 2), Readiness::Prepared);
    stage.model().restore = Some(Trouble::Local);
    assert_eq!(decide(&mut stage, 2, ABORTED), Err(Readiness::NotYet));
    assert_eq!(
        stage.seen().last().map(|line| &line[..]),
        Some("waits to go on")
    );
    stage.model().restore = None;
    assert_eq!(decide(&mut stage, 2, ABORTED), Ok(()));

    let mut stage = running();
    assert_eq!(prepare(&mut stage, 2), Readiness::Prepared);
    stage.model().restore = Some(Trouble::Guest);
    assert_eq!(decide(&mut stage, 2, ABORTED), Ok(()));
    assert!(stage.seen().contains(&"not rebuilt".to_owned()));
}

#[test]
fn nothing_is_applied_behind_an_activation_that_is_not_decided() {
    let barrier = || Work::Barrier {
        context: at(3),
        state: Bytes::new(),
        form: Form::Saved,
    };
    for work in [apply(3, vec![commands(&["b"])]), barrier()] {
        let mut stage = running();
        prepare(&mut stage, 2);
        let failed = stage.drive(work).expect_err("the core never asks that");
        assert!(failed.is_broken);
        assert_eq!(
            failed.reason,
            "3 is behind the activation at 2, which is not decided"
        );
    }
    let mut stage = running();
    let work = Work::Decide {
        context: at(2),
        decision: ABORTED,
    };
    let failed = stage.drive(work).expect_err("the core never asks that");
    assert!(failed.is_broken);
    // A snapshot of a later point takes it away.
    let mut stage = running();
    prepare(&mut stage, 2);
    stage.node.snapshot = Some((1, Bytes::from_static(b"xyz")));
    stage.tell(restore(9, None));
    stage.tell(apply(10, vec![commands(&["!"])]));
    assert_eq!(stage.model().state, b"xyz!");
}
