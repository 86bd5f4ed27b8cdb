//! Write a replicated state machine for [Skep](https://github.com/skep/skep): implement [`Machine`], name it in
//! [`export!`], build with `cargo build --release --target wasm32-wasip2`. The result is a WebAssembly component that
//! a Skep host replicates with Raft: every replica calls the same functions with the same arguments in the same order.
//!
//! # A whole machine
//!
//! ```
//! use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
//!
//! /// Counts: `add N` answers the new total, `total` is a query.
//! #[derive(Default)]
//! struct Counter {
//!     total: u64,
//! }
//!
//! impl Machine for Counter {
//!     fn describe() -> Descriptor {
//!         Descriptor { name: "counter", version: env!("CARGO_PKG_VERSION"), schema: 1, oldest_schema: 1 }
//!     }
//!
//!     fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
//!         let text = std::str::from_utf8(request).unwrap_or_default();
//!         let number: Option<u64> = text.strip_prefix("add ").and_then(|number| number.parse().ok());
//!         let number = number.ok_or_else(|| Rejection::new(400, "say `add N`, N a whole number"))?;
//!         // Check first, change last: a rejection must leave the state as it was.
//!         let total = self.total.checked_add(number).ok_or_else(|| Rejection::new(422, "the total would overflow"))?;
//!         self.total = total;
//!         Ok(total.to_string().into_bytes())
//!     }
//!
//!     fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
//!         match request {
//!             b"total" => Ok(self.total.to_string().into_bytes()),
//!             _ => Err(Rejection::new(400, "the only query is `total`")),
//!         }
//!     }
//!
//!     fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
//!         to.put_u64(self.total);
//!         Ok(())
//!     }
//!
//!     fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
//!         Ok(Counter { total: from.take_u64()? })
//!     }
//! }
//!
//! skep_guest::export!(Counter);
//!
//! // The logic is tested natively, without a host.
//! use skep_guest::testing::{Harness, Step, replay_matches};
//! let mut counter = Harness::<Counter>::new();
//! assert_eq!(counter.apply("add 2").unwrap(), b"2");
//! assert_eq!(counter.apply("add 40").unwrap(), b"42");
//! assert_eq!(counter.apply("multiply").unwrap_err().code, 400);
//! assert_eq!(counter.query("total").unwrap(), b"42");
//! replay_matches::<Counter>(&[Step::apply("add 1"), Step::apply("what"), Step::apply("add 2")]).unwrap();
//! ```
//!
//! # The rules
//!
//! A machine is a function of its log. On a Skep host a component can hardly break that: clocks, randomness and hash
//! seeds come from the log entry, and there is no file, no socket and no environment. Two rules remain the author's:
//!
//! - **A rejection leaves the state as it was.** Validate, then mutate.
//! - **[`Machine::save`] writes the whole state**, the same bytes for the same state. The host rebuilds the instance
//!   from these bytes at every snapshot, on every replica, so whatever `save` leaves out is lost.
//!
//! What a machine decides by in between is free: the order of a `HashMap` or `HashSet`, addresses, a generator seeded at the
//! start, how much memory is left are the same on every replica, since every replica has the same heap. A [query](Machine::query)
//! runs in a fork of that heap, so it shows exactly what the commands decided. But each snapshot builds the heap anew, with other
//! hash seeds: do not *answer* by such a thing if the answer has to stay, and keep no counter, cache or id beside the state that
//! an answer looks at. `skep test` finds what is lost there, and names it (`unsaved`, `seeded`, `round-trip`, `query-writes`).
//!
//! `wit/README.md` in the Skep repository has the complete contract: limits, traps, snapshots, versions.

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod component;
pub mod entropy;
pub mod log;
mod machine;
mod snapshot;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use machine::{
    ChangeKind, ConfChange, Context, Descriptor, LeaderChanged, Machine, Rejection, StatusChange,
};
pub use snapshot::{CHUNK, Sink, Source};

/// Exports a [`Machine`] as the component: `skep_guest::export!(MyMachine);`, once per crate.
///
/// The crate's type must be `cdylib`. In a native build the macro only checks that the type is a [`Machine`].
#[cfg(target_family = "wasm")]
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        const _: () = {
            struct Exported;

            ::std::thread_local! {
                static MACHINE: ::std::cell::RefCell<::std::option::Option<$machine>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            impl $crate::component::Slot for Exported {
                type Machine = $machine;

                fn slot()
                -> &'static ::std::thread::LocalKey<::std::cell::RefCell<::std::option::Option<$machine>>> {
                    &MACHINE
                }
            }

            $crate::component::bindings::export!(Exported with_types_in $crate::component::bindings);
        };
    };
}

/// Exports a [`Machine`] as the component: `skep_guest::export!(MyMachine);`, once per crate.
///
/// The crate's type must be `cdylib`. In a native build the macro only checks that the type is a [`Machine`].
#[cfg(not(target_family = "wasm"))]
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        const _: fn() -> $machine = <$machine as $crate::Machine>::__exported;
    };
}
