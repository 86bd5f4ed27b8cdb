//! The closed list of failures that may become an outcome. Everything that is not on it is local to this replica.

use skep_core::outcome::GuestFault;
use wasmtime::{Trap, WasmBacktrace};

use Class::{Guest, Local};

use crate::{LocalCode, MachineError};

/// Why the host itself ends a guest's call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The guest asked for what it may not have; every replica refuses alike.
    #[error("{0}")]
    Fault(GuestFault),
    /// This node could not do what it promised the guest.
    #[error("{reason}")]
    Local { code: LocalCode, reason: String },
}

/// Why a call into a guest has no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Deterministic: every replica fails here, in this way.
    Guest { fault: GuestFault, detail: String },
    /// Only this replica may have failed.
    Local { code: LocalCode, reason: String },
}

impl Failure {
    /// Sorts what wasmtime returned from a call, or from an instantiation, into the two classes.
    pub(crate) fn of(error: &wasmtime::Error) -> Self {
        match class_of(error) {
            Guest(fault) => Self::guest(fault, text(error)),
            Local(code) => Self::local(code, text(error)),
        }
    }

    /// The same failure, known to have come after the guest was refused memory. What it did then is its own way of dying:
    /// a trap, an exit, a broken value; the other limits speak for themselves.
    pub(crate) fn for_want_of_memory(self) -> Self {
        match self {
            Self::Guest { fault, detail }
                if !matches!(
                    fault,
                    GuestFault::OutOfFuel | GuestFault::ReplyTooLarge | GuestFault::Limit
                ) =>
            {
                let detail = format!(
                    "it was refused more memory than its profile's `memory-bytes` allows, and ended with {fault}: {detail}"
                );
                Self::guest(GuestFault::OutOfMemory, detail)
            }
            other => other,
        }
    }

    pub(crate) fn guest(fault: GuestFault, detail: impl Into<String>) -> Self {
        Self::Guest {
            fault,
            detail: detail.into(),
        }
    }

    pub(crate) fn local(code: LocalCode, reason: impl Into<String>) -> Self {
        Self::Local {
            code,
            reason: reason.into(),
        }
    }

    /// The same failure, of a call that was the host's own.
    pub(crate) fn made_local(self) -> Self {
        match self {
            Self::Guest { detail, .. } => Self::local(LocalCode::UnexpectedTrap, detail),
            local => local,
        }
    }

    pub(crate) fn into_error(self, call: &'static str) -> MachineError {
        match self {
            Self::Guest { fault, detail } => MachineError::Guest {
                call,
                fault,
                detail: Some(detail),
            },
            Self::Local { code, reason } => MachineError::Local { call, code, reason },
        }
    }
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        Self::of(&error)
    }
}

/// Whose failure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Guest(GuestFault),
    Local(LocalCode),
}

fn class_of(error: &wasmtime::Error) -> Class {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return match stop {
            Stop::Fault(fault) => Guest(*fault),
            Stop::Local { code, .. } => Local(*code),
        };
    }
    if let Some(trap) = error.downcast_ref::<Trap>() {
        // A trap of a release that this table does not know: nobody can say what it means.
        return class_of_trap(*trap).unwrap_or(Local(LocalCode::UnexpectedTrap));
    }
    let cause = error.root_cause().to_string();
    if cause.starts_with(TOO_MUCH_COPIED) {
        // Under a guest's frames the guest was calling the host; with none left it was returning its reply.
        let importing = error
            .downcast_ref::<WasmBacktrace>()
            .is_some_and(|trace| !trace.frames().is_empty());
        return Guest(if importing {
            GuestFault::Limit
        } else {
            GuestFault::ReplyTooLarge
        });
    }
    let listed = |list: &[&str]| list.iter().any(|prefix| cause.starts_with(prefix));
    if listed(BROKEN_ABI) {
        Guest(GuestFault::Malformed)
    } else if listed(OVER_LIMIT) {
        Guest(GuestFault::Limit)
    } else if is_of_memory(error) {
        Local(LocalCode::Memory)
    } else {
        Local(LocalCode::UnexpectedError)
    }
}

/// Whether the system refused memory or address space: wasmtime has no type of its own for that.
pub(crate) fn is_of_memory(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime::OutOfMemory>()
        || error.chain().any(|cause| {
            let cause = cause.to_string();
            NO_MEMORY.iter().any(|words| cause.contains(words))
        })
}

const NO_MEMORY: &[&str] = &[
    "mmap failed",
    "failed to mmap",
    "mprotect failed",
    "Cannot allocate memory",
];

/// Every trap of wasmtime has its row here; `None` is one that a later release adds, and a test finds.
fn class_of_trap(trap: Trap) -> Option<Class> {
    Some(match trap {
        Trap::UnreachableCodeReached => Guest(GuestFault::Unreachable),
        Trap::MemoryOutOfBounds | Trap::HeapMisaligned => Guest(GuestFault::MemoryOutOfBounds),
        Trap::TableOutOfBounds
        | Trap::IndirectCallToNull
        | Trap::BadSignature
        | Trap::NullReference => Guest(GuestFault::BadCall),
        Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => {
            Guest(GuestFault::Arithmetic)
        }
        Trap::OutOfFuel => Guest(GuestFault::OutOfFuel),
        Trap::InvalidChar
        | Trap::StringOutOfBounds
        | Trap::ListOutOfBounds
        | Trap::InvalidDiscriminant
        | Trap::UnalignedPointer => Guest(GuestFault::Malformed),
        // A guest that calls an import while the host is moving a value into its memory: part of the component model's
        // rules, so the same everywhere.
        Trap::CannotLeaveComponent => Guest(GuestFault::ForbiddenImport),
        // A component that calls itself, or what is inside or around it: wasmtime writes this trap into the code that
        // stands between them, and enters no instance that has trapped (an instance is dropped then).
        Trap::CannotEnterComponent => Guest(GuestFault::Trap),

        // Depends on the machine code.
        Trap::StackOverflow => Local(LocalCode::StackOverflow),
        // Asked for by this node.
        Trap::Interrupt => Local(LocalCode::Interrupted),
        // Said of this node's memory.
        Trap::AllocationTooLarge => Local(LocalCode::Memory),

        // Of features that no machine has (atomics, garbage collection, exceptions, stack switching, async), of another
        // backend, and of assertions within wasmtime: none of them can happen, so nobody knows what it would mean.
        Trap::AtomicWaitNonSharedMemory
        | Trap::ArrayOutOfBounds
        | Trap::CastFailure
        | Trap::NoAsyncResult
        | Trap::UnhandledTag
        | Trap::ContinuationAlreadyConsumed
        | Trap::DisabledOpcode
        | Trap::AsyncDeadlock
        | Trap::CannotBlockSyncTask
        | Trap::DebugAssertStringEncodingFinished
        | Trap::DebugAssertEqualCodeUnits
        | Trap::DebugAssertPointerAligned
        | Trap::DebugAssertUpperBitsUnset
        | Trap::TaskCancelNotCancelled
        | Trap::TaskCancelOrReturnTwice
        | Trap::SubtaskCancelAfterTerminal
        | Trap::TaskReturnInvalid
        | Trap::WaitableSetDropHasWaiters
        | Trap::SubtaskDropNotResolved
        | Trap::ThreadNewIndirectInvalidType
        | Trap::ThreadNewIndirectUninitialized
        | Trap::BackpressureOverflow
        | Trap::UnsupportedCallbackCode
        | Trap::CannotResumeThread
        | Trap::ConcurrentFutureStreamOp
        | Trap::ReferenceCountOverflow
        | Trap::StreamOpTooBig
        | Trap::WaitableSyncAndAsync
        | Trap::UncaughtException => Local(LocalCode::UnexpectedTrap),
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
    fn every_trap_of_wasmtime_has_its_row() {
        let traps = (0..=u8::MAX).filter_map(Trap::from_u8).collect::<Vec<_>>();
        assert!(traps.len() > 40, "{traps:?}");
        for trap in &traps {
            assert!(
                class_of_trap(*trap).is_some(),
                "{trap:?} ({trap}) is new: is it the same on every replica?"
            );
        }
        let of_the_guest = |trap: &&Trap| matches!(class_of_trap(**trap), Some(Guest(_)));
        assert_eq!(traps.iter().filter(of_the_guest).count(), 18);
        for (trap, code) in [
            (Trap::StackOverflow, LocalCode::StackOverflow),
            (Trap::Interrupt, LocalCode::Interrupted),
            (Trap::AllocationTooLarge, LocalCode::Memory),
            (Trap::AsyncDeadlock, LocalCode::UnexpectedTrap),
        ] {
            assert!(
                matches!(Failure::of(&trap.into()), Failure::Local { code: is, .. } if is == code),
                "{trap}"
            );
        }
    }

    #[test]
    fn an_unknown_error_is_local_and_a_listed_one_is_not() {
        assert!(matches!(
            Failure::of(&wasmtime::format_err!("no such thing")),
            Failure::Local {
                code: LocalCode::UnexpectedError,
                ..
            }
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
        let stop = Stop::Local {
            code: LocalCode::Io,
            reason: "disk".into(),
        };
        assert!(matches!(
            Failure::of(&stop.into()),
            Failure::Local {
                code: LocalCode::Io,
                ..
            }
        ));
        // As wasmtime says it of a mapping that the system refuses.
        let refused = std::io::Error::from_raw_os_error(12);
        assert!(matches!(
            Failure::of(&wasmtime::Error::new(refused).context("mmap failed to reserve")),
            Failure::Local {
                code: LocalCode::Memory,
                ..
            }
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
