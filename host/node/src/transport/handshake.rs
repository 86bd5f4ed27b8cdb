//! Who is at the other end: the first frame of a connection and its answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use skep_core::founders::Statement;
use skep_core::id::NodeId;
use skep_core::message::Priority;
use skep_log::{Account, Heard, LogError, PeerPins, StoreId};
use skep_peer::{Hello, Purpose, past_from_wire, past_to_wire, statement_to_wire, store_uuid};
use skep_types::code::Code;
use skep_types::founding::{ClusterIdentity, Founding};
use skep_types::past::{ADVICE, Past, WentBack};
use skep_types::shared::lock;
use skep_wire::proto::{self, RefusalReason, hello_ack, peer_frame};
use skep_wire::{MAX_CHUNK, MAX_CLIENT_FRAME, MAX_FRAME, MAX_HELLO, PEER_PROTOCOL, WireError};
use tokio::net::{TcpStream, lookup_host};

use super::connection::Connection;
use super::hearsay::Hearsay;
use crate::clock::timeout;

/// From the first byte of a connection to the end of its handshake. Generous: it only bounds how long a silent
/// stranger holds a connection.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// To resolve a name and to connect; a host that does not answer at all would hold a dial for minutes.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// To ask other nodes about one that is not known here; its own patience is longer.
const INQUIRY_TIMEOUT: Duration = Duration::from_secs(3);

/// Decides whether a node may be spoken to, by its store: a node that lost its disk or comes with an older copy of it has
/// forgotten its votes and must not be taken for the old one.
///
/// *Concurrency*: called from any thread, at each handshake; may block on the disk to remember a node's first store.
pub trait PeerCheck: Send + Sync + 'static {
    /// Whether this node has this store, with this past.
    ///
    /// # Errors
    /// Why it may not be spoken to.
    fn check(&self, node: NodeId, store: [u8; 16], past: &Past) -> Result<(), PeerRefused>;

    /// Remembers, durably, what nodes that were let in said of their logs since. By default nothing is remembered, and a store that
    /// was set back to a copy of its last life is not found out.
    ///
    /// # Errors
    /// If it cannot be noted; it is said again, then.
    fn remember(&self, heard: &BTreeMap<u64, Heard>) -> Result<(), LogError> {
        let _ = heard;
        Ok(())
    }

    /// Learns from nodes that are known whether `node`, which [`check`](Self::check) does not know, has joined. It is checked
    /// once more afterwards. Whoever dials may cause this, so it must be cheap to ask often. By default there is nobody to
    /// ask.
    fn inquire(&self, node: NodeId) -> BoxFuture<'_, ()> {
        let _ = node;
        Box::pin(std::future::ready(()))
    }

    /// A node that this one dialled refused the connection, for a reason of this code and in these words. By default that is
    /// nobody's business.
    fn refused_by(&self, node: NodeId, code: Code, text: &str) {
        let _ = (node, code, text);
    }
}

/// Why a node is not spoken to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefused {
    /// The node is known with another store.
    #[error(
        "node {node} is known here with another store: was its data directory wiped or replaced? Remove it from its groups and add it as a new node"
    )]
    WrongStore {
        /// The node.
        node: NodeId,
    },
    /// The node is not, or no longer, part of the cluster.
    #[error("node {node} is not part of the cluster; add it first")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// The node was removed from the cluster for ever.
    #[error(
        "node {node} was removed from the cluster for ever; to come back it has to begin with an empty data directory and join anew: \
         see `skep node invite`"
    )]
    Removed {
        /// The node.
        node: NodeId,
    },
    /// Its data directory was set back to an older copy, or is used twice.
    #[error("node {node} went back: {why}. It may have forgotten what it acknowledged; {ADVICE}")]
    WentBack {
        /// The node.
        node: NodeId,
        /// How that shows.
        why: WentBack,
    },
    /// It cannot be told.
    #[error("node {node} cannot be checked: {reason}")]
    CheckFailed {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
}

impl PeerRefused {
    /// Why a node is not spoken to by whoever remembers the stores of others, see [`PeerPins`].
    pub fn of(node: NodeId, error: LogError) -> Self {
        match error {
            LogError::PeerChanged { .. } => Self::WrongStore { node },
            LogError::PeerWentBack { why, .. } => Self::WentBack { node, why },
            error => Self::CheckFailed {
                node,
                reason: error.to_string(),
            },
        }
    }
}

/// What this node is to others, and whom it trusts.
pub(super) struct Identity {
    pub founding: Founding,
    /// That of the founding.
    pub cluster: ClusterIdentity,
    pub node: NodeId,
    pub store: [u8; 16],
    pub account: Arc<Account>,
    pub peers: Arc<dyn PeerCheck>,
    pub heard: Arc<Hearsay>,
    pub insecure_plaintext: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// There is no way there.
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    /// The other end says nothing.
    #[error("it did not answer in time")]
    TimedOut,
    /// Whoever is on the way could read it.
    #[error(
        "the address {0} is not a loopback address, and without TLS others could read and change what is sent; set insecure_plaintext to allow it"
    )]
    Plaintext(SocketAddr),
    /// What came is no message of this protocol.
    #[error("it speaks another protocol: {0}")]
    Wire(#[from] WireError),
    /// The other end has gone.
    #[error("it closed the connection without an answer")]
    Closed,
    /// Refused by the other end.
    #[error("it refused the connection: {text}")]
    RefusedByPeer {
        /// Why.
        reason: RefusalReason,
        /// The same for people.
        text: String,
    },
    /// Refused by this end.
    #[error("it was refused here: {text}")]
    Refused {
        /// Why.
        reason: RefusalReason,
        /// The same for people.
        text: String,
    },
}

impl HandshakeError {
    /// Whether the system of the other end says that nobody listens there.
    pub(super) fn is_refused_by_system(&self) -> bool {
        let refused = std::io::ErrorKind::ConnectionRefused;
        matches!(self, Self::Connect(error) if error.kind() == refused)
    }

    /// The stable code; the same as long as the same thing is wrong.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Connect(_) => Code::CannotConnect,
            Self::TimedOut => Code::TimedOut,
            Self::Plaintext(_) => Code::PlaintextRefused,
            Self::Wire(error) => error.code(),
            Self::Closed => Code::Closed,
            Self::RefusedByPeer { reason, .. } | Self::Refused { reason, .. } => code_of(*reason),
        }
    }
}

fn code_of(reason: RefusalReason) -> Code {
    match reason {
        RefusalReason::Unspecified => Code::Unlisted,
        RefusalReason::Protocol => Code::WrongProtocol,
        RefusalReason::Cluster => Code::WrongCluster,
        RefusalReason::WrongNode => Code::WrongNode,
        RefusalReason::WrongStore => Code::WrongStore,
        RefusalReason::UnknownNode => Code::UnknownNode,
        RefusalReason::BadHello => Code::BadHello,
        RefusalReason::Busy => Code::Busy,
        RefusalReason::Removed => Code::NodeRemoved,
        RefusalReason::Unfounded => Code::Unfounded,
        RefusalReason::WentBack => Code::StoreWentBack,
        RefusalReason::GivenUp => Code::NodeGivenUp,
    }
}

/// The pins of a store's data directory.
impl PeerCheck for Mutex<PeerPins> {
    fn check(&self, node: NodeId, store: [u8; 16], past: &Past) -> Result<(), PeerRefused> {
        let mut pins = lock(self);
        pins.meet(node.0, StoreId(store), past)
            .map(drop)
            .map_err(|error| PeerRefused::of(node, error))
    }

    fn remember(&self, heard: &BTreeMap<u64, Heard>) -> Result<(), LogError> {
        lock(self).remember(heard)
    }
}

impl Identity {
    /// Connects to a node at the first of these addresses at which it is found. The node and its store are checked, so that a wrong
    /// address costs time and nothing else.
    pub(super) async fn dial(
        &self,
        to: NodeId,
        addresses: &[String],
        purpose: Purpose,
    ) -> Result<Connection, HandshakeError> {
        let mut failure = None;
        for address in addresses {
            match self.dial_at(to, address, purpose).await {
                Ok(connection) => return Ok(connection),
                Err(HandshakeError::RefusedByPeer { reason, text }) => {
                    self.peers.refused_by(to, code_of(reason), &text);
                    failure = Some(HandshakeError::RefusedByPeer { reason, text });
                }
                Err(HandshakeError::Connect(error)) => {
                    // What was found at another address says more; that nobody listens is true only where nobody does at any.
                    let says_less = |before: &HandshakeError| before.is_refused_by_system();
                    if failure.as_ref().is_none_or(says_less) {
                        failure = Some(HandshakeError::Connect(error));
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| {
            let nowhere = "its address is not known";
            HandshakeError::Connect(std::io::Error::new(std::io::ErrorKind::NotFound, nowhere))
        }))
    }

    /// Connects to a node at an address and introduces this one.
    async fn dial_at(
        &self,
        to: NodeId,
        address: &str,
        purpose: Purpose,
    ) -> Result<Connection, HandshakeError> {
        let stream = timeout(CONNECT_TIMEOUT, connect(address, self.insecure_plaintext))
            .await
            .ok_or(HandshakeError::TimedOut)??;
        let mut connection = Connection::new(stream)?;
        timeout(
            HANDSHAKE_TIMEOUT,
            self.introduce(&mut connection, to, purpose),
        )
        .await
        .ok_or(HandshakeError::TimedOut)??;
        connection.reader.trust(frame_limit(purpose));
        Ok(connection)
    }

    async fn introduce(
        &self,
        connection: &mut Connection,
        to: NodeId,
        purpose: Purpose,
    ) -> Result<(), HandshakeError> {
        let hello = Hello {
            protocol: PEER_PROTOCOL,
            cluster: self.founding.cluster.clone(),
            from: self.node,
            to,
            store: self.store,
            purpose,
            identity: Some(self.cluster),
            list: Default::default(),
            past: self.account.past(),
        };
        match greet(connection, hello).await? {
            hello_ack::Body::Welcome(welcome) => {
                let past = past_from_wire(welcome.past)?;
                self.check(to, store_uuid(&welcome.store)?, past).await
            }
            other => Err(not_welcome(other)),
        }
    }

    /// Hears out who has connected. The answer is for `welcome` or `refuse` to give.
    pub(super) async fn hear(&self, connection: &mut Connection) -> Result<Hello, HandshakeError> {
        let hello = hear(connection, &self.founding.cluster, self.node).await?;
        if hello.purpose == Purpose::Founding {
            return Ok(hello);
        }
        let former = hello
            .identity
            .filter(|_| hello.identity != Some(self.cluster));
        if let Some(former) = former
            && self.founding.former().contains(&former)
        {
            return Err(refused(RefusalReason::GivenUp, self.given_up(&hello)));
        }
        if hello.identity != Some(self.cluster) {
            let text = format!(
                "node {} belongs to another cluster of the same name ({}): the two were founded apart, and have nothing in \
                 common; check the addresses, or give one of them another cluster.id when it is founded",
                self.node,
                self.cluster.short(),
            );
            return Err(refused(RefusalReason::Cluster, text));
        }
        if let Err(HandshakeError::Refused {
            reason: RefusalReason::UnknownNode,
            ..
        }) = self
            .check(hello.from, hello.store, hello.past.clone())
            .await
        {
            // It may have joined while this node was away. If nobody answers in time, it is unknown still.
            let _ = timeout(INQUIRY_TIMEOUT, self.peers.inquire(hello.from)).await;
        }
        let past = hello.past.clone();
        self.check(hello.from, hello.store, past).await?;
        Ok(hello)
    }

    /// What a node is told that belongs to a former life of this cluster.
    fn given_up(&self, hello: &Hello) -> String {
        let survives = self.founding.founders.get(&hello.from) == Some(&hello.store);
        let node = hello.from;
        if survives {
            return format!(
                "a recovery of the cluster was forced with node {node}, and not yet carried out there: stop the node, and run \
                 `skep recover apply` with the plan on its data directory"
            );
        }
        format!(
            "node {node} was given up in a forced recovery of the cluster, for ever; to come back it has to begin with an empty data \
             directory and join anew: see `skep node invite`"
        )
    }

    /// Lets the connection in, with frames of at most so many bytes.
    pub(super) async fn welcome(
        &self,
        connection: &mut Connection,
        frame_limit: usize,
    ) -> Result<(), WireError> {
        connection.reader.trust(frame_limit);
        let welcome = proto::Welcome {
            store: Bytes::copy_from_slice(&self.store),
            past: Some(past_to_wire(&self.account.past())),
        };
        answer(connection, hello_ack::Body::Welcome(welcome)).await
    }

    /// Tells a founder to which cluster this node belongs.
    pub(super) async fn tell(&self, connection: &mut Connection) -> Result<(), WireError> {
        tell(
            connection,
            Statement::founded(self.store, self.founding.clone()),
        )
        .await
    }

    async fn check(&self, node: NodeId, store: [u8; 16], past: Past) -> Result<(), HandshakeError> {
        let (peers, heard) = (Arc::clone(&self.peers), self.heard.of(node));
        let life = past.present().map_or(0, |life| life.number);
        let durable = past.durable;
        let check = move || {
            // What was heard of it last counts too.
            let noted = heard.map_or(Ok(()), |heard| peers.remember(&heard));
            noted.map_err(|error| PeerRefused::CheckFailed {
                node,
                reason: error.to_string(),
            })?;
            peers.check(node, store, &past)
        };
        let checked = tokio::task::spawn_blocking(check).await;
        let checked = checked.unwrap_or_else(|error| {
            Err(PeerRefused::CheckFailed {
                node,
                reason: format!("the check did not end: {error}"),
            })
        });
        let let_in = checked.map(|()| {
            // From now on no former life is heard.
            self.heard.note(node, life, durable);
        });
        let_in.map_err(|refused| HandshakeError::Refused {
            reason: match refused {
                PeerRefused::WrongStore { .. } => RefusalReason::WrongStore,
                PeerRefused::UnknownNode { .. } => RefusalReason::UnknownNode,
                PeerRefused::Removed { .. } => RefusalReason::Removed,
                PeerRefused::WentBack { .. } => RefusalReason::WentBack,
                PeerRefused::CheckFailed { .. } => RefusalReason::Busy,
            },
            text: refused.to_string(),
        })
    }
}

/// Most bytes of a frame on a connection of this kind.
pub(super) fn frame_limit(purpose: Purpose) -> usize {
    /// What an offer and a chunk have around their bytes.
    const ENVELOPE: usize = 64 << 10;
    match purpose {
        Purpose::Lane(Priority::Low) => MAX_CHUNK + ENVELOPE,
        Purpose::Lane(_) => MAX_FRAME,
        Purpose::Requests => MAX_CLIENT_FRAME,
        Purpose::Founding => MAX_HELLO,
    }
}

/// Connects to an address, if what is sent there may be sent as it is.
pub(super) async fn connect(
    address: &str,
    insecure_plaintext: bool,
) -> Result<TcpStream, HandshakeError> {
    let mut failure = HandshakeError::Connect(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        format!("`{address}` resolves to no address"),
    ));
    for address in lookup_host(address).await? {
        if !address.ip().is_loopback() && !insecure_plaintext {
            failure = HandshakeError::Plaintext(address);
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// Introduces this node; what it is answered.
pub(super) async fn greet(
    connection: &mut Connection,
    hello: Hello,
) -> Result<hello_ack::Body, HandshakeError> {
    connection
        .writer
        .send(peer_frame::Body::Hello(hello.into()))
        .await?;
    let answer = connection
        .reader
        .next(None)
        .await?
        .ok_or(HandshakeError::Closed)?;
    let peer_frame::Body::HelloAck(ack) = answer else {
        return Err(WireError::Misplaced("a frame came before the answer to the handshake").into());
    };
    Ok(ack
        .body
        .ok_or(WireError::Missing("answer to the handshake"))?)
}

/// Why an answer is not the one that was hoped for.
pub(super) fn not_welcome(answer: hello_ack::Body) -> HandshakeError {
    match answer {
        hello_ack::Body::Refusal(refusal) => HandshakeError::RefusedByPeer {
            reason: refusal.reason(),
            text: refusal.text,
        },
        hello_ack::Body::Welcome(_) | hello_ack::Body::Statement(_) => {
            WireError::Misplaced("the answer is to another kind of handshake").into()
        }
    }
}

/// Hears out who has connected to the node of a cluster's name, and refuses whoever means another one.
pub(super) async fn hear(
    connection: &mut Connection,
    cluster: &str,
    node: NodeId,
) -> Result<Hello, HandshakeError> {
    let first = timeout(HANDSHAKE_TIMEOUT, connection.reader.next(None))
        .await
        .ok_or(HandshakeError::TimedOut)??;
    let Some(peer_frame::Body::Hello(hello)) = first else {
        return Err(WireError::Misplaced("the connection does not begin with a handshake").into());
    };
    if hello.protocol != PEER_PROTOCOL {
        let text = format!(
            "protocol version {} is not spoken here, but version {PEER_PROTOCOL}; run the same release on all nodes",
            hello.protocol
        );
        return Err(refused(RefusalReason::Protocol, text));
    }
    let hello = Hello::try_from(hello)
        .map_err(|error| refused(RefusalReason::BadHello, error.to_string()))?;
    if hello.cluster != cluster {
        // Who does not know the name of the cluster does not learn it here.
        let text =
            "this node belongs to another cluster; check the addresses and cluster names of both";
        return Err(refused(RefusalReason::Cluster, text.to_owned()));
    }
    if hello.to != node || hello.from == node {
        let text = format!(
            "here is node {node}, not node {}, and the caller is node {}; check the address book of the caller",
            hello.to, hello.from
        );
        return Err(refused(RefusalReason::WrongNode, text));
    }
    Ok(hello)
}

fn refused(reason: RefusalReason, text: String) -> HandshakeError {
    HandshakeError::Refused { reason, text }
}

/// Tells a founder what this node has to say.
pub(super) async fn tell(connection: &mut Connection, said: Statement) -> Result<(), WireError> {
    answer(
        connection,
        hello_ack::Body::Statement(statement_to_wire(said)),
    )
    .await
}

/// Tells the other end why it is not let in.
pub(super) async fn refuse(
    connection: &mut Connection,
    reason: RefusalReason,
    text: &str,
) -> Result<(), WireError> {
    let refusal = proto::Refusal {
        reason: reason.into(),
        text: text.to_owned(),
    };
    answer(connection, hello_ack::Body::Refusal(refusal)).await
}

async fn answer(connection: &mut Connection, body: hello_ack::Body) -> Result<(), WireError> {
    connection
        .writer
        .send(peer_frame::Body::HelloAck(proto::HelloAck {
            body: Some(body),
        }))
        .await
}
