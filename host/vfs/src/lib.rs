//! The file system as Skep uses it.
//!
//! [`Vfs`] is the trait, [`DiskVfs`] the real one, and [`SimVfs`] one for tests, which can lose, tear and fail any call. A
//! [`Draft`] is the one way in which a file gets its content whole or not at all.

mod draft;
mod patience;
pub mod sim;
mod steps;
mod vfs;

pub use draft::{Draft, FileError, place, replace};
pub use patience::{is_want, patiently, waits};
pub use sim::SimVfs;
pub use steps::{End, at_every_step};
pub use vfs::{DiskVfs, Vfs, VfsFile, VfsLock, read_at};
