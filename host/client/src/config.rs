//! How a client reaches its cluster.

use std::time::Duration;

/// How a client reaches its cluster, and how patient it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientConfig {
    /// Nodes to begin with, as `host:port`; others are learned from them.
    pub addresses: Vec<String>,
    /// The cluster that is meant; `None` for whichever answers.
    pub cluster: Option<String>,
    /// To connect and introduce oneself to one node. 2 s by default.
    pub connect_timeout: Duration,
    /// For one request with all its retries. 10 s by default, enough for several elections.
    pub request_timeout: Duration,
    /// For one try of a request that can be tried again elsewhere. 3 s by default, longer than an election.
    pub attempt_timeout: Duration,
}

impl ClientConfig {
    /// The defaults, for these nodes.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            cluster: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
        }
    }
}
