//! What Skep says on the network: frames, and the messages in them.
//!
//! [`codec`] cuts a stream into checked frames. [`proto`] holds the messages as they are on the wire; they are generated
//! from `proto/*.proto`. [`client`] turns what clients and nodes say into the words of `skep-types` and back by moving fields, the crate
//! `skep-peer` what nodes say to each other; what a replica keeps gets memory of its own ([`codec::own`]). Nothing here does
//! I/O.

pub mod client;
pub mod codec;
mod error;
mod proposal;

use std::time::Duration;

pub use error::WireError;

/// The messages as they are on the wire, generated from `proto/*.proto`; the comments there say what each field is.
pub mod proto {
    #![allow(
        missing_docs,
        unused_qualifications,
        clippy::large_enum_variant,
        clippy::doc_markdown
    )]
    include!(concat!(env!("OUT_DIR"), "/skep.wire.v1.rs"));
}

/// Version of the protocol between nodes; both ends of a connection speak the same one.
pub const PEER_PROTOCOL: u32 = 6;

/// Version of the protocol between clients and nodes.
pub const CLIENT_PROTOCOL: u32 = 3;

/// Most bytes in a frame's body. Well above the largest message, an append of one entry of 8 MiB, so that a batch of
/// several fits, and small enough that a peer's frame in memory is nothing to fear.
pub const MAX_FRAME: usize = 64 << 20;

/// Most bytes in the body of the first frame of a connection, which comes from someone not known yet.
pub const MAX_HELLO: usize = 4 << 10;

/// Most bytes in the body of a frame of a client connection: an entry's 8 MiB and its envelope, with room to spare.
pub const MAX_CLIENT_FRAME: usize = 16 << 20;

/// Most milliseconds that a request may name as its deadline: an hour. Whoever waits longer asks again, so that no node
/// keeps a request whose asker is long gone.
pub const MAX_TIMEOUT_MS: u32 = 3_600_000;

/// A deadline as a node takes it, at most [`MAX_TIMEOUT_MS`].
pub fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).map_or(MAX_TIMEOUT_MS, |given| given.min(MAX_TIMEOUT_MS))
}

/// Most bytes of a snapshot or a component in one frame.
pub const MAX_CHUNK: usize = 1 << 20;
