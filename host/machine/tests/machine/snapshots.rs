//! Saving and restoring, and failing at it.

use std::io::{self, Write};

use bytes::Bytes;
use skep_core::outcome::{GuestFault, Outcome};
use skep_machine::{MachineError, StateMachine, ToEnd};

use crate::guest::{FULL, PLAIN, apply, context, machine, number, query, save};

#[test]
fn the_state_comes_back_from_its_bytes() {
    let mut machine_1 = machine(&FULL);
    apply(&mut machine_1, 1, &["add", "add"]);
    let bytes = save(&mut machine_1, 2);
    assert_eq!(bytes, [2u64.to_le_bytes(), [0; 8]].concat());
    assert_eq!(save(&mut machine_1, 2), bytes);

    let mut machine_2 = machine(&PLAIN);
    apply(&mut machine_2, 1, &["add"]);
    machine_2
        .restore(&context(2), 2, bytes.clone())
        .to_end()
        .unwrap();
    assert_eq!(apply(&mut machine_2, 3, &["add"]), [number(3)]);

    assert_eq!(query(&mut machine_1, "get"), number(2));
    machine_1.restore(&context(4), 3, bytes).to_end().unwrap();
    assert_eq!(query(&mut machine_1, "index"), number(4));
    // A fault after the barrier goes back to the barrier and what came since, not to the start.
    assert_eq!(
        apply(&mut machine_1, 5, &["add", "unreachable", "get"])[2],
        number(3)
    );
}

#[test]
fn a_restore_that_fails_keeps_the_former_state() {
    let mut machine = machine(&FULL);
    apply(&mut machine, 1, &["add"]);
    let armed = [9u64.to_le_bytes(), u64::from(b'r').to_le_bytes()].concat();
    for (schema, bytes, expected) in [
        (3, b"short".to_vec(), "code 7: hostile"),
        (3, armed, "unreachable"),
        (1, vec![0; 16], "schemas 2 to 3"),
        (4, vec![0; 16], "schemas 2 to 3"),
    ] {
        let error = machine
            .restore(&context(2), schema, bytes.into())
            .to_end()
            .unwrap_err();
        assert!(
            matches!(
                error,
                MachineError::Guest {
                    call: "restore",
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(apply(&mut machine, 3, &["get"]), [number(1)]);
        assert_eq!(query(&mut machine, "get"), number(1));
    }
}

#[test]
fn a_save_that_fails_is_as_if_it_had_not_been_called() {
    for (armed, fault) in [
        ("As", GuestFault::Unreachable),
        ("AS", GuestFault::Limit),
        ("Aj", GuestFault::Trap),
    ] {
        let mut machine = machine(&FULL);
        apply(&mut machine, 1, &["add", armed]);
        let error = machine
            .save(&context(2), &mut Vec::new())
            .to_end()
            .unwrap_err();
        assert!(
            matches!(error, MachineError::Guest { call: "save", fault: found, .. } if found == fault),
            "{error}"
        );
        assert_eq!(apply(&mut machine, 3, &["add"]), [number(2)]);
        apply(&mut machine, 4, &["A0"]);
        assert_eq!(save(&mut machine, 5)[..8], 2u64.to_le_bytes());
    }
}

/// A disk that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// P-33
#[test]
fn a_disk_that_is_full_is_no_outcome() {
    for armed in ["get", "AS"] {
        let mut machine = machine(&FULL);
        apply(&mut machine, 1, &["add", armed]);
        let error = machine.save(&context(2), &mut Full).to_end().unwrap_err();
        assert!(
            matches!(error, MachineError::Local { call: "save", .. }),
            "{error}"
        );
        assert_eq!(apply(&mut machine, 3, &["add"]), [number(2)]);
    }
}

#[test]
fn a_machine_says_what_it_is() {
    let descriptor = machine(&FULL).describe();
    assert_eq!(
        (descriptor.name.as_str(), descriptor.version.as_str()),
        ("hostile", "1")
    );
    assert_eq!((descriptor.schema, descriptor.oldest_schema), (3, 2));
}

#[test]
fn an_empty_entry_is_nothing() {
    let mut machine = machine(&FULL);
    let applied = machine.apply(&context(1), &[]).to_end().unwrap();
    assert!(applied.outcomes.is_empty());
    assert_eq!(applied.fuel, 0);
    assert_eq!(query(&mut machine, "index"), number(1));
    assert_eq!(
        machine.query(&Bytes::from_static(b"get")).to_end().unwrap(),
        Outcome::Reply(Bytes::from_static(&[0; 8]))
    );
}
