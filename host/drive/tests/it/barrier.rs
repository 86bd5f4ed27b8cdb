//! Barriers, and snapshots that a machine begins with.

use bytes::Bytes;
use skep_core::effect::Work;
use skep_core::form::Form;
use skep_core::id::{LogIndex, Term};
use skep_core::input::Input;
use skep_drive::{CanonicalPoint, Done};

use crate::model::{Model, Stage, Trouble, apply, at, commands, restore};

fn barrier(index: u64) -> Work {
    Work::Barrier {
        context: at(index),
        state: "the host's".into(),
        form: Form::Saved,
    }
}

#[test]
fn a_machine_goes_on_from_the_bytes_that_it_saved() {
    let mut stage = Stage::exchangeable(1, 1);
    stage.tell(apply(1, vec![commands(&["a"])]));
    let Ok(Done::Passed { point, state, .. }) = stage.drive(barrier(2)) else {
        panic!("it passes");
    };
    let expected = CanonicalPoint {
        context: at(2),
        form: Form::Saved,
        schema: 1,
        guest: "a".into(),
    };
    assert_eq!((point, &state[..]), (expected, &b"the host's"[..]));
    assert_eq!(stage.model().rebuilt, 1);
    assert_eq!(stage.driver.applied(), LogIndex(2));
    assert_eq!(stage.seen()[1..], ["saved 1", "goes on from Some(2)"]);
}

fn query(index: u64) -> Work {
    Work::Query {
        waiter: 1,
        request: Bytes::new(),
        index: LogIndex(index),
        term: Term(1),
    }
}

/// A barrier that leaves an image.
fn image(index: u64) -> Work {
    Work::Barrier {
        context: at(index),
        state: "the host's".into(),
        form: Form::Image,
    }
}

#[test]
fn a_machine_goes_on_as_it_is_behind_an_image_and_another_goes_on_from_that() {
    let mut stage = Stage::new(Model::default());
    stage.model().has_images = true;
    stage.tell(apply(1, vec![commands(&["a"])]));
    let Ok(Done::Imaging {
        mut image, memory, ..
    }) = stage.drive(image(2))
    else {
        panic!("it passes");
    };
    // It is of the barrier, however late it is taken to its end.
    stage.tell(apply(3, vec![commands(&["b"])]));
    assert_eq!(image.index(), LogIndex(2));
    let point = image.finish().expect("it is taken");
    let expected = CanonicalPoint {
        context: at(2),
        form: Form::Image,
        schema: 0,
        guest: Bytes::from_static(b"\x01a"),
    };
    assert_eq!((point, memory), (expected, Some(2)));
    assert_eq!((stage.model().rebuilt, stage.model().heap), (0, 2));
    assert_eq!(stage.driver.applied(), LogIndex(3));
    assert_eq!(stage.seen().len(), 2, "it goes on from what it did");

    let mut stage = Stage::new(Model::default());
    (stage.node.form, stage.model().has_images) = (Form::Image, true);
    stage.node.snapshot = Some((0, Bytes::from_static(b"\x01a")));
    let Input::Restored { memory, .. } = stage.tell(restore(2, None)) else {
        panic!("it is restored");
    };
    assert_eq!(memory, Some(2));
    assert_eq!((stage.model().rebuilt, stage.model().heap), (0, 1));
    assert_eq!(stage.seen(), ["restored 2", "goes on from None"]);
}

#[test]
fn a_node_that_can_take_no_image_goes_on_and_says_so() {
    let mut stage = Stage::new(Model::default());
    stage.model().image = Some(Trouble::Local);
    stage.tell(apply(1, vec![commands(&["a"])]));
    let Input::NoImage { index, reason } = stage.tell(image(2)) else {
        panic!("there is none");
    };
    assert_eq!(index, LogIndex(2));
    assert!(
        reason.contains("image") && reason.contains("no memory"),
        "{reason}"
    );
    assert_eq!((stage.model().rebuilt, stage.model().heap), (0, 1));
    assert!(stage.seen()[1].starts_with("no image: "));
    stage.tell(apply(3, vec![commands(&["b"])]));
    // So does a machine that has none at all.
    stage.model().image = None;
    let Input::NoImage { reason, .. } = stage.tell(image(4)) else {
        panic!("there is none");
    };
    assert!(reason.contains("can have none"), "{reason}");

    // Nor can it begin with one; that is of this node.
    stage.node.form = Form::Image;
    stage.node.snapshot = Some((0, Bytes::from_static(b"\x01a")));
    let Input::NotResumed { index } = stage.tell(restore(2, None)) else {
        panic!("it cannot");
    };
    assert_eq!(index, LogIndex(2));
    assert_eq!(stage.seen().pop().as_deref(), Some("not resumed"));
    // It has no state that anything could be done to or asked of, until it has one.
    let told = stage.tell(apply(3, vec![commands(&["c"])]));
    assert!(matches!(told, Input::NotResumed { index } if index == LogIndex(2)));
    let Ok(Done::Answer { answer, .. }) = stage.drive(query(7)) else {
        panic!("it is answered");
    };
    assert!(answer.is_err());
    assert_eq!(stage.seen(), [""; 0]);
    stage.node.form = Form::Saved;
    stage.tell(restore(5, None));
    stage.tell(apply(6, vec![commands(&["d"])]));
    assert_eq!(stage.model().state, b"\x01ad");
}

#[test]
fn a_machine_that_cannot_save_or_read_back_goes_on_without_a_snapshot() {
    for in_save in [true, false] {
        let mut stage = Stage::new(Model::default());
        match in_save {
            true => stage.model().save = Some(Trouble::Guest),
            false => stage.model().restore = Some(Trouble::Guest),
        }
        stage.tell(apply(1, vec![commands(&["a"])]));
        let Input::Snapshotted {
            index, snapshot, ..
        } = stage.tell(barrier(2))
        else {
            panic!("there is none");
        };
        assert_eq!((index, snapshot), (LogIndex(2), None));
        let seen = stage.seen();
        let last = &seen[seen.len() - 2..];
        assert!(last[0].starts_with("no snapshot: the machine failed in"));
        assert_eq!(last[1], "goes on from None");
        stage.tell(apply(3, vec![commands(&["b"])]));
        assert_eq!(stage.model().state, b"ab");
    }
}

#[test]
fn a_node_that_cannot_pass_a_barrier_drops_the_machine() {
    for in_save in [true, false] {
        let mut stage = Stage::new(Model::default());
        match in_save {
            true => stage.model().save = Some(Trouble::Local),
            false => stage.model().restore = Some(Trouble::Local),
        }
        let failed = stage.drive(barrier(2)).expect_err("it cannot");
        assert!(!failed.is_broken && failed.at.is_none());
    }
}

#[test]
fn a_machine_begins_with_what_the_log_says_that_the_group_runs() {
    // Brought up with 2; at its first entry the group ran 1.
    let mut stage = Stage::exchangeable(1, 2);
    stage.tell(apply(1, vec![commands(&["a"])]));
    assert_eq!(stage.node.made, [(1, true)]);
    assert_eq!(stage.seen()[..1], ["replaced by 1"]);
    // Only the first work is the beginning.
    stage.tell(apply(2, vec![commands(&["b"])]));
    assert_eq!(stage.node.made.len(), 1);

    // At its snapshot the group ran 3.
    let mut stage = Stage::exchangeable(1, 2);
    stage.node.snapshot = Some((3, Bytes::from_static(b"abc")));
    let Input::Restored { index, .. } = stage.tell(restore(9, Some(3))) else {
        panic!("it is restored");
    };
    assert_eq!(index, LogIndex(9));
    assert_eq!(stage.node.made, [(3, true)]);
    assert_eq!(
        (stage.model().component, &stage.model().state[..]),
        (3, &b"abc"[..])
    );
    assert_eq!(stage.driver.applied(), LogIndex(9));
    assert_eq!(stage.seen()[1..], ["restored 9", "goes on from Some(9)"]);
    // That of a later one it has already.
    stage.tell(restore(12, Some(3)));
    assert_eq!(stage.node.made.len(), 1);

    // What it was brought up with is right.
    let mut stage = Stage::exchangeable(1, 3);
    stage.node.snapshot = Some((3, Bytes::new()));
    stage.tell(restore(9, Some(3)));
    assert_eq!(stage.node.made, []);
}

#[test]
fn a_snapshot_that_is_not_taken_is_named() {
    let mut stage = Stage::new(Model::default());
    let failed = stage.drive(restore(4, None)).expect_err("it is gone");
    assert_eq!(failed.reason, "the snapshot is gone");
    stage.node.snapshot = Some((1, Bytes::new()));
    stage.model().restore = Some(Trouble::Guest);
    let failed = stage.drive(restore(4, None)).expect_err("it is refused");
    assert!(failed.is_broken);
    assert!(
        failed
            .reason
            .starts_with("snapshot 4 is not taken: the machine failed in restore"),
        "{failed}"
    );
}
