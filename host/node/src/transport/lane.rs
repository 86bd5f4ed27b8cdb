//! All batches of one priority, high or normal, to one node: a queue, and the connection that empties it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use prost::Message as _;
use skep_core::id::{GroupId, NodeId};
use skep_core::message::{Batch, Priority};
use skep_peer::{Purpose, batch_to_wire, frame};
use skep_types::shared::lock;
use skep_wire::codec::Encoder;
use skep_wire::proto::{self, PeerFrame, peer_frame};
use skep_wire::{MAX_FRAME, WireError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Reporter;
use super::connection::{Connection, FrameReader, FrameWriter};
use super::handshake::HandshakeError;
use super::stats::add;
use super::tcp::{Shared, report};
use crate::clock::{doubled, sleep};
use crate::memory::empty;

/// First pause after a failed dial, and before a lost connection is dialled again; and the longest, within which a node that
/// comes back is found.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Queued batches are written together up to about this size: one system call for many, and yet never much that is on
/// its way and no longer in the queue.
const COALESCE: usize = 4 << 20;

/// A batch is split into frames of about this size, so that the receiver never holds much more for one of them. Only a
/// single message can be larger, and it is limited to an entry's 8 MiB.
const FRAME_TARGET: usize = 16 << 20;

/// The write buffer is given back after a burst larger than this.
const KEPT_BUFFER: usize = 256 << 10;

pub(super) struct Lane {
    to: NodeId,
    priority: Priority,
    /// Most bytes queued.
    limit: usize,
    queue: Mutex<Queue>,
    ready: Notify,
}

struct Queue {
    batches: VecDeque<Queued>,
    bytes: usize,
    open: bool,
    /// Batches were taken from it that are not written yet.
    writing: bool,
}

struct Queued {
    batch: Batch,
    bytes: usize,
    reporter: Arc<dyn Reporter>,
}

impl Lane {
    pub(super) fn new(to: NodeId, priority: Priority, limit: usize) -> Self {
        let queue = Queue {
            batches: VecDeque::new(),
            bytes: 0,
            open: true,
            writing: false,
        };
        Self {
            to,
            priority,
            limit,
            queue: Mutex::new(queue),
            ready: Notify::new(),
        }
    }

    /// Queues a batch, or drops and reports it if the node cannot be reached. Never blocks.
    ///
    /// A full queue drops the newest appends: those before it are still in order, and raft probes for the rest. The
    /// queue for heartbeats, votes and reads drops the oldest instead: each is repeated, and an old one is worth nothing
    /// once a newer one exists, while dropping the newest would silence this node for as long as the queue is full.
    pub(super) fn push(&self, batch: Batch, reporter: &Arc<dyn Reporter>, shared: &Shared) {
        let bytes = batch
            .messages
            .values()
            .flatten()
            .map(|message| message.body.size())
            .sum();
        let queued = Queued {
            batch,
            bytes,
            reporter: Arc::clone(reporter),
        };
        let mut dropped = Vec::new();
        {
            let mut queue = lock(&self.queue);
            let full =
                |queue: &Queue| !queue.batches.is_empty() && queue.bytes + bytes > self.limit;
            while queue.open && self.priority == Priority::High && full(&queue) {
                dropped.extend(queue.pop());
            }
            if !queue.open || full(&queue) {
                dropped.push(queued);
            } else {
                queue.push(queued);
            }
        }
        self.ready.notify_one();
        self.lose(dropped, shared);
    }

    /// Empties the queue until the node is gone, or the transport stops.
    pub(super) async fn run(
        self: Arc<Self>,
        shared: Arc<Shared>,
        address: watch::Receiver<Vec<String>>,
        gone: CancellationToken,
    ) {
        let kept = shared.supervisor.keep("lane", || {
            let mut address = address.clone();
            let (lane, shared) = (&self, &shared);
            async move { lane.keep_connected(shared, &mut address).await }
        });
        gone.run_until_cancelled(kept).await;
        self.shut(&shared);
    }

    async fn keep_connected(&self, shared: &Shared, address: &mut watch::Receiver<Vec<String>>) {
        let subject = format!("node {}", self.to);
        let mut failures = 0_u32;
        // A life before this one may have ended in a panic while the queue was shut.
        lock(&self.queue).open = true;
        // The other end has closed the last connection, rather than that nothing was heard on it.
        let mut was_closed = false;
        loop {
            // Of many nodes few speak to each other. But whether a process has ended that closed its connection is found at once,
            // not when there is something to say to it.
            if failures == 0 && !was_closed {
                self.work().await;
            }
            let target = address.borrow_and_update().clone();
            match shared
                .identity
                .dial(self.to, &target, Purpose::Lane(self.priority))
                .await
            {
                Ok(connection) => {
                    failures = 0;
                    {
                        let mut queue = lock(&self.queue);
                        (queue.open, queue.writing) = (true, false);
                    }
                    add(&shared.stats.lane(self.priority).connects, 1);
                    shared.complaints.settle(&subject);
                    tokio::select! {
                        lost = self.serve(shared, connection) => {
                            was_closed = is_end(&lost);
                            tracing::debug!(node = %self.to, priority = ?self.priority, %lost, "connection lost");
                        }
                        _ = address.changed() => was_closed = false,
                    }
                    add(&shared.stats.lane(self.priority).disconnects, 1);
                }
                Err(error) => {
                    failures += 1;
                    self.shut(shared);
                    if std::mem::take(&mut was_closed) && error.is_refused_by_system() {
                        add(&shared.stats.gone, 1);
                        shared.inbound.node_gone(self.to);
                    }
                    add(&shared.stats.dial_failures, 1);
                    if matches!(error, HandshakeError::RefusedByPeer { .. }) {
                        add(&shared.stats.refused_by_peer, 1);
                    }
                    let target = target.join(" or ");
                    let text = format_args!("cannot reach node {} at {target}: {error}", self.to);
                    shared
                        .complaints
                        .raise(subject.clone(), error.code(), &text);
                }
            }
            tokio::select! {
                () = sleep(self.backoff(shared.identity.node, failures)) => {}
                _ = address.changed() => {}
            }
        }
    }

    /// Sends until the connection is lost.
    async fn serve(&self, shared: &Shared, connection: Connection) -> WireError {
        let Connection {
            mut reader,
            mut writer,
            ..
        } = connection;
        tokio::select! {
            lost = until_closed(&mut reader) => lost,
            lost = self.pump(shared, &mut writer) => lost,
        }
    }

    async fn pump(&self, shared: &Shared, writer: &mut FrameWriter) -> WireError {
        let stats = shared.stats.lane(self.priority);
        let mut buffer = BytesMut::new();
        loop {
            self.work().await;
            let mut flight = Flight {
                lane: self,
                shared,
                frames: Vec::new(),
            };
            for queued in self.take() {
                flight.load(queued, &mut buffer);
            }
            let sent = writer.send_encoded(&buffer).await;
            lock(&self.queue).writing = false;
            if let Err(lost) = sent {
                return lost;
            }
            add(&stats.bytes_out, buffer.len());
            add(&stats.frames_out, flight.land());
            empty(&mut buffer, KEPT_BUFFER);
        }
    }

    /// Waits until there is something to send.
    async fn work(&self) {
        while lock(&self.queue).batches.is_empty() {
            self.ready.notified().await;
        }
    }

    /// Whether everything was written, or is lost.
    pub(super) fn is_empty(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.open || (queue.batches.is_empty() && !queue.writing)
    }

    fn take(&self) -> Vec<Queued> {
        let mut queue = lock(&self.queue);
        queue.writing = true;
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < COALESCE
            && let Some(queued) = queue.pop()
        {
            bytes += queued.bytes;
            taken.push(queued);
        }
        taken
    }

    /// From now on everything is dropped, beginning with what is queued.
    fn shut(&self, shared: &Shared) {
        let dropped = {
            let mut queue = lock(&self.queue);
            queue.open = false;
            queue.bytes = 0;
            std::mem::take(&mut queue.batches)
        };
        self.lose(dropped, shared);
    }

    fn lose(&self, dropped: impl IntoIterator<Item = Queued>, shared: &Shared) {
        for Queued {
            batch, reporter, ..
        } in dropped
        {
            add(&shared.stats.lane(self.priority).dropped, batch.len());
            report(self.to, batch.messages.into_keys(), &reporter);
        }
    }

    /// Doubles with each failure. The jitter, a quarter at most, is a pure function of who dials whom: it is there so
    /// that many nodes do not dial one that comes back in the same moment.
    fn backoff(&self, from: NodeId, failures: u32) -> Duration {
        let pause = doubled(BACKOFF, failures);
        let mixed = [from.0, self.to.0, self.priority as u64, failures.into()]
            .into_iter()
            .fold(0_u64, |mixed, part| {
                (mixed ^ part)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(29)
            });
        pause - pause / 1024 * u32::try_from(mixed % 256).expect("less than 256")
    }
}

impl Queue {
    fn push(&mut self, queued: Queued) {
        self.bytes += queued.bytes;
        self.batches.push_back(queued);
    }

    fn pop(&mut self) -> Option<Queued> {
        let queued = self.batches.pop_front()?;
        self.bytes -= queued.bytes;
        Some(queued)
    }
}

/// Whether a connection was lost because the other end closed or reset it, as a process does that ends.
fn is_end(lost: &WireError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ends = [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        UnexpectedEof,
    ];
    matches!(lost, WireError::Io(error) if ends.contains(&error.kind()))
}

/// Frames that are being written. Lost and reported if it is dropped before it has landed.
struct Flight<'a> {
    lane: &'a Lane,
    shared: &'a Shared,
    frames: Vec<(PeerFrame, Arc<dyn Reporter>)>,
}

impl Flight<'_> {
    /// Encodes a batch behind those before it.
    fn load(&mut self, queued: Queued, buffer: &mut BytesMut) {
        let Queued {
            batch, reporter, ..
        } = queued;
        let mut refused = Vec::new();
        let mut batch = batch_to_wire(batch, &mut refused);
        batch.durable = self.shared.identity.account.durable().0;
        for error in refused {
            add(&self.shared.stats.malformed, 1);
            tracing::error!(node = %self.lane.to, %error, "a message was not sent");
        }
        for batch in split(batch) {
            let frame = frame(peer_frame::Body::Batch(batch));
            match Encoder::new(MAX_FRAME).put(&frame, buffer) {
                Ok(()) => self.frames.push((frame, Arc::clone(&reporter))),
                Err(error) => {
                    tracing::error!(node = %self.lane.to, %error, "a batch was not sent");
                    self.lose(&frame, &reporter);
                }
            }
        }
    }

    /// The frames are written; says how many.
    fn land(&mut self) -> usize {
        std::mem::take(&mut self.frames).len()
    }

    fn lose(&self, frame: &PeerFrame, reporter: &Arc<dyn Reporter>) {
        if let Some(peer_frame::Body::Batch(batch)) = &frame.body {
            add(
                &self.shared.stats.lane(self.lane.priority).dropped,
                batch.messages.len(),
            );
            report(
                self.lane.to,
                batch.messages.iter().map(|message| GroupId(message.group)),
                reporter,
            );
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        for (frame, reporter) in &self.frames {
            self.lose(frame, reporter);
        }
    }
}

/// Cuts a batch into pieces that make good frames.
fn split(batch: proto::Batch) -> Vec<proto::Batch> {
    if batch.messages.is_empty() {
        return Vec::new();
    }
    if batch.encoded_len() <= FRAME_TARGET {
        return vec![batch];
    }
    let mut pieces: Vec<proto::Batch> = Vec::new();
    let mut room = 0;
    for message in batch.messages {
        let size = message.encoded_len();
        match pieces.last_mut() {
            Some(piece) if size <= room => piece.messages.push(message),
            _ => {
                room = FRAME_TARGET;
                pieces.push(proto::Batch {
                    from: batch.from,
                    to: batch.to,
                    lane: batch.lane,
                    messages: vec![message],
                    durable: batch.durable,
                });
            }
        }
        room = room.saturating_sub(size);
    }
    pieces
}

/// Nothing ever comes back on a lane but its end.
async fn until_closed(reader: &mut FrameReader) -> WireError {
    match reader.next(None).await {
        Ok(None) => WireError::Io(io::ErrorKind::UnexpectedEof.into()),
        Ok(Some(_)) => WireError::Misplaced("a frame came back on a lane that only sends"),
        Err(lost) => lost,
    }
}
