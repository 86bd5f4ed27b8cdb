//! The one suite, over the key-value machine in the sandbox and the same code natively.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::{ChangeKind, ConfChange, EntryContext, LeaderChanged};
use skep_example_kv::Kv;
use skep_guest::{Context, Machine, Sink, Source};
use skep_machine::native::{Native, NativeMachine, Rejection};
use skep_machine::wasm::{Component, MachineLabel, Profile, WasmMachine};
use skep_machine::{Descriptor, StateMachine, ToEnd, conformance};

use crate::guest::{ENGINE, context, on_apply_thread};

#[test]
fn the_sandboxed_machine_conforms() {
    let component = Arc::new(Component::compile(&ENGINE, skep_examples::KV).unwrap());
    on_apply_thread(move || {
        conformance::check(&mut || {
            let label = MachineLabel::default();
            Box::new(
                WasmMachine::new(component.clone(), Profile::default(), context(0), label).unwrap(),
            )
        });
    });
}

#[test]
fn the_native_machine_conforms() {
    conformance::check(&mut || Box::new(Native::new(NativeKv::default())));
}

#[test]
fn the_two_write_the_same_snapshot() {
    let component = Arc::new(Component::compile(&ENGINE, skep_examples::KV).unwrap());
    on_apply_thread(move || {
        let mut wasm = WasmMachine::new(
            component,
            Profile::default(),
            context(0),
            MachineLabel::default(),
        )
        .unwrap();
        let mut native = Native::new(NativeKv::default());
        let large = "x".repeat(100_000);
        for index in 1..200 {
            let commands = [
                format!("put key-{} {large}", index % 60),
                format!("incr n {index}"),
            ]
            .map(Bytes::from);
            let expected = native
                .apply(&context(index), &commands)
                .to_end()
                .unwrap()
                .outcomes;
            assert_eq!(
                wasm.apply(&context(index), &commands)
                    .to_end()
                    .unwrap()
                    .outcomes,
                expected
            );
        }
        let saved = [&mut wasm as &mut dyn StateMachine, &mut native].map(|machine| {
            let mut bytes = Vec::new();
            machine.save(&context(200), &mut bytes).to_end().unwrap();
            Bytes::from(bytes)
        });
        assert!(saved[0].len() > 5_000_000);
        assert_eq!(saved[0], saved[1]);
        native
            .restore(&context(200), 1, saved[0].clone())
            .to_end()
            .unwrap();
        wasm.restore(&context(200), 1, saved[1].clone())
            .to_end()
            .unwrap();
    });
}

/// The guest's own code, without the sandbox.
#[derive(Default)]
struct NativeKv(Kv);

fn seen(context: &EntryContext) -> Context {
    Context {
        index: context.index.0,
        term: context.term.0,
        now: context.now,
    }
}

fn refusal(rejection: skep_guest::Rejection) -> Rejection {
    Rejection::new(rejection.code, rejection.message)
}

impl NativeMachine for NativeKv {
    fn describe(&self) -> Descriptor {
        let skep_guest::Descriptor {
            name,
            version,
            schema,
            oldest_schema,
        } = Kv::describe();
        Descriptor {
            name: name.into(),
            version: version.into(),
            schema,
            oldest_schema,
        }
    }

    fn init(&mut self, context: &EntryContext, config: &[u8]) -> Result<(), Rejection> {
        self.0.init(&seen(context), config).map_err(refusal)
    }

    fn apply(&mut self, context: &EntryContext, command: &Bytes) -> Result<Bytes, Rejection> {
        self.0
            .apply(&seen(context), command)
            .map(Bytes::from)
            .map_err(refusal)
    }

    fn apply_conf_change(
        &mut self,
        context: &EntryContext,
        change: &ConfChange,
    ) -> Result<(), Rejection> {
        let kind = match change.kind {
            ChangeKind::AddVoter => skep_guest::ChangeKind::AddVoter,
            ChangeKind::AddLearner => skep_guest::ChangeKind::AddLearner,
            ChangeKind::Promote => skep_guest::ChangeKind::Promote,
            ChangeKind::Remove => skep_guest::ChangeKind::Remove,
        };
        let change = skep_guest::ConfChange {
            kind,
            node: change.node.0,
            data: change.data.to_vec(),
        };
        self.0
            .apply_conf_change(&seen(context), &change)
            .map_err(refusal)
    }

    fn process_status_change(&mut self, context: &EntryContext, event: &LeaderChanged) {
        let change = skep_guest::LeaderChanged {
            old: event.old.0,
            new: event.new.0,
            term: event.term.0,
        };
        self.0.process_status_change(
            &seen(context),
            &skep_guest::StatusChange::LeaderChanged(change),
        );
    }

    fn query(&self, context: &EntryContext, request: &Bytes) -> Result<Bytes, Rejection> {
        self.0
            .query(&seen(context), request)
            .map(Bytes::from)
            .map_err(refusal)
    }

    fn save(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut written = Ok(());
        let mut write = |chunk: &[u8]| {
            if written.is_ok() {
                written = to.write_all(chunk);
            }
        };
        self.0
            .save(&mut Sink::new(&mut write))
            .map_err(io::Error::other)?;
        written
    }

    fn restore(&self, schema: u32, from: &Bytes) -> Result<Self, Rejection> {
        let mut rest = from.clone();
        let mut read = |len: u32| rest.split_to(rest.len().min(len as usize)).to_vec();
        Kv::restore(schema, &mut Source::new(from.len() as u64, &mut read))
            .map(Self)
            .map_err(refusal)
    }
}
