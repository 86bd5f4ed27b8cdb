//! Tests of Skep that cross crates: real processes, hostile guests, the seed package's surface.
//!
//! [`cluster`] starts real `skep serve` processes on loopback, [`http`] and the `skep-client` crate speak to them, and
//! [`clock`] waits for what they should become. [`proxy`] is a bad network between them, and [`shim`] a bad disk and a bad
//! clock beneath them. [`forger`] and [`silent`] are strangers at their ports, [`bombs`] are components that compilers choke on,
//! and a [`small_disk`] is soon full. `heap` reaches into the memory of a node's machines. [`reason`]
//! says once more why a test fails. A failure of the harness itself is a panic that says what was expected, because a test has
//! nobody to hand an error to.

pub mod bombs;
pub mod clock;
pub mod cluster;
pub mod forger;
pub mod fuzz;
pub mod guests;
#[cfg(target_os = "linux")]
pub mod heap;
pub mod http;
pub mod process;
pub mod proxy;
pub mod reason;
pub mod seed;
pub mod shim;
pub mod silent;
pub mod small_disk;
