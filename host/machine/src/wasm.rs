//! A state machine from a WebAssembly component.
//!
//! Data flows one way: bytes → [`inspect()`] → [`Component`] (compiled by a [`Compiler`] for the one [`Engine`]) → [`WasmMachine`] (one
//! instance for each replica) → [`WasmReader`] (an instance that answers its queries).
//!
//! The folders lie on top of each other, and none uses one above it: `run` (machines, readers, what they are rebuilt from), `code`
//! (components), `world` (what a guest sees of the host), `engine`, and at the bottom `error` and `fault`.

mod code;
mod engine;
mod error;
mod fault;
mod run;
mod world;

pub use code::cache::{Cache, Refusal};
pub use code::compiler::{Allowance, Compiler, InProcess};
pub use code::complexity::{MAX_FUNCTION_TARGETS, MAX_MERGES, MAX_TARGETS};
pub use code::component::{Component, Found};
pub use code::expansion::{MAX_DEPTH, MAX_ITEMS};
pub use code::freeze::NoImage;
pub use code::inspect::{
    Inspection, Interfaces, MAX_COMPONENT_BYTES, MAX_FUNCTIONS, Producer, inspect,
};
pub use engine::budget::{MachineBudget, OutOfBudget, Purpose};
pub use engine::holdings::Holdings;
pub use engine::{APPLY_THREAD_STACK_BYTES, Engine};
pub use error::{CompileError, ComponentError};
pub use run::call::REJECTED_BY_HOST;
pub use run::machine::WasmMachine;
pub use run::probe::Probe;
pub use run::reader::WasmReader;
pub use skep_types::profile::Profile;
pub use world::logbook::MachineLabel;
