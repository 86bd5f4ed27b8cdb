//! The client of Skep.
//!
//! A [`Client`] keeps one connection to each node it speaks to, with many requests in flight on it, follows the leader of
//! each group, and tries again where that is safe. A [`Session`] gives each command a name that all its retries carry,
//! so that it is applied once however often it had to be sent.
//!
//! Every result of a command is one of three: a [`Response`]; an error after which it was certainly not applied; or an
//! error whose [`ClientError::is_unknown`] says that it may have been, or may yet be.
//!
//! ```no_run
//! # async fn example() -> Result<(), skep_client::ClientError> {
//! use skep_client::{Client, ClientConfig, Consistency};
//!
//! let client = Client::connect(ClientConfig::new(["127.0.0.1:7401", "127.0.0.1:7402"])).await?;
//! let session = client.session(1.into()).await?;
//! let response = session.propose("put key value".into()).await?;
//! println!("applied at {}: {:?}", response.index, response.outcome);
//! let answer = client.query(1.into(), "get key".into(), Consistency::Linearizable).await?;
//! println!("{:?}", answer.outcome);
//! # Ok(())
//! # }
//! ```

mod client;
mod clock;
mod config;
mod connection;
mod error;
pub mod link;
mod route;
mod session;
#[cfg(test)]
mod tests;

pub use client::{Answer, Client, ComponentPiece, Consistency};
pub use config::ClientConfig;
pub use error::ClientError;
pub use session::Session;
pub use skep_types::code::Code;
pub use skep_types::id::{ComponentId, GroupId, LogIndex, NodeId, RequestId, SessionId, Term};
pub use skep_types::outcome::{GuestFault, Outcome};
pub use skep_types::proposal::Response;
