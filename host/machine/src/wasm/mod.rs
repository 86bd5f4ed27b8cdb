//! A state machine from a WebAssembly component.
//!
//! Data flows one way: bytes → [`inspect()`] → [`Component`] (compiled by a [`Compiler`] for the one [`Engine`]) → [`WasmMachine`] (one
//! instance for each replica) → [`WasmReader`] (an instance that answers its queries).

mod budget;
mod cache;
mod compiler;
mod complexity;
mod component;
mod depth;
mod ending;
mod engine;
mod expansion;
mod fault;
mod guest;
mod host;
mod imports;
mod inspect;
mod instance;
mod journal;
mod limits;
mod logbook;
mod machine;
mod private;
mod probe;
mod random;
mod reader;
mod types;
mod wasi;

pub use budget::{Holdings, MachineBudget, OutOfBudget, Purpose};
pub use cache::{Cache, Refusal};
pub use compiler::{Allowance, CompileError, Compiler, InProcess};
pub use complexity::{MAX_FUNCTION_TARGETS, MAX_MERGES, MAX_TARGETS};
pub use component::{Component, ComponentError, Found};
pub use engine::{APPLY_THREAD_STACK_BYTES, Engine};
pub use expansion::{MAX_DEPTH, MAX_ITEMS};
pub use guest::MachineLabel;
pub use inspect::{Inspection, Interfaces, MAX_COMPONENT_BYTES, MAX_FUNCTIONS, Producer, inspect};
pub use limits::Profile;
pub use machine::{REJECTED_BY_HOST, WasmMachine};
pub use probe::Probe;
pub use reader::WasmReader;
