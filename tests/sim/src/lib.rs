//! A deterministic simulator of Skep: the real replicas of `skep-core` over the real log of `skep-log`, on simulated disks
//! and a simulated network, in one thread, on a virtual clock, all of it drawn from one seed.
//!
//! Data flows one way: a [`Scenario`] is drawn from a seed, a [`World`] runs it, its [`invariant::Checker`] looks at
//! every step, and what comes out is a [`Report`] or a [`Failure`]. The same seed gives the same run, to the bit.
//!
//! What is *not* simulated: threads, sockets, HTTP, and the sandbox. The host drives cores, log and machines from threads;
//! here `node` does the same in one.

pub mod catalogue;
pub mod client;
pub mod founding;
pub mod invariant;
pub mod machine;
pub mod nemesis;
pub mod node;
#[cfg(feature = "planted")]
pub mod planted;
pub mod random;
pub mod scenario;
pub mod shrink;
pub mod soak;
pub mod stores;
pub mod trace;
pub mod world;

pub use nemesis::Fault;
pub use scenario::Scenario;
pub use world::{Failure, Report, World};
