//! Decides whether what clients saw of a group is linearizable, that is, explained by one order of the commands in which
//! each takes effect once, between its call and its return.
//!
//! A test gives every client a clone of one [`History`], which notes calls and returns with times of the test's own
//! clock. Afterwards [`kv::check`] judges the history of the key-value machine by three independent checks:
//!
//! - [`wgl`]: knows only calls, replies and times. It searches, key by key, for an order that explains them.
//! - [`indexed`]: knows also where in the log each command was applied, and needs no search where all outcomes are known.
//! - [`kv::versions`]: the machine's versions count all its changes, so they order the changes of different keys.
//!
//! [`history`] notes operations, [`jsonl`] and [`text`] read and write them, [`blob`] holds their bytes; [`model`] is what a machine
//! may do; [`verdict`] and [`error`] are the results.
//!
//! Another machine is checked by another [`Model`] and calls to [`wgl::check`] and [`indexed::check`].
//!
//! ```
//! use skep_checker::{History, Limits, Place, Reply, Via, kv};
//!
//! let history = History::new();
//! let put = history.call(1, Via::Log, "put a 5", 10);
//! put.returned(Reply::ok("OK 1"), Some(Place::of_index(7)), 20);
//! let get = history.call(2, Via::Read, "get a", 30);
//! get.returned(Reply::ok("5"), Some(Place::of_index(7)), 40);
//! let lost = history.call(3, Via::Log, "incr a", 50);
//! lost.unknown(60);
//!
//! let report = kv::check(&history.operations(), Limits::default())?;
//! assert!(report.is_linearizable(), "{report}");
//! # Ok::<(), skep_checker::CheckerError>(())
//! ```

pub mod blob;
pub mod error;
pub mod history;
pub mod indexed;
pub mod jsonl;
pub mod kv;
pub mod model;
pub mod text;
pub mod verdict;
pub mod wgl;

pub use blob::Blob;
pub use error::CheckerError;
pub use history::{History, Operation, Outcome, Pending, Place, RawOperation, Reply, Via};
pub use model::Model;
pub use verdict::{Counterexample, Limits, Verdict};
