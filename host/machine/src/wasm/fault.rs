//! The closed list of failures that may become an outcome. Everything that is not on it is local to this replica.

use skep_core::outcome::GuestFault;
use wasmtime::{Trap, WasmBacktrace};

use crate::MachineError;

/// Why the host itself ends a guest's call.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// The guest asked for what it may not have; every replica refuses alike.
    #[error("{0}")]
    Fault(GuestFault),
    /// This node could not do what it promised the guest.
    #[error("{0}")]
    Local(String),
}

/// Why a call into a guest has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Deterministic: every replica fails here, in this way.
    Guest { fault: GuestFault, detail: String },
    /// Only this replica may have failed.
    Local(String),
}

impl Failure {
    /// Sorts what wasmtime returned from a call, or from an instantiation, into the two classes.
    pub(super) fn of(error: &wasmtime::Error) -> Self {
        match fault_of(error) {
            Some(fault) => Self::Guest {
                fault,
                detail: text(error),
            },
            None => Self::Local(text(error)),
        }
    }

    pub(super) fn guest(fault: GuestFault, detail: impl Into<String>) -> Self {
        Self::Guest {
            fault,
            detail: detail.into(),
        }
    }

    pub(super) fn into_error(self, call: &'static str) -> MachineError {
        match self {
            Self::Guest { fault, detail } => MachineError::Guest {
                call,
                fault,
                detail: Some(detail),
            },
            Self::Local(reason) => MachineError::Local { call, reason },
        }
    }
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        Self::of(&error)
    }
}

fn fault_of(error: &wasmtime::Error) -> Option<GuestFault> {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return match stop {
            Stop::Fault(fault) => Some(*fault),
            Stop::Local(_) => None,
        };
    }
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return fault_of_trap(*trap);
    }
    let cause = error.root_cause().to_string();
    if cause.starts_with(TOO_MUCH_COPIED) {
        // Under a guest's frames the guest was calling the host; with none left it was returning its reply.
        let importing = error
            .downcast_ref::<WasmBacktrace>()
            .is_some_and(|trace| !trace.frames().is_empty());
        return Some(if importing {
            GuestFault::Limit
        } else {
            GuestFault::ReplyTooLarge
        });
    }
    let listed = |list: &[&str]| list.iter().any(|prefix| cause.starts_with(prefix));
    if listed(BROKEN_ABI) {
        Some(GuestFault::Malformed)
    } else if listed(OVER_LIMIT) {
        Some(GuestFault::Limit)
    } else {
        None
    }
}

fn fault_of_trap(trap: Trap) -> Option<GuestFault> {
    Some(match trap {
        Trap::UnreachableCodeReached => GuestFault::Unreachable,
        Trap::MemoryOutOfBounds | Trap::HeapMisaligned => GuestFault::MemoryOutOfBounds,
        Trap::TableOutOfBounds
        | Trap::IndirectCallToNull
        | Trap::BadSignature
        | Trap::NullReference => GuestFault::BadCall,
        Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => {
            GuestFault::Arithmetic
        }
        Trap::OutOfFuel => GuestFault::OutOfFuel,
        Trap::InvalidChar
        | Trap::StringOutOfBounds
        | Trap::ListOutOfBounds
        | Trap::InvalidDiscriminant
        | Trap::UnalignedPointer => GuestFault::Malformed,
        // A guest that calls an import while the host is moving a value into its memory: part of the component model's
        // rules, so the same everywhere.
        Trap::CannotLeaveComponent => GuestFault::ForbiddenImport,
        // StackOverflow depends on the machine code, Interrupt and AllocationTooLarge on this node, the rest must never
        // happen: all local.
        _ => return None,
    })
}

const TOO_MUCH_COPIED: &str = "too much data is being copied between the host and the guest";

/// What wasmtime 48 says, without a type of its own, when a guest breaks the canonical ABI. A text that changes in a
/// later release falls out of the list and so becomes local: a replica may stop for it, but never disagree.
const BROKEN_ABI: &[&str] = &[
    "return pointer not aligned",
    "pointer not aligned",
    "pointer size overflow",
    "pointer out of bounds",
    "realloc return: result not aligned",
    "realloc return: beyond end of memory",
    "string pointer not aligned",
    "string pointer/length out of bounds of memory",
    "list pointer/length out of bounds of memory",
    "list pointer is not aligned",
    "size overflow copying a list",
    "byte length overflow",
    "byte length too large",
    "invalid option discriminant",
    "invalid expected discriminant",
    "invalid utf8 encoding",
    "invalid utf16 encoding",
    "invalid utf-8 sequence",
    "incomplete utf-8 byte sequence",
    "unpaired surrogate found",
    "unexpected discriminant",
    "unknown handle index",
    "handle index",
    "index is not a resource",
    "cannot remove owned resource while borrowed",
    "cannot lift own resource from a borrow",
    "borrow handles still remain at the end of the call",
    "host-owned resource was already de-allocated",
];

/// The same for limits that wasmtime itself keeps, with values that the profile gives it.
const OVER_LIMIT: &[&str] = &[
    "cannot allocate another handle",
    "cannot lend resource",
    "resource limit exceeded",
    "memory minimum size of",
    "table minimum size of",
];

/// For the node's log: the causes and the guest's frames, in one line.
fn text(error: &wasmtime::Error) -> String {
    const MAX_CHARS: usize = 2_000;
    let mut text = format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if let Some((end, _)) = text.char_indices().nth(MAX_CHARS) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_traps_are_outcomes() {
        let class_a = (0..=u8::MAX)
            .filter_map(Trap::from_u8)
            .filter(|trap| fault_of_trap(*trap).is_some())
            .count();
        assert_eq!(class_a, 17);
        for trap in [
            Trap::StackOverflow,
            Trap::Interrupt,
            Trap::AllocationTooLarge,
            Trap::CannotEnterComponent,
            Trap::DebugAssertPointerAligned,
            Trap::AsyncDeadlock,
        ] {
            assert!(
                matches!(Failure::of(&trap.into()), Failure::Local(_)),
                "{trap}"
            );
        }
    }

    #[test]
    fn an_unknown_error_is_local_and_a_listed_one_is_not() {
        assert!(matches!(
            Failure::of(&wasmtime::format_err!("no such thing")),
            Failure::Local(_)
        ));
        assert!(matches!(
            Failure::of(
                &wasmtime::format_err!("list pointer/length out of bounds of memory")
                    .context("calling")
            ),
            Failure::Guest {
                fault: GuestFault::Malformed,
                ..
            }
        ));
        assert!(matches!(
            Failure::of(&Stop::Local("disk".into()).into()),
            Failure::Local(_)
        ));
        assert!(matches!(
            Failure::of(&Stop::Fault(GuestFault::Exit).into()),
            Failure::Guest {
                fault: GuestFault::Exit,
                ..
            }
        ));
    }
}
