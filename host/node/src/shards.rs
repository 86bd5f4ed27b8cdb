//! The threads that own replicas, and what they are told.

mod effects;
pub(crate) mod mailbox;
pub(crate) mod outbox;
pub(crate) mod replica;
pub(crate) mod route;
pub(crate) mod router;
pub(crate) mod shard;
