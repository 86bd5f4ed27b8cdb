//! State machines written in Rust and compiled into the host: the host's own catalogue, embedders' machines, and the
//! baseline that a sandboxed machine is measured against.

use std::io::{self, Write};

use bytes::Bytes;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};

use crate::{Applied, Descriptor, LocalCode, MachineError, Running, StateMachine};

/// A command or query that was understood and refused. The machine has left its state unchanged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// The machine's own code; 0 is "bad request".
    pub code: u32,
    /// The machine's own words; part of the outcome, so the same on every replica.
    pub message: String,
}

impl Rejection {
    /// A refusal with a code and words.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// A state machine as plain Rust.
///
/// # Determinism
///
/// As for [`StateMachine`]: nothing but the arguments may reach an answer or the saved bytes. In particular no clock, no
/// `HashMap` order, no pointer.
///
/// # Failure
///
/// There is no sandbox: a panic is a bug of the host's own code, and the host's to catch. Refuse with a [`Rejection`],
/// before anything is changed.
pub trait NativeMachine: Send + Sized {
    /// What the machine says of itself.
    fn describe(&self) -> Descriptor;

    /// Configuration bytes, once in the group's life. Takes none unless written otherwise.
    fn init(&mut self, context: &EntryContext, config: &[u8]) -> Result<(), Rejection> {
        let _ = context;
        if config.is_empty() {
            Ok(())
        } else {
            Err(Rejection::new(0, "this machine takes no configuration"))
        }
    }

    /// One command.
    fn apply(&mut self, context: &EntryContext, command: &Bytes) -> Result<Bytes, Rejection>;

    /// A committed configuration change. Does nothing unless written otherwise.
    fn apply_conf_change(
        &mut self,
        context: &EntryContext,
        change: &ConfChange,
    ) -> Result<(), Rejection> {
        let _ = (context, change);
        Ok(())
    }

    /// The leader changed. Does nothing unless written otherwise.
    fn process_status_change(&mut self, context: &EntryContext, event: &LeaderChanged) {
        let _ = (context, event);
    }

    /// A read-only request; `context` is that of the last entry. Answers none unless written otherwise.
    fn query(&self, context: &EntryContext, request: &Bytes) -> Result<Bytes, Rejection> {
        let _ = (context, request);
        Err(Rejection::new(0, "this machine answers no queries"))
    }

    /// Writes the whole state: the same bytes for the same state.
    fn save(&self, to: &mut dyn Write) -> io::Result<()>;

    /// A machine from bytes that [`save`](Self::save) wrote under `schema`, which the caller has checked against
    /// [`describe`](Self::describe). `self` is the machine that will be replaced, for what is not part of the state.
    fn restore(&self, schema: u32, from: &Bytes) -> Result<Self, Rejection>;
}

/// Runs a [`NativeMachine`] as a [`StateMachine`]. Uses no fuel, and each call is over when it is polled first.
#[derive(Clone, Debug)]
pub struct Native<M> {
    machine: M,
    last: EntryContext,
}

impl<M> Native<M> {
    /// Hosts `machine`, in the state it is in.
    pub fn new(machine: M) -> Self {
        Self {
            machine,
            last: EntryContext::default(),
        }
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &M {
        &self.machine
    }
}

fn outcome(answer: Result<Bytes, Rejection>) -> Outcome {
    match answer {
        Ok(reply) => Outcome::Reply(reply),
        Err(Rejection { code, message }) => Outcome::Rejected { code, message },
    }
}

fn one(answer: Result<(), Rejection>) -> Applied {
    Applied {
        outcomes: vec![outcome(answer.map(|()| Bytes::new()))],
        fuel: 0,
    }
}

impl<M: NativeMachine> StateMachine for Native<M> {
    fn describe(&self) -> Descriptor {
        self.machine.describe()
    }

    fn init<'a>(
        &'a mut self,
        context: &'a EntryContext,
        config: &'a Bytes,
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            self.last = *context;
            Ok(one(self.machine.init(context, config)))
        })
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            self.last = *context;
            let outcomes = commands
                .iter()
                .map(|command| outcome(self.machine.apply(context, command)))
                .collect();
            Ok(Applied { outcomes, fuel: 0 })
        })
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            self.last = *context;
            Ok(one(self.machine.apply_conf_change(context, change)))
        })
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            self.last = *context;
            self.machine.process_status_change(context, event);
            Ok(Applied::default())
        })
    }

    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome> {
        Box::pin(async move { Ok(outcome(self.machine.query(&self.last, request))) })
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async move {
            self.machine.save(to).map_err(|error| MachineError::Local {
                call: "save",
                code: LocalCode::Io,
                reason: format!("the snapshot cannot be written: {error}"),
            })
        })
    }

    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Running<'a, ()> {
        Box::pin(async move { self.replace(context, schema, &from) })
    }
}

impl<M: NativeMachine> Native<M> {
    fn replace(
        &mut self,
        context: &EntryContext,
        schema: u32,
        from: &Bytes,
    ) -> Result<(), MachineError> {
        let refused = |detail: String| MachineError::Guest {
            call: "restore",
            fault: GuestFault::Trap,
            detail: Some(detail),
        };
        let Descriptor {
            schema: newest,
            oldest_schema: oldest,
            ..
        } = self.machine.describe();
        if !(oldest..=newest).contains(&schema) {
            return Err(refused(format!(
                "it reads the schemas {oldest} to {newest}, and the snapshot was written under {schema}"
            )));
        }
        self.machine =
            self.machine
                .restore(schema, from)
                .map_err(|Rejection { code, message }| {
                    refused(format!("refused with code {code}: {message}"))
                })?;
        self.last = *context;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ToEnd;

    #[derive(Clone, Debug, PartialEq)]
    struct Sum(u64);

    impl NativeMachine for Sum {
        fn describe(&self) -> Descriptor {
            Descriptor {
                name: "sum".into(),
                version: "1".into(),
                schema: 3,
                oldest_schema: 2,
            }
        }

        fn apply(&mut self, _: &EntryContext, command: &Bytes) -> Result<Bytes, Rejection> {
            let text = std::str::from_utf8(command)
                .map_err(|error| Rejection::new(1, error.to_string()))?;
            let number: u64 = text
                .parse()
                .map_err(|_| Rejection::new(2, "not a number"))?;
            self.0 = self
                .0
                .checked_add(number)
                .ok_or_else(|| Rejection::new(3, "too large"))?;
            Ok(self.0.to_string().into())
        }

        fn save(&self, to: &mut dyn Write) -> io::Result<()> {
            to.write_all(&self.0.to_le_bytes())
        }

        fn restore(&self, _: u32, from: &Bytes) -> Result<Self, Rejection> {
            let bytes = from[..]
                .try_into()
                .map_err(|_| Rejection::new(4, "not eight bytes"))?;
            Ok(Self(u64::from_le_bytes(bytes)))
        }
    }

    #[test]
    fn commands_are_answered_one_by_one_and_refusals_change_nothing() {
        let mut machine = Native::new(Sum(1));
        let commands = ["2", "x", "18446744073709551615", "3"].map(Bytes::from);
        let applied = machine
            .apply(&EntryContext::default(), &commands)
            .to_end()
            .unwrap();
        assert_eq!(
            applied.outcomes,
            [
                Outcome::Reply("3".into()),
                Outcome::Rejected {
                    code: 2,
                    message: "not a number".into()
                },
                Outcome::Rejected {
                    code: 3,
                    message: "too large".into()
                },
                Outcome::Reply("6".into()),
            ]
        );
        assert_eq!(machine.machine(), &Sum(6));
    }

    #[test]
    fn a_restore_that_fails_keeps_the_state() {
        let context = EntryContext::default();
        let mut machine = Native::new(Sum(9));
        let mut bytes = Vec::new();
        machine.save(&context, &mut bytes).to_end().unwrap();
        for (schema, bytes) in [(1, &bytes[..]), (4, &bytes[..]), (3, b"short")] {
            let error = machine
                .restore(&context, schema, Bytes::copy_from_slice(bytes))
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
            assert_eq!(machine.machine(), &Sum(9));
        }
        let mut other = Native::new(Sum(0));
        other.restore(&context, 2, bytes.into()).to_end().unwrap();
        assert_eq!(other.machine(), &Sum(9));
    }

    #[test]
    fn what_is_not_written_answers_clearly() {
        let mut machine = Native::new(Sum(0));
        assert!(matches!(
            machine.query(&Bytes::new()).to_end().unwrap(),
            Outcome::Rejected { code: 0, .. }
        ));
        let applied = machine
            .init(&EntryContext::default(), &Bytes::from_static(b"config"))
            .to_end()
            .unwrap();
        assert!(matches!(
            applied.outcomes[..],
            [Outcome::Rejected { code: 0, .. }]
        ));
    }
}
