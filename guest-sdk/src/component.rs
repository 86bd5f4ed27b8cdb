//! The exports of a component, in terms of a [`Machine`]. Used by [`export!`](crate::export), not by people.

use std::cell::RefCell;
use std::thread::LocalKey;

use bindings::exports::skep::machine::{batch, initializer, queries, state_machine};
use bindings::skep::machine::snapshot_io;
use bindings::skep::machine::types;

use crate::{
    ChangeKind, ConfChange, Context, LeaderChanged, Machine, Rejection, Sink, Source, StatusChange,
    log,
};

#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "machine-full",
        pub_export_macro: true,
        default_bindings_module: "skep_guest::component::bindings",
    });
}

/// The instance's one machine. A component instance is single-threaded and is never entered twice, so the cell is never
/// borrowed twice.
pub trait Slot: 'static {
    /// What the crate exports.
    type Machine: Machine;

    /// Where it lives.
    fn slot() -> &'static LocalKey<RefCell<Option<Self::Machine>>>;

    /// Runs `call` on the machine, which is made on first use.
    fn with<R>(call: impl FnOnce(&mut Self::Machine) -> R) -> R {
        Self::slot().with_borrow_mut(|slot| {
            call(slot.get_or_insert_with(|| {
                report_panics();
                Self::Machine::default()
            }))
        })
    }
}

impl<S: Slot> state_machine::Guest for S {
    fn describe() -> types::Descriptor {
        report_panics();
        let descriptor = S::Machine::describe();
        types::Descriptor {
            name: descriptor.name.to_owned(),
            version: descriptor.version.to_owned(),
            schema: descriptor.schema,
            oldest_schema: descriptor.oldest_schema,
        }
    }

    fn apply(ctx: types::Context, request: Vec<u8>) -> Result<Vec<u8>, types::Rejection> {
        S::with(|machine| machine.apply(&ctx.into(), &request)).map_err(Into::into)
    }

    fn save(to: &snapshot_io::Sink) -> Result<(), types::Rejection> {
        S::with(|machine| machine.save(&mut Sink::new(&mut |chunk| to.write(chunk))))
            .map_err(Into::into)
    }

    fn restore(schema: u32, src: &snapshot_io::Source) -> Result<(), types::Rejection> {
        report_panics();
        let machine = S::Machine::restore(
            schema,
            &mut Source::new(src.remaining(), &mut |len| src.read(len)),
        )?;
        S::slot().set(Some(machine));
        Ok(())
    }

    fn apply_conf_change(
        ctx: types::Context,
        change: types::ConfChange,
    ) -> Result<(), types::Rejection> {
        S::with(|machine| machine.apply_conf_change(&ctx.into(), &change.into()))
            .map_err(Into::into)
    }

    fn process_status_change(ctx: types::Context, event: types::StatusChange) {
        S::with(|machine| machine.process_status_change(&ctx.into(), &event.into()));
    }
}

impl<S: Slot> initializer::Guest for S {
    fn init(ctx: types::Context, config: Vec<u8>) -> Result<(), types::Rejection> {
        S::with(|machine| machine.init(&ctx.into(), &config)).map_err(Into::into)
    }
}

impl<S: Slot> queries::Guest for S {
    fn query(ctx: types::Context, request: Vec<u8>) -> Result<Vec<u8>, types::Rejection> {
        S::with(|machine| machine.query(&ctx.into(), &request)).map_err(Into::into)
    }
}

impl<S: Slot> batch::Guest for S {
    fn apply_batch(
        ctx: types::Context,
        requests: Vec<Vec<u8>>,
    ) -> Vec<Result<Vec<u8>, types::Rejection>> {
        let ctx = ctx.into();
        S::with(|machine| {
            requests
                .iter()
                .map(|request| machine.apply(&ctx, request).map_err(Into::into))
                .collect()
        })
    }
}

/// Standard error is lost on a host, or capped; the log line carries the panic's message and place to the operator.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| log::error(panic)));
}

impl From<types::Context> for Context {
    fn from(ctx: types::Context) -> Self {
        Context {
            index: ctx.index,
            term: ctx.term,
            now: ctx.now,
        }
    }
}

impl From<Rejection> for types::Rejection {
    fn from(rejection: Rejection) -> Self {
        types::Rejection {
            code: rejection.code,
            message: rejection.message,
        }
    }
}

impl From<types::ConfChange> for ConfChange {
    fn from(change: types::ConfChange) -> Self {
        let kind = match change.kind {
            types::ChangeKind::AddVoter => ChangeKind::AddVoter,
            types::ChangeKind::AddLearner => ChangeKind::AddLearner,
            types::ChangeKind::Promote => ChangeKind::Promote,
            types::ChangeKind::Remove => ChangeKind::Remove,
        };
        ConfChange {
            kind,
            node: change.node,
            data: change.data,
        }
    }
}

impl From<types::StatusChange> for StatusChange {
    fn from(event: types::StatusChange) -> Self {
        match event {
            types::StatusChange::LeaderChanged(types::LeaderChanged { old, new, term }) => {
                StatusChange::LeaderChanged(LeaderChanged { old, new, term })
            }
        }
    }
}
