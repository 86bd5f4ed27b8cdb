//! The lane of low priority: snapshot transfers, each on a connection of its own: an offer, the answer to it, the file in
//! chunks, and whether it arrived.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use skep_core::id::{GroupId, NodeId};
use skep_core::message::{Body, PeerMessage, Priority, SnapshotName};
use skep_log::{LogError, SnapshotFile, SnapshotReceiver};
use skep_peer::{Purpose, SnapshotOffer, frame};
use skep_types::shared::lock;
use skep_wire::codec::Encoder;
use skep_wire::proto::{self, peer_frame, snapshot_answer};
use skep_wire::{MAX_CHUNK, MAX_FRAME, WireError};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::connection::{Connection, FrameReader};
use super::handshake::HandshakeError;
use super::stats::add;
use super::tcp::Shared;
use super::{Reporter, SnapshotRefusal, SnapshotStatus};
use crate::clock::{Stopwatch, sleep, timeout};

/// Until an offer is answered: the receiver only has to create a file.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// From the last chunk to the receiver's word: it syncs and verifies the whole file, at 100 MiB/s some 60 GiB.
const DONE_TIMEOUT: Duration = Duration::from_secs(600);

/// Between two chunks. The sender waits only for its share of the rate; a silent one must not keep the receiver's place.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// Each connection carries one transfer, so one name does.
const TRANSFER: u64 = 1;

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("the node has no known address")]
    NoAddress,
    #[error("too many snapshots wait to be sent")]
    TooManyWaiting,
    #[error("the message is not the header of a snapshot")]
    NotASnapshot,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    File(#[from] LogError),
    #[error("the receiver refused it: {0}")]
    Refused(String),
    #[error("the receiver could not keep it: {0}")]
    NotKept(String),
    #[error("the other end did not answer in time")]
    TimedOut,
    #[error("the connection was closed")]
    Closed,
    #[error("the task reading the file did not end: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Sends a snapshot when its turn comes; `address` is where the node is, if that is known. Does not block.
pub(super) fn send(
    shared: &Arc<Shared>,
    to: NodeId,
    address: Option<watch::Receiver<Vec<String>>>,
    message: PeerMessage,
    file: Arc<SnapshotFile>,
    reporter: &Arc<dyn Reporter>,
) {
    let pending = Pending {
        shared: Arc::clone(shared),
        to,
        group: message.group,
        reporter: Arc::clone(reporter),
        status: SnapshotStatus::Failure,
    };
    // Counted down when the pending report is dropped, on every way out.
    let waiting = shared.transfers_waiting.fetch_add(1, Ordering::Relaxed);
    let task = async move {
        let sent = async {
            let address = address.ok_or(TransferError::NoAddress)?;
            if waiting >= pending.shared.limits.low_queue {
                return Err(TransferError::TooManyWaiting);
            }
            let shared = Arc::clone(&pending.shared);
            let _turn = shared
                .transfers
                .acquire()
                .await
                .expect("the semaphore is never closed");
            let address = address.borrow().clone();
            transfer(&shared, to, &address, message, &file).await
        };
        let stop = pending.shared.stop.clone();
        match stop.run_until_cancelled(sent).await {
            Some(Ok(())) => pending.finish(),
            Some(Err(error)) => {
                tracing::warn!(node = %to, group = %pending.group, %error, "a snapshot was not sent")
            }
            None => {
                tracing::debug!(node = %to, group = %pending.group, "a snapshot was given up: the transport stops")
            }
        }
    };
    if !shared.stop.is_cancelled() {
        let supervisor = shared.supervisor.clone();
        let sending = async move { supervisor.once("snapshot-sender", task).await };
        shared.spawn(async { sending.await.unwrap_or_default() });
    }
}

/// The one report that every transfer owes; made when it is dropped, and so also if its task never runs.
struct Pending {
    shared: Arc<Shared>,
    to: NodeId,
    group: GroupId,
    reporter: Arc<dyn Reporter>,
    status: SnapshotStatus,
}

impl Pending {
    fn finish(mut self) {
        self.status = SnapshotStatus::Finish;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared
            .transfers_waiting
            .fetch_sub(1, Ordering::Relaxed);
        let stats = &self.shared.stats;
        let counter = match self.status {
            SnapshotStatus::Finish => &stats.snapshots_sent,
            SnapshotStatus::Failure => &stats.lane(Priority::Low).dropped,
        };
        add(counter, 1);
        if let Err(error) = self
            .reporter
            .report_snapshot(self.group, self.to, self.status)
        {
            tracing::debug!(node = %self.to, group = %self.group, %error, "the end of a snapshot was reported in vain");
        }
    }
}

async fn transfer(
    shared: &Shared,
    to: NodeId,
    address: &[String],
    message: PeerMessage,
    file: &Arc<SnapshotFile>,
) -> Result<(), TransferError> {
    let offer = offer(message, file)?.into_wire()?;
    let purpose = Purpose::Lane(Priority::Low);
    let connection = shared.identity.dial(to, address, purpose).await?;
    let stats = shared.stats.lane(Priority::Low);
    add(&stats.connects, 1);
    let sent = stream(shared, connection, offer, file).await;
    if sent.is_err() {
        add(&stats.disconnects, 1);
    }
    sent
}

async fn stream(
    shared: &Shared,
    connection: Connection,
    offer: proto::SnapshotOffer,
    file: &Arc<SnapshotFile>,
) -> Result<(), TransferError> {
    let Connection {
        mut reader,
        mut writer,
    } = connection;
    let stats = shared.stats.lane(Priority::Low);
    writer.send(peer_frame::Body::SnapshotOffer(offer)).await?;
    accepted(&mut reader).await?;
    // The receiver may give up at any time; its word ends the sending.
    let send = async {
        let mut offset = 0;
        while offset < file.size() {
            sleep(shared.throttle.reserve(MAX_CHUNK as u64)).await;
            let file = Arc::clone(file);
            // Reading may wait for the disk.
            let chunk = spawn_blocking(move || encode(&file, offset)).await??;
            writer.send_encoded(&chunk).await?;
            offset += MAX_CHUNK as u64;
            add(&stats.bytes_out, chunk.len());
            add(&stats.frames_out, 1);
        }
        sleep(DONE_TIMEOUT).await;
        Err(TransferError::TimedOut)
    };
    tokio::select! {
        done = done(&mut reader) => done,
        failed = send => failed,
    }
}

fn offer(mut message: PeerMessage, file: &SnapshotFile) -> Result<SnapshotOffer, TransferError> {
    let Body::Raft(raft) = &mut message.body else {
        return Err(TransferError::NotASnapshot);
    };
    let snapshot = raft.snapshot.as_mut().ok_or(TransferError::NotASnapshot)?;
    snapshot.data = Bytes::new();
    let mark = file.mark();
    let name = SnapshotName {
        index: mark.position.index.into(),
        term: mark.position.term.into(),
        digest: file.digest(),
        size: file.size(),
    };
    Ok(SnapshotOffer {
        transfer: TRANSFER,
        message,
        name,
    })
}

fn encode(file: &SnapshotFile, offset: u64) -> Result<BytesMut, TransferError> {
    let data = file.read_chunk(offset, MAX_CHUNK)?;
    let chunk = proto::SnapshotChunk {
        transfer: TRANSFER,
        offset,
        data,
    };
    let mut buffer = BytesMut::new();
    Encoder::new(MAX_FRAME).put(&frame(peer_frame::Body::SnapshotChunk(chunk)), &mut buffer)?;
    Ok(buffer)
}

async fn accepted(reader: &mut FrameReader) -> Result<(), TransferError> {
    let answer = timeout(ANSWER_TIMEOUT, reader.next(None))
        .await
        .ok_or(TransferError::TimedOut)??;
    match answer.ok_or(TransferError::Closed)? {
        peer_frame::Body::SnapshotAnswer(answer) => match answer.body {
            Some(snapshot_answer::Body::Accepted(_)) => Ok(()),
            Some(snapshot_answer::Body::Refused(text)) => Err(TransferError::Refused(text)),
            None => Err(WireError::Missing("answer to a snapshot").into()),
        },
        _ => Err(
            WireError::Misplaced("a frame that is no answer follows the offer of a snapshot")
                .into(),
        ),
    }
}

async fn done(reader: &mut FrameReader) -> Result<(), TransferError> {
    match reader.next(None).await?.ok_or(TransferError::Closed)? {
        peer_frame::Body::SnapshotDone(done) if done.ok => Ok(()),
        peer_frame::Body::SnapshotDone(done) => Err(TransferError::NotKept(done.text)),
        _ => Err(WireError::Misplaced("a frame that does not end it follows a snapshot").into()),
    }
}

/// Takes one snapshot from a node.
pub(super) async fn receive(
    shared: &Arc<Shared>,
    from: NodeId,
    mut connection: Connection,
) -> Result<(), WireError> {
    let first = timeout(ANSWER_TIMEOUT, connection.reader.next(None))
        .await
        .ok_or_else(timed_out)??;
    let Some(peer_frame::Body::SnapshotOffer(offer)) = first else {
        return Err(WireError::Misplaced(
            "a transfer does not begin with an offer",
        ));
    };
    let SnapshotOffer {
        transfer,
        message,
        name,
    } = offer.try_into()?;
    let group = message.group;
    let answer = |body| {
        peer_frame::Body::SnapshotAnswer(proto::SnapshotAnswer {
            transfer,
            body: Some(body),
        })
    };
    let task = Arc::clone(shared);
    let offered = spawn_blocking(move || {
        let receiver = task.inbound.offer_snapshot(from, &message, &name);
        receiver.map(|receiver| (receiver, message, name.size))
    });
    let (receiver, message, size) = match offered
        .await
        .unwrap_or_else(|error| Err(SnapshotRefusal::Storage(error.to_string())))
    {
        Ok(accepted) => accepted,
        Err(refusal) => {
            tracing::debug!(node = %from, %group, %refusal, "a snapshot was refused");
            return connection
                .writer
                .send(answer(snapshot_answer::Body::Refused(refusal.to_string())))
                .await;
        }
    };
    connection
        .writer
        .send(answer(snapshot_answer::Body::Accepted(proto::Nothing {})))
        .await?;
    let text = match take(
        shared,
        from,
        &mut connection.reader,
        receiver,
        message,
        size,
    )
    .await
    {
        Ok(()) => {
            add(&shared.stats.snapshots_received, 1);
            String::new()
        }
        Err(error) => {
            tracing::warn!(node = %from, %group, %error, "a snapshot did not arrive");
            error.to_string()
        }
    };
    let done = proto::SnapshotDone {
        transfer,
        ok: text.is_empty(),
        text,
    };
    connection
        .writer
        .send(peer_frame::Body::SnapshotDone(done))
        .await
}

/// Why a snapshot was not taken to its end.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Storage(#[from] LogError),
    #[error("the connection was closed after {0} bytes")]
    Closed(u64),
    #[error("the task writing the file did not end: {0}")]
    Task(#[from] tokio::task::JoinError),
}

async fn take(
    shared: &Arc<Shared>,
    from: NodeId,
    reader: &mut FrameReader,
    mut receiver: SnapshotReceiver,
    message: PeerMessage,
    size: u64,
) -> Result<(), TakeError> {
    let mut received = 0;
    let stats = shared.stats.lane(Priority::Low);
    while received < size {
        let frame = timeout(CHUNK_TIMEOUT, reader.next(Some(&stats.bytes_in)))
            .await
            .ok_or_else(timed_out)??;
        let chunk = match frame {
            Some(peer_frame::Body::SnapshotChunk(chunk)) => chunk,
            Some(_) => {
                return Err(WireError::Misplaced("a frame between chunks is no chunk").into());
            }
            None => return Err(TakeError::Closed(received)),
        };
        let length = chunk.data.len();
        if chunk.offset != received || length == 0 || length > MAX_CHUNK {
            return Err(WireError::Misplaced("a chunk is out of order or of a wrong size").into());
        }
        receiver = spawn_blocking(move || {
            receiver
                .write_chunk(chunk.offset, &chunk.data)
                .map(|()| receiver)
        })
        .await??;
        received += length as u64;
        add(&stats.frames_in, 1);
    }
    let shared = Arc::clone(shared);
    spawn_blocking(move || {
        let file = receiver.finish()?;
        shared.inbound.snapshot_arrived(from, message, file);
        Ok(())
    })
    .await?
}

fn timed_out() -> WireError {
    WireError::Io(io::Error::new(
        io::ErrorKind::TimedOut,
        "the other end is silent",
    ))
}

/// Spreads the bytes of all transfers over time.
pub(super) struct Throttle {
    clock: Stopwatch,
    bytes_per_second: u64,
    /// When the next bytes may go, since the start of the clock.
    next: Mutex<Duration>,
}

impl Throttle {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            clock: Stopwatch::start(),
            bytes_per_second: bytes_per_second.max(1),
            next: Mutex::default(),
        }
    }

    /// How long to wait before these bytes are sent.
    fn reserve(&self, bytes: u64) -> Duration {
        let now = self.clock.elapsed();
        let mut next = lock(&self.next);
        let start = now.max(*next);
        *next = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        start - now
    }
}
