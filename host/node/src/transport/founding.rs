//! A node that belongs to no cluster yet: it asks the other founders, answers theirs, and adopts what all agree to.
//!
//! What is decided is decided by [`Founders`]; here are its connections and its clock. One question is one connection: an
//! answer belongs to its question, and cannot be of another life of either end.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use skep_core::founders::{Founders, Founding, Statement};
use skep_core::id::NodeId;
use skep_log::Store;
use skep_peer::{Hello, Purpose, statement_from_wire};
use skep_types::shared::lock;
use skep_wire::PEER_PROTOCOL;
use skep_wire::proto::{RefusalReason, hello_ack};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::accept::{ACCEPT_PAUSE, INTRODUCTIONS};
use super::connection::Connection;
use super::handshake::{
    CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, HandshakeError, connect, greet, hear, not_welcome, refuse,
    tell,
};
use crate::clock::{doubled, sleep, timeout};

/// Between two questions to one node: the first pause after anything new, and the longest.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// A tick of [`Founders`].
const TICK: Duration = Duration::from_millis(500);
/// How long a node looks for others before it founds alone, and how often.
const LOOK_FOR: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it is said for whom this node waits, and when it is said first.
const SAY_EVERY: Duration = Duration::from_secs(5);
const SAY_FIRST: Duration = Duration::from_secs(1);

/// Who a founder is, and where the others are.
#[derive(Clone, Debug)]
pub struct FoundingConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// This node. Not 0.
    pub node: NodeId,
    /// UUID of this node's store.
    pub store: [u8; 16],
    /// The other founders, and where they are, as `host:port`.
    pub peers: Vec<(NodeId, String)>,
    /// Allows addresses beyond the loopback, without encryption.
    pub insecure_plaintext: bool,
}

impl FoundingConfig {
    /// The node of a store, on the loopback.
    pub fn new(store: &Store, peers: Vec<(NodeId, String)>) -> Self {
        let identity = store.identity();
        Self {
            cluster: identity.cluster.clone(),
            node: NodeId(identity.node),
            store: identity.store.0,
            peers,
            insecure_plaintext: false,
        }
    }

    /// What there is to be decided, where the list names these peers and this node.
    pub fn founders(&self) -> Founders {
        let list: BTreeSet<NodeId> = self.peers.iter().map(|(node, _)| *node).collect();
        Founders::new(self.cluster.clone(), self.node, self.store, list)
    }
}

/// Waits until there is something to be adopted: a cluster of all founders, or one that was founded with this node already.
/// It has to be made durable before this node says or does anything else; what others ask meanwhile waits.
///
/// `founders` are those of the configuration. Whoever shows what this waits for looks at them.
pub async fn found(
    config: &FoundingConfig,
    founders: &Mutex<Founders>,
    listener: &TcpListener,
) -> Founding {
    if let Some(founding) = lock(founders).decide() {
        return founding;
    }
    let stage = Stage {
        config,
        founders,
        news: Notify::new(),
    };
    let mut questions: FuturesUnordered<_> = config
        .peers
        .iter()
        .filter(|(node, _)| *node != config.node)
        .map(|(node, address)| stage.keep_asking(*node, address))
        .collect();
    tokio::select! {
        // Before any answer that could be one to a candidate which is no more.
        biased;
        Some(founding) = questions.next() => founding,
        never = stage.accept(listener) => never,
        never = stage.say() => never,
        never = stage.tick() => never,
    }
}

/// Asks these nodes for their statements, and answers theirs meanwhile; who does not answer within two seconds is left out. For a
/// node that would found a cluster of its own: of two that do within that time at least one sees the other.
pub async fn look_around(
    config: &FoundingConfig,
    founders: &Mutex<Founders>,
    listener: &TcpListener,
) -> Vec<(NodeId, Statement)> {
    let stage = Stage {
        config,
        founders,
        news: Notify::new(),
    };
    let others = config.peers.iter().filter(|(node, _)| *node != config.node);
    let asked = others.map(async |(node, address)| {
        let answered = async {
            loop {
                if let Ok(said) = stage.ask(*node, address).await {
                    return (*node, said);
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(LOOK_FOR, answered).await
    });
    tokio::select! {
        said = futures::future::join_all(asked) => said.into_iter().flatten().collect(),
        never = stage.accept(listener) => never,
    }
}

/// Whether a node is alive: whether somebody answers at an address, as this node of the same cluster, or takes a connection and
/// says nothing, as a process does that is stopped. Takes a few seconds at the most.
pub async fn is_alive(config: &FoundingConfig, node: NodeId, address: &str) -> bool {
    match ask(config, BTreeSet::new(), node, address).await {
        Ok(said) => said
            .founded
            .is_some_and(|founded| founded.cluster == config.cluster),
        Err(error) => match error {
            HandshakeError::TimedOut => true,
            HandshakeError::RefusedByPeer { reason, .. } => reason == RefusalReason::Busy,
            _ => false,
        },
    }
}

/// Asks a node for its statement, once.
async fn ask(
    config: &FoundingConfig,
    list: BTreeSet<NodeId>,
    node: NodeId,
    address: &str,
) -> Result<Statement, HandshakeError> {
    let connected = timeout(CONNECT_TIMEOUT, connect(address, config.insecure_plaintext)).await;
    let stream = connected.ok_or_else(|| {
        HandshakeError::Connect(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "nobody takes the connection",
        ))
    })??;
    let mut connection = Connection::new(stream)?;
    let hello = Hello {
        protocol: PEER_PROTOCOL,
        cluster: config.cluster.clone(),
        from: config.node,
        to: node,
        store: config.store,
        purpose: Purpose::Founding,
        identity: None,
        past: Default::default(),
        list,
    };
    let answer = timeout(HANDSHAKE_TIMEOUT, greet(&mut connection, hello))
        .await
        .ok_or(HandshakeError::TimedOut)??;
    match answer {
        hello_ack::Body::Statement(said) => Ok(statement_from_wire(said)?),
        other => Err(not_welcome(other)),
    }
}

struct Stage<'a> {
    config: &'a FoundingConfig,
    founders: &'a Mutex<Founders>,
    /// Something was heard that may make others say something else.
    news: Notify,
}

impl Stage<'_> {
    async fn keep_asking(&self, node: NodeId, address: &str) -> Founding {
        let mut attempt = 0;
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            let round = lock(self.founders).round();
            let answered = self.ask(node, address).await;
            {
                let mut founders = lock(self.founders);
                match answered {
                    Ok(said) => {
                        if let Some(founding) = founders.heard(node, round, said) {
                            return founding;
                        }
                    }
                    Err(error) => founders.silent(node, error.to_string()),
                }
                if founders.round() != round {
                    self.news.notify_waiters();
                    attempt = 0;
                }
            }
            attempt += 1;
            tokio::select! {
                () = sleep(doubled(ASK_EVERY, attempt)) => {}
                () = news => {
                    attempt = 0;
                    sleep(ASK_EVERY.0).await;
                }
            }
        }
    }

    /// What a node says.
    async fn ask(&self, node: NodeId, address: &str) -> Result<Statement, HandshakeError> {
        let list = lock(self.founders).list().clone();
        ask(self.config, list, node, address).await
    }

    /// Answers whoever asks. Beyond so many connections nobody is taken until one has said what it wants, or taken too long.
    async fn accept<T>(&self, listener: &TcpListener) -> T {
        let mut introductions = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if introductions.len() < INTRODUCTIONS => match accepted {
                    Ok((stream, _)) => introductions.push(self.serve(stream)),
                    Err(error) => {
                        tracing::warn!(%error, "the system gave no connection that waited");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(served) = introductions.next(), if !introductions.is_empty() => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a connection was not accepted");
                    }
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream) -> Result<(), HandshakeError> {
        let mut connection = Connection::new(stream)?;
        let config = self.config;
        let hello = match hear(&mut connection, &config.cluster, config.node).await {
            Ok(hello) => hello,
            Err(error) => {
                if let HandshakeError::Refused { reason, text } = &error {
                    refuse(&mut connection, *reason, text).await?;
                }
                return Err(error);
            }
        };
        if hello.purpose != Purpose::Founding {
            let text = format!(
                "node {} belongs to no cluster yet; its log and /readyz say for whom it waits",
                config.node
            );
            refuse(&mut connection, RefusalReason::Unfounded, &text).await?;
            return Ok(());
        }
        let said = {
            let mut founders = lock(self.founders);
            if founders.is_silent(hello.from) {
                self.news.notify_waiters();
            }
            founders.asked(hello.from, &hello.list)
        };
        tell(&mut connection, said).await?;
        Ok(())
    }

    /// Says every few seconds for whom this node waits.
    async fn say<T>(&self) -> T {
        sleep(SAY_FIRST).await;
        loop {
            for wait in lock(self.founders).waits() {
                tracing::warn!(node = %wait.node, "no cluster is founded yet: waiting for {wait}");
            }
            sleep(SAY_EVERY).await;
        }
    }

    async fn tick<T>(&self) -> T {
        loop {
            sleep(TICK).await;
            lock(self.founders).tick();
        }
    }
}
