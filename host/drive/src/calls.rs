//! The calls of an entry.

use bytes::Bytes;
use skep_core::effect::Call;
use skep_core::input::Stopped;
use skep_core::outcome::{EntryContext, Outcome};

use crate::driver::Driver;
use crate::failed::Failed;
use crate::listener::Listener;
use crate::state_machine::{Applied, MachineError, StateMachine};

impl<M: StateMachine> Driver<M> {
    /// Applies one entry: makes its calls in order. One outcome comes for each command, and one for a change of the
    /// configuration.
    ///
    /// # Errors
    /// [`Failed`], with the command that the machine stopped at, if it was one.
    pub async fn apply(
        &mut self,
        context: &EntryContext,
        calls: Vec<Call>,
        listener: &mut impl Listener<M>,
    ) -> Result<Applied, Failed> {
        let mut sum = Applied::default();
        for call in calls {
            let said = self.call(context, &call).await?;
            listener.called(context, &call, &said);
            let applied = judged(&call, said)?;
            sum.outcomes.extend(applied.outcomes);
            sum.fuel = sum.fuel.saturating_add(applied.fuel);
        }
        self.applied = context.index;
        Ok(sum)
    }

    /// What the machine says to a call. A hook that fails on every replica alike has said a fault, and has changed nothing.
    async fn call(&mut self, context: &EntryContext, call: &Call) -> Result<Applied, Failed> {
        let machine = &mut self.machine;
        match call {
            Call::Init(config) => Ok(machine.init(context, config).await?),
            Call::Commands(commands) => {
                let applied = machine.apply(context, commands).await;
                applied.map_err(|error| self.failed_in_apply(context, error))
            }
            Call::ConfChange(change) => {
                fault_said(machine.apply_conf_change(context, change).await)
            }
            Call::StatusChange(event) => {
                fault_said(machine.process_status_change(context, event).await)
            }
        }
    }

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
        Failed { at, ..error.into() }
    }
}

fn fault_said(answer: Result<Applied, MachineError>) -> Result<Applied, Failed> {
    match answer {
        Err(MachineError::Guest { fault, .. }) => Ok(Applied {
            outcomes: vec![Outcome::Fault(fault)],
            fuel: 0,
        }),
        answer => Ok(answer?),
    }
}

/// What an entry makes of what its machine said to a call.
fn judged(call: &Call, mut said: Applied) -> Result<Applied, Failed> {
    match call {
        Call::Init(_) => {
            must_have_taken(&said.outcomes)?;
            said.outcomes.clear();
        }
        Call::Commands(commands) => {
            let (outcomes, commands) = (said.outcomes.len(), commands.len());
            if outcomes != commands {
                return Err(Failed::broken(format!(
                    "apply gave {outcomes} outcomes for {commands} commands"
                )));
            }
        }
        Call::ConfChange(_) => said
            .outcomes
            .resize_with(1, || Outcome::Reply(Bytes::new())),
        Call::StatusChange(_) => said.outcomes.clear(),
    }
    Ok(said)
}

/// Every replica sees the same refusal of `init`. A machine without its configuration must never serve.
fn must_have_taken(outcomes: &[Outcome]) -> Result<(), Failed> {
    let refusal = outcomes
        .iter()
        .find(|outcome| !matches!(outcome, Outcome::Reply(_)));
    match refusal {
        None => Ok(()),
        Some(Outcome::Rejected { code, message } | Outcome::Refused { code, message }) => {
            Err(Failed::broken(format!(
                "init refused the configuration of the group (code {code}): {message}"
            )))
        }
        Some(outcome) => Err(Failed::broken(format!(
            "init failed on the configuration of the group: {outcome:?}"
        ))),
    }
}
