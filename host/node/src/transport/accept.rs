//! Connections that other nodes dialled.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dashmap::DashMap;
use skep_core::id::NodeId;
use skep_core::message::Priority;
use skep_peer::{Hello, Purpose, batch_from_wire};
use skep_types::code::Code;
use skep_types::past::Durable;
use skep_types::shared::lock;
use skep_wire::WireError;
use skep_wire::proto::{self, RefusalReason, peer_frame};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::handshake::{HandshakeError, frame_limit, refuse};
use super::stats::add;
use super::tcp::Shared;
use super::{requests, snapshot};
use crate::clock::sleep;

/// Pause after an `accept` that failed, most likely because the process has no file descriptor left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the transport stops.
pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let accepting = shared
        .supervisor
        .keep("peer-accept", || accept(&shared, &listener));
    shared.stop.run_until_cancelled(accepting).await;
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                add(&shared.stats.accepted, 1);
                let (task, stop) = (Arc::clone(shared), shared.stop.clone());
                shared.spawn(async move {
                    let served = task
                        .supervisor
                        .once("peer-connection", serve(&task, stream));
                    if let Some(Some(Err(error))) = stop.run_until_cancelled(served).await {
                        add(&task.stats.refused, 1);
                        let text =
                            format_args!("a connection from {remote} was not accepted: {error}");
                        task.complaints.raise(
                            format!("connections from {}", remote.ip()),
                            error.code(),
                            &text,
                        );
                    }
                });
            }
            Err(error) => {
                shared
                    .complaints
                    .raise("listener".to_owned(), Code::AcceptFailed, &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end; an error means that it was never let in.
async fn serve(shared: &Arc<Shared>, stream: TcpStream) -> Result<(), HandshakeError> {
    let mut connection = Connection::new(stream)?;
    let introduction = shared.introductions.begin();
    let heard = introduction
        .given_up
        .run_until_cancelled(shared.identity.hear(&mut connection));
    let hello = match heard.await.unwrap_or(Err(HandshakeError::TimedOut)) {
        Ok(hello) => hello,
        Err(HandshakeError::Refused { reason, text }) => {
            // Whether the answer gets through does not matter: the dialler is refused either way.
            let _ = refuse(&mut connection, reason, &text).await;
            return Err(HandshakeError::Refused { reason, text });
        }
        Err(error) => return Err(error),
    };
    drop(introduction);
    let Ok(_place) = Arc::clone(&shared.connections).try_acquire_owned() else {
        let (reason, text) = (RefusalReason::Busy, "too many connections");
        let _ = refuse(&mut connection, reason, text).await;
        return Err(HandshakeError::Refused {
            reason,
            text: text.to_owned(),
        });
    };
    let ended = match hello.purpose {
        Purpose::Lane(Priority::Low) => {
            let limit = frame_limit(hello.purpose);
            shared.identity.welcome(&mut connection, limit).await?;
            snapshot::receive(shared, hello.from, connection).await
        }
        Purpose::Lane(priority) => lane(shared, &hello, priority, connection).await,
        Purpose::Requests => requests::serve(shared, hello.from, connection).await,
        Purpose::Founding => {
            founds_elsewhere(shared, &hello);
            shared.identity.tell(&mut connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(node = %hello.from, %error, "a connection from a node was lost");
    }
    Ok(())
}

/// Says so if a founder that is none of this cluster's would found one with this node.
fn founds_elsewhere(shared: &Shared, hello: &Hello) {
    let founders = &shared.identity.founding.founders;
    if founders.get(&hello.from) == Some(&hello.store) {
        return;
    }
    let text = format_args!(
        "node {} would found a cluster with this node, which belongs to one; it is told so, and has to be added as a new node",
        hello.from
    );
    let subject = format!("the founder {}", hello.from);
    shared.complaints.raise(subject, Code::WrongCluster, &text);
}

/// Connections that have not said who they are. Beyond so many the oldest gives way: a node says it within a round trip, and
/// silent strangers, however many, keep none out.
pub const INTRODUCTIONS: usize = 64;

/// Connections that have not said yet who they are.
#[derive(Default)]
pub(super) struct Introductions {
    open: Mutex<BTreeMap<u64, CancellationToken>>,
    begun: AtomicU64,
}

/// One of them.
struct Introduction<'a> {
    all: &'a Introductions,
    number: u64,
    given_up: CancellationToken,
}

impl Introductions {
    fn begin(&self) -> Introduction<'_> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let given_up = CancellationToken::new();
        let mut open = lock(&self.open);
        open.insert(number, given_up.clone());
        if open.len() > INTRODUCTIONS
            && let Some((_, oldest)) = open.pop_first()
        {
            oldest.cancel();
        }
        drop(open);
        Introduction {
            all: self,
            number,
            given_up,
        }
    }
}

impl Drop for Introduction<'_> {
    fn drop(&mut self) {
        lock(&self.all.open).remove(&self.number);
    }
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

impl Place {
    /// Ends the connection that is at work, and those that wait.
    pub(super) fn close(&self) {
        lock(&self.successor).cancel();
    }
}

async fn lane(
    shared: &Shared,
    hello: &Hello,
    priority: Priority,
    mut connection: Connection,
) -> Result<(), WireError> {
    let from = hello.from;
    let place = Arc::clone(&shared.places.entry((from, priority)).or_default());
    let superseded = CancellationToken::new();
    let former = {
        let mut successor = lock(&place.successor);
        std::mem::replace(&mut *successor, superseded.clone())
    };
    former.cancel();
    superseded
        .run_until_cancelled(async {
            let _turn = place.at_work.lock().await;
            let limit = frame_limit(Purpose::Lane(priority));
            shared.identity.welcome(&mut connection, limit).await?;
            deliver(shared, hello, priority, &mut connection).await
        })
        .await
        .unwrap_or_else(|| {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the node has dialled again").into())
        })
}

/// Hands over batches until the connection ends.
async fn deliver(
    shared: &Shared,
    hello: &Hello,
    priority: Priority,
    connection: &mut Connection,
) -> Result<(), WireError> {
    let from = hello.from;
    let life = hello.past.present().map_or(0, |life| life.number);
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
            return Err(WireError::Misplaced("a frame on a lane is no batch"));
        };
        add(&stats.frames_in, 1);
        // Before anybody acts on what the batch says to be stored.
        let heard = &shared.identity.heard;
        if !heard.note(from, life, Durable(batch.durable)) {
            // It may be another process than the one that was let in since, with another copy of the directory.
            return Err(WireError::Misplaced("a former life of the node spoke"));
        }
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
            shared.complaints.raise(
                format!("batches from node {from}"),
                Code::Misaddressed,
                &text,
            );
        }
        Err(error) => {
            add(&shared.stats.malformed, 1);
            shared
                .complaints
                .raise(format!("batches from node {from}"), error.code(), &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_who_have_not_said_who_they_are_the_oldest_gives_way() {
        let all = Introductions::default();
        let mut open: Vec<_> = (0..INTRODUCTIONS).map(|_| all.begin()).collect();
        let given_up = |open: &[Introduction<'_>]| {
            let gone = open.iter().map(|one| one.given_up.is_cancelled());
            gone.filter(|gone| *gone).count()
        };
        assert_eq!(given_up(&open), 0);
        // Whoever has said it makes room.
        drop(open.pop());
        open.push(all.begin());
        assert_eq!(given_up(&open), 0);
        open.push(all.begin());
        assert_eq!(given_up(&open), 1);
        assert!(open[0].given_up.is_cancelled());
    }
}
