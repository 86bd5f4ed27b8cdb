//! One key of the key-value machine.

use std::fmt;
use std::sync::Arc;

use crate::blob::Blob;
use crate::model::Model;

use super::command::{Command, Input, Output};

/// The model: a register with a version.
///
/// Versions count the changes of the whole machine. Of one key they are known only to grow, by one or more with each change,
/// and an answer need not tell them; then the state holds a bound until an answer does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Register;

/// What a key holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The version of the key's last change; 0 if there was none.
    last: Version,
    /// What the last change left there.
    value: Option<Blob>,
}

/// The version of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    /// This one.
    Is(u64),
    /// This one or a later one.
    AtLeast(u64),
}

impl Version {
    /// The lowest it may be.
    fn least(self) -> u64 {
        let (Self::Is(version) | Self::AtLeast(version)) = self;
        version
    }
}

impl State {
    /// The state after a change that told its version, which is later than the last.
    fn changed(&self, version: u64, value: Option<Blob>) -> Option<Self> {
        (version > self.last.least()).then_some(Self {
            last: Version::Is(version),
            value,
        })
    }

    /// The state after a change that did not tell its version.
    fn changed_somehow(&self, value: Option<Blob>) -> Self {
        Self {
            last: Version::AtLeast(self.last.least().saturating_add(1)),
            value,
        }
    }

    /// The state if the key has this version, 0 for no key.
    fn if_version(&self, version: u64) -> Option<Self> {
        let fits = match (&self.value, self.last) {
            (None, _) => return (version == 0).then(|| self.clone()),
            (Some(_), Version::Is(known)) => known == version,
            (Some(_), Version::AtLeast(least)) => least <= version,
        };
        fits.then(|| Self {
            last: Version::Is(version),
            value: self.value.clone(),
        })
    }

    /// The number after an `incr`, if it succeeds.
    fn sum(&self, delta: i64) -> Option<i64> {
        let number = match &self.value {
            None => 0,
            Some(value) => str::from_utf8(value.as_slice()).ok()?.parse().ok()?,
        };
        i64::checked_add(number, delta)
    }
}

impl Model for Register {
    type Key = Arc<str>;
    type Input = Input;
    type Output = Output;
    type State = State;
    type Kind = Option<Blob>;

    fn key(&self, input: &Input) -> Arc<str> {
        Arc::clone(&input.key)
    }

    fn initial(&self, _key: &Arc<str>) -> State {
        State {
            last: Version::Is(0),
            value: None,
        }
    }

    fn step(&self, state: &State, input: &Input, output: Option<&Output>) -> Option<State> {
        let Some(output) = output else {
            return self.perhaps(state, input);
        };
        let unchanged = |holds: bool| holds.then(|| state.clone());
        match (&input.command, output) {
            (Command::Put(value), Output::Changed(version)) => {
                state.changed(*version, Some(value.clone()))
            }
            (Command::Cas { version, value }, Output::Changed(changed)) => state
                .if_version(*version)?
                .changed(*changed, Some(value.clone())),
            (Command::Cas { version, .. }, Output::Mismatch(found)) => {
                (version != found).then(|| state.if_version(*found))?
            }
            (Command::Delete, Output::Changed(version)) if state.value.is_some() => {
                state.changed(*version, None)
            }
            (Command::Incr(delta), Output::Number(number)) => {
                let sum = state.sum(*delta).filter(|sum| sum == number)?;
                Some(state.changed_somehow(Some(sum.to_string().into())))
            }
            (Command::Incr(delta), Output::NotANumber) => unchanged(state.sum(*delta).is_none()),
            (Command::Get, Output::Value(value)) => unchanged(state.value.as_ref() == Some(value)),
            (Command::Gets, Output::Versioned(version, value))
                if state.value.as_ref() == Some(value) =>
            {
                state.if_version(*version)
            }
            (Command::Delete | Command::Get | Command::Gets, Output::NotFound) => {
                unchanged(state.value.is_none())
            }
            // The answer is to something else, or to another state.
            _ => None,
        }
    }

    fn kind(&self, state: &State) -> Option<Blob> {
        state.value.clone()
    }

    fn covers(&self, wider: &State, narrower: &State) -> bool {
        match wider.last {
            Version::Is(_) => wider.last == narrower.last,
            Version::AtLeast(least) => least <= narrower.last.least(),
        }
    }

    fn rank(&self, _input: &Input, output: &Output) -> Option<u64> {
        match output {
            Output::Changed(version) => Some(*version),
            _ => None,
        }
    }

    fn passed(&self, state: &State) -> Option<u64> {
        Some(state.last.least())
    }
}

impl Register {
    /// The state after a change of unknown outcome, if it would succeed. A `cas` is placed only where it does, so a version
    /// that is not known is then the one it expects.
    fn perhaps(&self, state: &State, input: &Input) -> Option<State> {
        match &input.command {
            Command::Put(value) => Some(state.changed_somehow(Some(value.clone()))),
            Command::Cas { version, value } => {
                let state = state.if_version(*version)?;
                Some(state.changed_somehow(Some(value.clone())))
            }
            Command::Delete => state.value.as_ref().map(|_| state.changed_somehow(None)),
            Command::Incr(delta) => {
                let sum = state.sum(*delta)?;
                Some(state.changed_somehow(Some(sum.to_string().into())))
            }
            Command::Get | Command::Gets => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.value, self.last) {
            (None, _) => write!(f, "no key"),
            (Some(value), Version::Is(version)) => write!(f, "`{value}` of version {version}"),
            (Some(value), Version::AtLeast(version)) => {
                write!(f, "`{value}` of version {version} or later")
            }
        }
    }
}
