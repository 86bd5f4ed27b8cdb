//! What the instances of one machine have in common, and how they come to a state again.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use skep_core::outcome::EntryContext;

use super::base::{Base, Origin};
use super::checkpoint::Checkpoint;
use super::instance::Instance;
use super::journal::{Journal, Record};
use crate::LocalCode;
use crate::wasm::code::component::Component;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::world::logbook::Logbook;
use skep_types::profile::Profile;

/// Runs of a call before a local failure of it is final: once, and once more in a rebuilt instance.
pub(crate) const ATTEMPTS: usize = 2;

/// What is said where no attempt was made: [`ATTEMPTS`] is not 0.
pub(crate) fn no_attempt() -> Failure {
    Failure::local(LocalCode::UnexpectedError, "it was not tried")
}

/// A component under its limits.
pub(crate) struct Guest {
    pub(crate) component: Arc<Component>,
    pub(crate) profile: Profile,
    pub(crate) logbook: Arc<Logbook>,
    /// Forks made of its machine.
    pub(crate) forks: AtomicU64,
}

impl Guest {
    /// A fresh instance, started under `context`.
    pub(crate) async fn instance(
        &self,
        context: &EntryContext,
        purpose: Purpose,
    ) -> Result<Instance, Failure> {
        let (component, profile, logbook) = (&self.component, &self.profile, &self.logbook);
        Instance::new(component, profile, context, logbook, purpose).await
    }

    /// An instance at `base`. A muted one writes no log lines: they were written when the calls ran first.
    pub(crate) async fn start(
        &self,
        base: &Base,
        muted: bool,
        purpose: Purpose,
    ) -> Result<Instance, Failure> {
        let mut instance = self.instance(&base.start(), purpose).await?;
        instance.mute(muted);
        match &base.origin {
            Origin::Founding => {}
            Origin::Saved(schema, bytes) => {
                let restored = instance.restore(&base.context, *schema, bytes.clone());
                restored.await?;
            }
            Origin::Image(image) => instance.resume(image).await?,
            Origin::Kept(kept) => instance.resume(&kept.read()?).await?,
        }
        Ok(instance)
    }
}

/// The instance that a machine would have if none of its calls had failed, from its base.
pub(crate) async fn rebuild(guest: &Guest, journal: &Journal) -> Result<Instance, Failure> {
    let (base, number) = journal.base();
    tracing::debug!(
        target: "skep::machine", group = %guest.logbook.label.group, base = %base.context.index,
        "rebuilding the machine's instance"
    );
    let started = guest.start(&base, true, Purpose::Running).await;
    let instance = started.map_err(again)?;
    catch_up(instance, journal, number).await
}

/// The same, from what the machine was at a checkpoint.
pub(crate) async fn go_back(
    guest: &Guest,
    journal: &Journal,
    checkpoint: Checkpoint,
) -> Result<Instance, Failure> {
    let Checkpoint {
        keepers, kept, at, ..
    } = &checkpoint;
    let started = guest.instance(&journal.start(), Purpose::Running).await;
    let mut instance = started.map_err(again)?;
    instance.mute(true);
    let taken_over = instance.take_over(keepers, kept).await;
    taken_over.map_err(Failure::made_local)?;
    catch_up(instance, journal, at.next).await
}

/// Has a muted instance run the calls from a number on.
async fn catch_up(
    mut instance: Instance,
    journal: &Journal,
    mut number: u64,
) -> Result<Instance, Failure> {
    loop {
        let records = journal.read(number);
        if records.is_empty() {
            break;
        }
        replay(&mut instance, &records, Likeness::Same).await?;
        number += records.len() as u64;
    }
    instance.mute(false);
    Ok(instance)
}

/// How like the first run of a call another one must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Likeness {
    /// In answers and fuel: every instance that came from the same base by the same calls.
    Same,
    /// In answers: an instance that has also answered queries, or has passed a barrier without being rebuilt there.
    Answers,
}

/// Runs calls that have run before; gives the fuel they used. Each of them has returned once, so a failure now, or
/// another answer, is no outcome.
pub(crate) async fn replay(
    instance: &mut Instance,
    records: &[Record],
    likeness: Likeness,
) -> Result<u64, Failure> {
    let mut fuel = 0u64;
    for record in records {
        let ran = instance.run(&record.context, &record.call).await;
        let ran = ran.map_err(again)?;
        let alike = match likeness {
            Likeness::Same => record.is(&ran),
            Likeness::Answers => record.answered(&ran),
        };
        if !alike {
            return Err(Failure::local(
                LocalCode::Differs,
                format!(
                    "the replayed {} of entry {} did not do what it did at first",
                    record.call.name(),
                    record.context.index
                ),
            ));
        }
        fuel = fuel.saturating_add(ran.fuel);
    }
    Ok(fuel)
}

/// A call that succeeded before and fails now: whatever the failure says of itself, it is local.
pub(crate) fn again(failure: Failure) -> Failure {
    match failure {
        Failure::Guest { fault, detail } => Failure::local(
            LocalCode::Differs,
            format!("a replayed call failed with {fault}, which it did not at first: {detail}"),
        ),
        local => local,
    }
}
