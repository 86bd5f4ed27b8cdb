//! Connections that other nodes dialled.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use skep_core::id::NodeId;
use skep_core::message::Priority;
use skep_wire::WireError;
use skep_wire::peer::{Purpose, batch_from_wire};
use skep_wire::proto::{self, RefusalReason, peer_frame};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::handshake::{HandshakeError, refuse};
use super::snapshot;
use super::stats::add;
use super::tcp::Shared;
use crate::door::{self, Visit};

/// Accepts until the transport stops.
pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let accepting = shared
        .supervisor
        .keep("peer-accept", || accept(&shared, &listener));
    shared.stop.run_until_cancelled(accepting).await;
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let (stream, remote) = door::accept(listener, "peers").await;
        add(&shared.stats.accepted, 1);
        let turn_away = |text: &dyn Display| {
            add(&shared.stats.refused, 1);
            let subject = "listener".to_owned();
            shared
                .complaints
                .raise(subject, "too-many-connections", text);
        };
        // Never by address: peers may share one. Who does not say soon who he is makes room for others. Beyond the limit a
        // connection is closed without a word: it may be anyone's.
        let visit = match shared.unknown.admit(remote.ip()).await {
            Ok(visit) => visit,
            Err(full) => {
                turn_away(&full);
                continue;
            }
        };
        let (task, stop) = (Arc::clone(shared), shared.stop.clone());
        shared.spawn(async move {
            let served = serve(&task, stream, visit);
            let served = task.supervisor.once("peer-connection", served);
            if let Some(Some(Err(error))) = stop.run_until_cancelled(served).await {
                add(&task.stats.refused, 1);
                let text = format_args!("a connection from {remote} was not accepted: {error}");
                task.complaints.raise(
                    format!("connections from {}", remote.ip()),
                    error.code(),
                    &text,
                );
            }
        });
    }
}

/// Serves one connection to its end; an error means that it was never let in.
async fn serve(
    shared: &Arc<Shared>,
    stream: TcpStream,
    visit: Visit,
) -> Result<(), HandshakeError> {
    let mut connection = Connection::new(stream)?;
    connection.reader.share(&shared.half_frames);
    let heard = tokio::select! {
        heard = shared.identity.hear(&mut connection) => heard,
        () = visit.must_go() => return Err(HandshakeError::TimedOut),
    };
    let hello = match heard {
        Ok(hello) => hello,
        Err(HandshakeError::Refused { reason, text }) => {
            // Whether the answer gets through does not matter: the dialler is refused either way.
            let _ = refuse(&mut connection, reason, &text).await;
            return Err(HandshakeError::Refused { reason, text });
        }
        Err(error) => return Err(error),
    };
    let Ok(_place) = Arc::clone(&shared.connections).try_acquire_owned() else {
        let (reason, text) = (
            RefusalReason::Busy,
            "this node has as many connections of other nodes as it may".to_owned(),
        );
        let _ = refuse(&mut connection, reason, &text).await;
        return Err(HandshakeError::Refused { reason, text });
    };
    // It has said who it is: others may try now.
    drop(visit);
    let ended = match hello.purpose {
        Purpose::Lane(priority) => lane(shared, hello.from, priority, connection).await,
        Purpose::Transfer => {
            shared.identity.welcome(&mut connection).await?;
            snapshot::receive(shared, hello.from, connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(node = %hello.from, %error, "a connection from a node was lost");
    }
    Ok(())
}

/// Who delivers the batches of each (node, priority).
pub(super) type Places = DashMap<(NodeId, Priority), Arc<Place>>;

/// Holds at most one connection at work. When a node dials again, its old connection may still have batches in its
/// buffers; delivered after newer ones they would reorder appends, which raft-rs does not bear.
#[derive(Default)]
pub(super) struct Place {
    at_work: tokio::sync::Mutex<()>,
    successor: Mutex<CancellationToken>,
}

async fn lane(
    shared: &Shared,
    from: NodeId,
    priority: Priority,
    mut connection: Connection,
) -> Result<(), WireError> {
    let place = Arc::clone(&shared.places.entry((from, priority)).or_default());
    let superseded = CancellationToken::new();
    let former = {
        let mut successor = place
            .successor
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *successor, superseded.clone())
    };
    former.cancel();
    superseded
        .run_until_cancelled(async {
            let _turn = place.at_work.lock().await;
            shared.identity.welcome(&mut connection).await?;
            deliver(shared, from, priority, &mut connection).await
        })
        .await
        .unwrap_or_else(|| {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the node has dialled again").into())
        })
}

/// Hands over batches until the connection ends.
async fn deliver(
    shared: &Shared,
    from: NodeId,
    priority: Priority,
    connection: &mut Connection,
) -> Result<(), WireError> {
    let stats = shared.stats.lane(priority);
    while let Some(body) = connection
        .reader
        .next(Some(&stats.bytes_in))
        .await
        .inspect_err(|error| {
            if !matches!(error, WireError::Io(_)) {
                add(&shared.stats.malformed, 1);
                shared
                    .complaints
                    .raise(format!("frames from node {from}"), error.code(), error);
            }
        })?
    {
        let peer_frame::Body::Batch(batch) = body else {
            add(&shared.stats.malformed, 1);
            return Err(WireError::Misplaced {
                what: "a frame on a lane is no batch",
            });
        };
        add(&stats.frames_in, 1);
        step(shared, from, priority, batch);
    }
    Ok(())
}

fn step(shared: &Shared, from: NodeId, priority: Priority, batch: proto::Batch) {
    let mut refused = Vec::new();
    let batch = batch_from_wire(batch, &mut refused);
    add(&shared.stats.malformed, refused.len());
    for error in refused {
        shared
            .complaints
            .raise(format!("messages from node {from}"), error.code(), &error);
    }
    match batch {
        Ok(batch)
            if batch.from == from
                && batch.to == shared.identity.node
                && batch.priority == priority =>
        {
            shared.inbound.step_batch(batch);
        }
        Ok(batch) => {
            add(&shared.stats.misaddressed, 1);
            let text = format_args!(
                "a batch from node {} to node {} came over the connection of node {from} to node {}",
                batch.from, batch.to, shared.identity.node
            );
            shared
                .complaints
                .raise(format!("batches from node {from}"), "misaddressed", &text);
        }
        Err(error) => {
            add(&shared.stats.malformed, 1);
            shared
                .complaints
                .raise(format!("batches from node {from}"), error.code(), &error);
        }
    }
}
