//! The state machine contract of Skep, and the sandbox that runs it from a WebAssembly component.
//!
//! - [`state_machine`]: the contract, [`StateMachine`] and [`Reader`].
//! - [`wasm`]: a machine from a component: [`wasm::WasmMachine`].
//! - [`native`]: a machine written in Rust and compiled into the host: [`native::Native`].
//! - [`conformance`]: what every machine that speaks the key-value requests of `examples/kv` must do.

pub mod conformance;
pub mod native;
pub mod state_machine;
pub mod wasm;

pub use state_machine::{
    Answer, Applied, Descriptor, Interrupter, LocalCode, MachineError, Memory, Reader, StateMachine,
};
