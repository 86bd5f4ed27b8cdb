//! Machines, one actor for each group, and what answers queries beside them.

pub mod exchange;
pub(crate) mod gauge;
pub(crate) mod queries;
pub mod worker;
