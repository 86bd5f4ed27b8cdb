//! The key-value machine of `examples/kv` compiled into the host: the very logic of the component, without its sandbox.

use std::io::{self, Write};

use bytes::{Buf, Bytes};
use skep_core::outcome::{ChangeKind, ConfChange, EntryContext, LeaderChanged};
use skep_example_kv::Kv;
use skep_guest::{Context, Machine, Sink, Source, StatusChange};
use skep_machine::Descriptor;
use skep_machine::native::{NativeMachine, Rejection};

/// A guest's machine as a native one.
#[derive(Default)]
pub struct NativeKv(Kv);

impl NativeMachine for NativeKv {
    fn describe(&self) -> Descriptor {
        let described = Kv::describe();
        Descriptor {
            name: described.name.to_owned(),
            version: described.version.to_owned(),
            schema: described.schema,
            oldest_schema: described.oldest_schema,
        }
    }

    fn init(&mut self, context: &EntryContext, config: &[u8]) -> Result<(), Rejection> {
        self.0.init(&seen(context), config).map_err(refused)
    }

    fn apply(&mut self, context: &EntryContext, command: &Bytes) -> Result<Bytes, Rejection> {
        let reply = self.0.apply(&seen(context), command);
        reply.map(Bytes::from).map_err(refused)
    }

    fn apply_conf_change(
        &mut self,
        context: &EntryContext,
        change: &ConfChange,
    ) -> Result<(), Rejection> {
        let change = skep_guest::ConfChange {
            kind: match change.kind {
                ChangeKind::AddVoter => skep_guest::ChangeKind::AddVoter,
                ChangeKind::AddLearner => skep_guest::ChangeKind::AddLearner,
                ChangeKind::Promote => skep_guest::ChangeKind::Promote,
                ChangeKind::Remove => skep_guest::ChangeKind::Remove,
            },
            node: change.node.0,
            data: change.data.to_vec(),
        };
        let taken = self.0.apply_conf_change(&seen(context), &change);
        taken.map_err(refused)
    }

    fn process_status_change(&mut self, context: &EntryContext, event: &LeaderChanged) {
        let event = StatusChange::LeaderChanged(skep_guest::LeaderChanged {
            old: event.old.0,
            new: event.new.0,
            term: event.term.0,
        });
        self.0.process_status_change(&seen(context), &event);
    }

    fn query(&self, context: &EntryContext, request: &Bytes) -> Result<Bytes, Rejection> {
        let answer = self.0.query(&seen(context), request);
        answer.map(Bytes::from).map_err(refused)
    }

    fn save(&self, to: &mut dyn Write) -> io::Result<()> {
        // A guest's sink cannot fail, so the first error is kept until the guest has returned.
        let mut written = Ok(());
        let mut write = |chunk: &[u8]| {
            if written.is_ok() {
                written = to.write_all(chunk);
            }
        };
        let saved = self.0.save(&mut Sink::new(&mut write));
        written.and(saved.map_err(io::Error::other))
    }

    fn restore(&self, schema: u32, from: &Bytes) -> Result<Self, Rejection> {
        let mut rest = from.clone();
        let mut read = |len: u32| rest.split_to(rest.remaining().min(len as usize)).to_vec();
        let mut source = Source::new(from.len() as u64, &mut read);
        Kv::restore(schema, &mut source).map(Self).map_err(refused)
    }
}

fn seen(context: &EntryContext) -> Context {
    Context {
        index: context.index.0,
        term: context.term.0,
        now: context.now,
    }
}

fn refused(rejection: skep_guest::Rejection) -> Rejection {
    Rejection::new(rejection.code, rejection.message)
}
