//! Between the replicas of `skep-core` and the records of `skep-log`, which know nothing of each other.
//!
//! [`convert`] puts the words of one into those of the other; [`Lives`] says which lives of groups a data directory
//! holds or held, and so how a replica begins. Both are used by the host and by the simulator alike. [`recovery`] carries out in
//! one directory what was decided about a cluster that lost its majority.

pub mod convert;
mod lives;
pub mod recovery;

pub use lives::{Begin, Ended, Lives};
