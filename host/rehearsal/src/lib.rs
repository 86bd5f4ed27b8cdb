//! Rehearsals: a machine is taken through what may happen to it on a replica, without a cluster, and told what it would
//! do wrong.
//!
//! [`rehearse`] runs a [`History`] many times over: as two replicas with different noise around them, with barriers at
//! random places, with a snapshot at every prefix and queries on both sides of it, with limits that cut some commands off, in batches and one by one. What
//! comes out is a [`Report`]: one [`CheckResult`] for each check, what the commands cost, and a [`Verdict`].
//!
//! # What is wrong and what is only strange
//!
//! A replica never diverges from another one by what these checks find: each barrier rebuilds every replica from the same
//! bytes. But a machine whose `save` leaves something out loses it there, on all of them, and its users see that. So
//! what is lost is an [`Error`](Severity::Error), what merely shows the order of a hash map is a
//! [`Warning`](Severity::Warning), and what canonical points or forks hide from everybody is a [`Note`](Severity::Note). Queries of
//! a machine that cannot be forked are answered beside the log, where replicas may differ: an answer that contradicts the state is
//! an error, too. What kind of defect it is says the [`Class`].

mod checks;
mod error;
mod generate;
mod history;
mod lived;
mod report;
mod script;
mod world;

use std::sync::Arc;

use skep_machine::wasm::{Component, Profile};

pub use error::RehearsalError;
pub use generate::generate;
pub use history::{History, HistoryError, MAX_HISTORY, Origin, Step, escape, unescape};
pub use report::{
    Check, CheckResult, Class, Costs, Finding, Place, Quantiles, Report, Severity, Verdict,
};

/// Runs `history` through every check.
///
/// The same component, profile and history give the same report.
///
/// # Errors
///
/// [`RehearsalError`] if the machine cannot even start, or if this computer failed to run it: neither says anything of
/// what it would do. What the machine does wrong is in the report.
pub fn rehearse(
    component: &Arc<Component>,
    profile: &Profile,
    history: &History,
) -> Result<Report, RehearsalError> {
    let script = script::Script::new(component, history);
    checks::run(script::Subject {
        component: component.clone(),
        profile: profile.clone(),
        script,
    })
}
