//! Where a call lets others go first shows in nothing that it does.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use skep_core::outcome::{EntryContext, GuestFault};

use super::machine::WasmMachine;
use super::probe::Probe;
use crate::wasm::Engine;
use crate::wasm::code::component::Component;
use crate::wasm::world::logbook::MachineLabel;
use crate::wasm::world::slice::LENGTH;
use crate::{MachineError, StateMachine};
use skep_types::profile::Profile;

/// Longer than any call.
const ENDLESS: u64 = i64::MAX as u64;

const LENGTHS: [u64; 4] = [ENDLESS, 20_000, 1_000, 101];

/// Calls an import so often at `loop`, and writes much at `save` if it was told `AS`.
const IMPORTS: u64 = 500;

fn guest() -> Component {
    let forever = "(loop $l (br $l))";
    let asks = format!(
        "(loop $l (drop (call $now)) (local.set $pollable (i32.add (local.get $pollable) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $pollable) (i32.const {IMPORTS}))))"
    );
    let writes_for_ever =
        "(loop $more (call $write (local.get $sink) (i32.const 0) (i32.const 65536)) (br $more))";
    let writes = "(loop $more (call $write (local.get $sink) (i32.const 0) (i32.const 65536))
      (global.set $armed (i64.sub (global.get $armed) (i64.const 1)))
      (br_if $more (i64.ne (global.get $armed) (i64.const 0))))";
    let text = include_str!("../../../tests/machine/guest.wat");
    assert!(text.contains(forever) && text.contains(writes_for_ever));
    let text = text
        .replacen(forever, &asks, 1)
        .replace(writes_for_ever, writes)
        .replace("⟨optional⟩", "")
        .replace("⟨describe⟩", "")
        .replace("⟨too-many⟩", "0");
    let bytes = wat::parse_str(text).unwrap();
    Component::compile(&Engine::new().unwrap(), &bytes).unwrap()
}

/// What a command does with so much fuel: its outcomes and fuel, or its fault.
fn ran(component: &Component, fuel: u64, command: &'static str) -> String {
    let profile = Profile {
        command_fuel: fuel,
        ..Profile::default()
    };
    let context = EntryContext::default();
    let mut probe = Probe::start(component, &profile, &context).unwrap();
    match probe.apply(&context, 0, &Bytes::from_static(command.as_bytes())) {
        Ok(applied) => format!("{applied:?}"),
        Err(MachineError::Guest { fault, .. }) => format!("{fault:?}"),
        Err(local) => panic!("{local}"),
    }
}

fn fuel_of(component: &Component, command: &'static str) -> u64 {
    let (context, profile) = (EntryContext::default(), Profile::default());
    let mut probe = Probe::start(component, &profile, &context).unwrap();
    let command = Bytes::from_static(command.as_bytes());
    probe.apply(&context, 0, &command).unwrap().fuel
}

// P-41
#[test]
fn imports_use_the_same_fuel_wherever_a_call_comes_back() {
    let component = guest();
    for command in ["loop", "time", "noise", "add"] {
        let needed = fuel_of(&component, command);
        let around = (needed.saturating_sub(230)..=needed + 1).step_by(3);
        let mut ends = Vec::new();
        for fuel in around.chain([needed / 2, needed - 1, needed]) {
            let [expected, others @ ..] = LENGTHS.map(|length| {
                LENGTH.set(length);
                ran(&component, fuel, command)
            });
            assert_eq!(
                others,
                [&expected; 3].map(Clone::clone),
                "{command}, {fuel}"
            );
            ends.push(expected == format!("{:?}", GuestFault::OutOfFuel));
        }
        // It is asked at loops, calls and imports only, so it may end with a little less.
        assert!(
            ends.contains(&true) && ends.ends_with(&[false]),
            "{command}"
        );
    }
}

// P-41
#[test]
fn a_save_is_the_same_wherever_it_comes_back() {
    let component = guest();
    let (context, profile) = (EntryContext::default(), Profile::default());
    let [expected, others @ ..] = LENGTHS.map(|length| {
        LENGTH.set(length);
        let mut probe = Probe::start(&component, &profile, &context).unwrap();
        probe.apply(&context, 0, &"AS".into()).unwrap();
        let mut saved = Vec::new();
        let fuel = probe.save(&context, &mut saved).unwrap();
        (saved, fuel)
    });
    assert_eq!(expected.0.len(), 83 * 65536 + 16);
    assert!(others.iter().all(|other| *other == expected));
}

/// How often a call comes back before its end.
#[test]
fn a_call_comes_back_after_each_slice_also_where_it_calls_imports() {
    let component = Arc::new(guest());
    let fuel = fuel_of(&component, "loop");
    for length in LENGTHS {
        LENGTH.set(length);
        let (context, profile) = (EntryContext::default(), Profile::default());
        let label = MachineLabel::default();
        let mut machine = WasmMachine::new(component.clone(), profile, context, label).unwrap();
        let command = ["loop".into()];
        let mut call = pin!(machine.apply(&context, &command));
        let mut waker = Context::from_waker(Waker::noop());
        let mut slices = 0;
        while call.as_mut().poll(&mut waker).is_pending() {
            slices += 1;
        }
        // A guest is asked at its loops and calls only, and an import is not interrupted.
        let (least, most) = (fuel / (length + 250), fuel / length + 1);
        assert!(
            (least..=most).contains(&slices),
            "{slices} slices of {length}"
        );
    }
}
