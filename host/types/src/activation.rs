//! What becomes of an activation, which gives a group another machine.

use crate::id::LogIndex;
use crate::outcome::GuestFault;

/// What a machine makes of an activation; the same on every replica.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The machine of the group is never exchanged.
    Fixed,
    /// The running machine failed to save itself.
    Save(GuestFault),
    /// The new machine failed to start.
    Start(GuestFault),
    /// The new machine failed to take the state.
    Restore(GuestFault),
}

/// How far a replica is with an activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// It has the new machine, with the state.
    Prepared,
    /// For a reason of its own it has not got it yet, and tries again.
    NotYet,
    /// It can never have it.
    Refused(Refusal),
}

/// Why an activation was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbortReason {
    /// No majority had the new machine in time.
    Deadline,
    /// An operator wanted it.
    Operator,
    /// No majority could ever have it.
    Refused(Refusal),
}

impl Refusal {
    const FIXED: u32 = 3;
    const SAVE: u32 = 0x100;
    const START: u32 = 0x200;
    const RESTORE: u32 = 0x300;

    /// The number in the log.
    pub fn code(self) -> u32 {
        match self {
            Self::Fixed => Self::FIXED,
            Self::Save(fault) => Self::SAVE | u32::from(fault.code()),
            Self::Start(fault) => Self::START | u32::from(fault.code()),
            Self::Restore(fault) => Self::RESTORE | u32::from(fault.code()),
        }
    }

    /// The refusal of a number, if it is known.
    pub fn from_code(code: u32) -> Option<Self> {
        if code == Self::FIXED {
            return Some(Self::Fixed);
        }
        let fault = GuestFault::from_code(u8::try_from(code & 0xff).ok()?)?;
        match code & !0xff {
            Self::SAVE => Some(Self::Save(fault)),
            Self::START => Some(Self::Start(fault)),
            Self::RESTORE => Some(Self::Restore(fault)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed => f.write_str("the machine of this group cannot be exchanged"),
            Self::Save(fault) => write!(f, "the running machine failed in save: {fault}"),
            Self::Start(fault) => write!(f, "the new machine failed to start: {fault}"),
            Self::Restore(fault) => write!(f, "the new machine failed in restore: {fault}"),
        }
    }
}

impl Readiness {
    /// The number that is sent.
    pub fn code(self) -> u32 {
        match self {
            Self::Prepared => 1,
            Self::NotYet => 2,
            Self::Refused(refusal) => refusal.code(),
        }
    }

    /// The readiness of a number, if it is known.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Prepared),
            2 => Some(Self::NotYet),
            code => Refusal::from_code(code).map(Self::Refused),
        }
    }
}

impl AbortReason {
    /// The number in the log.
    pub fn code(self) -> u32 {
        match self {
            Self::Deadline => 1,
            Self::Operator => 2,
            Self::Refused(refusal) => refusal.code(),
        }
    }

    /// The reason of a number, if it is known.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Deadline),
            2 => Some(Self::Operator),
            code => Refusal::from_code(code).map(Self::Refused),
        }
    }
}

impl std::fmt::Display for AbortReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deadline => f.write_str(
                "no majority of the replicas had the new machine in time; see the log lines of the nodes, and try again",
            ),
            Self::Operator => f.write_str("an operator gave it up"),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

/// An activation that has not been done for longer than an election timeout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overdue {
    /// Its entry.
    pub index: LogIndex,
    /// It is decided, and this replica cannot do that yet.
    pub is_decided: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_a_number_of_its_own() {
        let steps: [fn(GuestFault) -> Refusal; 3] =
            [Refusal::Save, Refusal::Start, Refusal::Restore];
        let refusals: Vec<_> = GuestFault::ALL
            .into_iter()
            .flat_map(|fault| steps.map(|step| step(fault)))
            .chain([Refusal::Fixed])
            .collect();
        for refusal in refusals {
            let (readiness, reason) = (Readiness::Refused(refusal), AbortReason::Refused(refusal));
            assert_eq!(Readiness::from_code(readiness.code()), Some(readiness));
            assert_eq!(AbortReason::from_code(reason.code()), Some(reason));
        }
        for readiness in [Readiness::Prepared, Readiness::NotYet] {
            assert_eq!(Readiness::from_code(readiness.code()), Some(readiness));
        }
        for reason in [AbortReason::Deadline, AbortReason::Operator] {
            assert_eq!(AbortReason::from_code(reason.code()), Some(reason));
        }
        for unknown in [0, 4, 0xff, 0x100, 0x1ff, 0x401, u32::MAX] {
            assert_eq!(AbortReason::from_code(unknown), None, "{unknown}");
            assert_eq!(Readiness::from_code(unknown), None, "{unknown}");
        }
    }
}
