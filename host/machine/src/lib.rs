//! Machines of Skep: the sandbox that runs one from a WebAssembly component, and machines in Rust. The contract of both is
//! in `skep-drive`, and is here under its old name too.
//!
//! - [`state_machine`]: the contract, [`StateMachine`] and [`Reader`].
//! - [`wasm`]: a machine from a component: [`wasm::WasmMachine`].
//! - [`native`]: a machine written in Rust and compiled into the host: [`native::Native`].
//! - [`conformance`]: what every machine that speaks the key-value requests of `examples/kv` must do.
//! - `clock`: the clock of this node.

mod clock;
pub mod conformance;
pub mod native;
pub mod wasm;

pub use skep_drive::ToEnd;
pub use skep_drive::state_machine;
pub use skep_drive::state_machine::{
    Answer, Applied, Costs, Descriptor, ImageTaken, LocalCode, MachineError, Memory, ReadImage,
    Reader, Running, StateMachine,
};
