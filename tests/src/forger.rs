//! Somebody who speaks to the port for nodes without being one: frames by hand, in whatever name.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use skep_core::founders::ClusterIdentity;
use skep_core::past::{Durable, Past};
use skep_log::{Account, DiskVfs, StoreId};
use skep_peer::{frame, past_to_wire};
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, hello_ack, peer_frame, peer_message, request, response};
use skep_wire::{MAX_FRAME, PEER_PROTOCOL};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clock::{PATIENCE, within};
use crate::cluster::Cluster;

/// Who somebody says to be.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: u64,
    /// Its store.
    pub store: [u8; 16],
    /// The identity of its cluster.
    pub identity: ClusterIdentity,
    /// The past of its store.
    pub past: Past,
}

impl Claim {
    /// What a stranger gets to know over HTTP: name and identity of the cluster, and the store of each node; and the lives of that,
    /// which only somebody knows who can read the disk of the node or what it says to others.
    ///
    /// # Panics
    /// If node 1 does not say it.
    pub async fn of(cluster: &Cluster, node: u64) -> Self {
        let status = cluster.http(1, "GET", "/v1/status", "").await.json();
        let nodes = status["nodes"].as_array().expect("the nodes").clone();
        let known = nodes
            .iter()
            .find(|known| known["id"].to_string().trim_matches('"') == node.to_string());
        let store = known.and_then(|known| StoreId::parse(known["store"].as_str()?));
        let identity = status["identity"].as_str();
        let identity = identity.and_then(ClusterIdentity::parse);
        Self {
            identity: identity.expect("a cluster that was founded"),
            cluster: status["cluster"].as_str().expect("a name").to_owned(),
            node,
            past: match store {
                Some(_) => past(&cluster.node(node).data()),
                None => Past::default(),
            },
            store: store.map_or([node as u8; 16], |store| store.0),
        }
    }
}

/// What a node that has not written since it started would say of its store.
///
/// # Panics
/// If its directory cannot be read.
pub fn past(data: &Path) -> Past {
    let lives = Account::lives(&DiskVfs, data).expect("the lives of a node");
    let durable = lives.last().map_or(Durable::default(), |life| life.began);
    Past { lives, durable }
}

/// A connection to the port for nodes.
#[derive(Debug)]
pub struct Forger {
    stream: TcpStream,
    from: u64,
    to: u64,
    lane: proto::Lane,
}

/// What a replica is said to say.
#[derive(Clone, Debug)]
pub struct Message {
    /// The group.
    pub group: u64,
    /// Its life.
    pub incarnation: u64,
    /// The replica that is said to speak.
    pub from: u64,
    /// The replica that is spoken to.
    pub to: u64,
    /// What is said.
    pub body: peer_message::Body,
}

impl Forger {
    /// Introduces itself.
    ///
    /// # Errors
    /// The refusal.
    ///
    /// # Panics
    /// If the port does not answer.
    pub async fn introduce(
        address: &str,
        claim: &Claim,
        to: u64,
        lane: proto::Lane,
    ) -> Result<Self, proto::Refusal> {
        let mut stream = TcpStream::connect(address)
            .await
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        let hello = proto::Hello {
            protocol: PEER_PROTOCOL,
            cluster: claim.cluster.clone(),
            from: claim.node,
            to,
            store: Bytes::copy_from_slice(&claim.store),
            lane: lane.into(),
            identity: Bytes::copy_from_slice(&claim.identity.0),
            list: Vec::new(),
            past: Some(past_to_wire(&claim.past)),
        };
        write(&mut stream, peer_frame::Body::Hello(hello)).await;
        let mut forger = Self {
            stream,
            from: claim.node,
            to,
            lane,
        };
        match forger.read().await {
            Some(peer_frame::Body::HelloAck(ack)) => match ack.body {
                Some(hello_ack::Body::Welcome(_)) => Ok(forger),
                Some(hello_ack::Body::Refusal(refusal)) => Err(refusal),
                other => panic!("no answer to the handshake: {other:?}"),
            },
            other => panic!("no answer to the handshake: {other:?}"),
        }
    }

    /// Sends messages, all in one batch.
    pub async fn say(&mut self, messages: Vec<Message>) {
        let messages = messages.into_iter().map(|message| proto::PeerMessage {
            group: message.group,
            incarnation: message.incarnation,
            from: message.from,
            to: message.to,
            body: Some(message.body),
        });
        let batch = proto::Batch {
            from: self.from,
            to: self.to,
            lane: self.lane.into(),
            messages: messages.collect(),
            durable: 0,
        };
        write(&mut self.stream, peer_frame::Body::Batch(batch)).await;
    }

    /// Calls a method as nodes do of each other; what comes back is JSON. For a connection that was introduced as one for
    /// requests.
    ///
    /// # Errors
    /// The refusal.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn call(
        &mut self,
        method: &str,
        body: &serde_json::Value,
    ) -> Result<Bytes, proto::Error> {
        let call = proto::Call {
            method: method.to_owned(),
            body: body.to_string().into(),
            timeout_ms: PATIENCE.as_millis() as u32,
        };
        let request = proto::Request {
            id: 1,
            group: 0,
            body: Some(request::Body::Call(call)),
        };
        write(&mut self.stream, peer_frame::Body::Request(request)).await;
        match self.read().await {
            Some(peer_frame::Body::Response(response)) => match response.body {
                Some(response::Body::Called(called)) => Ok(called.body),
                Some(response::Body::Error(error)) => Err(error),
                other => panic!("no answer to {method}: {other:?}"),
            },
            other => panic!("no answer to {method}: {other:?}"),
        }
    }

    /// The next frame; nothing at the end of the connection.
    ///
    /// # Panics
    /// If nothing comes, or no frame.
    pub async fn read(&mut self) -> Option<peer_frame::Body> {
        let mut decoder = Decoder::<proto::PeerFrame>::new(MAX_FRAME);
        let mut buffer = BytesMut::new();
        loop {
            if let Some(frame) = decoder.take(&mut buffer).expect("a frame") {
                return frame.body;
            }
            let reading = self.stream.read_buf(&mut buffer);
            let read = within(PATIENCE, "an answer of the port for nodes", reading).await;
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

async fn write(stream: &mut TcpStream, body: peer_frame::Body) {
    let mut output = BytesMut::new();
    Encoder::new(MAX_FRAME)
        .put(&frame(body), &mut output)
        .expect("it fits");
    // Whoever is refused may find the connection closed.
    let _ = stream.write_all(&output).await;
}
