//! What the work of the log does to a machine.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use skep_core::deployment::Deployment;
use skep_core::effect::Call;
use skep_core::id::{ComponentId, LogIndex};
use skep_core::input::Stopped;
use skep_core::outcome::{EntryContext, Outcome};
use skep_machine::state_machine::{Applied, MachineError, StateMachine};

use super::activation::Successor;

/// A machine and how far it is.
pub(super) struct Machine {
    pub(super) machine: Box<dyn StateMachine>,
    /// What it runs; none for one that is never exchanged.
    pub(super) deployment: Option<Deployment>,
    pub(super) applied: LogIndex,
    /// Another one that is prepared, or is to be.
    pub(super) successor: Option<Successor>,
    /// It was given work.
    pub(super) begun: bool,
}

/// Why a machine can no longer be run.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// For the operator.
    pub(crate) reason: String,
    /// However often it is started, it fails again.
    pub(crate) is_broken: bool,
    /// The command that it could not run, if it was one.
    pub(crate) at: Option<Stopped>,
}

impl Failed {
    /// For a reason of this node, or of this moment: another start may do better.
    pub(crate) fn local(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_broken: false,
            at: None,
        }
    }

    /// For a reason that lies in the machine, the log or the host itself.
    pub(crate) fn broken(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_broken: true,
            at: None,
        }
    }
}

impl Machine {
    pub(super) fn new(machine: Box<dyn StateMachine>, deployment: Option<Deployment>) -> Self {
        Self {
            machine,
            deployment,
            applied: LogIndex(0),
            successor: None,
            begun: false,
        }
    }

    /// Version of the bytes that it saves.
    pub(super) fn schema(&self) -> u32 {
        self.machine.describe().schema
    }

    /// The component it runs, given the one its group was brought up with.
    pub(super) fn component(&self, first: ComponentId) -> ComponentId {
        let deployment = self.deployment.as_ref();
        deployment.map_or(first, |deployment| deployment.component)
    }

    /// Makes one call of an entry.
    pub(super) fn call(&mut self, context: &EntryContext, call: Call) -> Result<Applied, Failed> {
        match call {
            Call::Init(config) => {
                // Every replica sees the same refusal. A machine without its configuration must never serve.
                let applied = self.machine.init(context, &config).map_err(failed)?;
                let refusal = applied
                    .outcomes
                    .iter()
                    .find(|outcome| !matches!(outcome, Outcome::Reply(_)));
                match refusal {
                    None => Ok(Applied {
                        outcomes: Vec::new(),
                        fuel: applied.fuel,
                    }),
                    Some(
                        Outcome::Rejected { code, message } | Outcome::Refused { code, message },
                    ) => Err(Failed::broken(format!(
                        "init refused the configuration of the group (code {code}): {message}"
                    ))),
                    Some(outcome) => Err(Failed::broken(format!(
                        "init failed on the configuration of the group: {outcome:?}"
                    ))),
                }
            }
            Call::Commands(commands) => {
                let applied = self.machine.apply(context, &commands);
                let applied = applied.map_err(|error| self.failed_in_apply(context, error))?;
                if applied.outcomes.len() != commands.len() {
                    let (outcomes, commands) = (applied.outcomes.len(), commands.len());
                    return Err(Failed::broken(format!(
                        "apply gave {outcomes} outcomes for {commands} commands"
                    )));
                }
                Ok(applied)
            }
            Call::ConfChange(change) => match self.machine.apply_conf_change(context, &change) {
                Ok(mut applied) => {
                    applied.outcomes.truncate(1);
                    if applied.outcomes.is_empty() {
                        applied.outcomes.push(Outcome::Reply(Bytes::new()));
                    }
                    Ok(applied)
                }
                Err(error) => Ok(Applied {
                    outcomes: vec![outcome_of(error)?],
                    fuel: 0,
                }),
            },
            Call::StatusChange(event) => {
                let fuel = match self.machine.process_status_change(context, &event) {
                    Ok(applied) => applied.fuel,
                    Err(error) => {
                        let fault = outcome_of(error)?;
                        let index = context.index.0;
                        tracing::warn!(
                            index,
                            ?fault,
                            "the machine failed on a change of leader; nothing changed"
                        );
                        0
                    }
                };
                Ok(Applied {
                    outcomes: Vec::new(),
                    fuel,
                })
            }
        }
    }
}

impl Machine {
    /// A failure on the commands of an entry, with the one on which it was.
    fn failed_in_apply(&self, context: &EntryContext, error: MachineError) -> Failed {
        let at = match &error {
            MachineError::Local { code, .. } => self.machine.stopped_at().map(|place| Stopped {
                index: context.index,
                place,
                code: code.code(),
            }),
            MachineError::Guest { .. } => None,
        };
        Failed {
            at,
            ..failed(error)
        }
    }
}

/// The outcome of a deterministic failure; a local one has none.
pub(crate) fn outcome_of(error: MachineError) -> Result<Outcome, Failed> {
    match error {
        MachineError::Guest { fault, .. } => Ok(Outcome::Fault(fault)),
        error @ MachineError::Local { .. } => Err(failed(error)),
    }
}

pub(super) fn failed(error: MachineError) -> Failed {
    match error {
        MachineError::Guest { .. } => Failed::broken(error.to_string()),
        MachineError::Local { .. } => Failed::local(error.to_string()),
    }
}

/// Runs a call into a machine, which may panic. The caller must not use again what the call may have left half done.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Failed::local(format!("panicked: {}", panic_text(&*panic)))))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}
