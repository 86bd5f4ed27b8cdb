//! One connection to another node for requests, shared by many of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use skep::Supervisor;
use skep::clock::{self, Stopwatch};
use skep::memory::{KEPT_BY_CLIENT, empty};
use skep::transport::{FrameReader, FrameWriter, TcpTransport};
use skep_core::id::NodeId;
use skep_peer::frame;
use skep_wire::MAX_CLIENT_FRAME;
use skep_wire::codec::Encoder;
use skep_wire::proto::{self, peer_frame, request};
use tokio::sync::{Notify, mpsc, oneshot};

/// Requests that wait to be written. Whoever has more waits; the other node bounds what is in flight.
const QUEUE: usize = 1024;
/// Requests that share one write.
const BATCH: usize = 256;
/// To connect and to be welcomed.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How often a node that owes answers is asked whether it is there.
const PING_EVERY: Duration = Duration::from_millis(500);
/// A node that owes answers and says nothing at all for this long is silent: others are asked first. It is longer than a
/// busy node takes to send a ping back, and shorter than an election.
const SILENT_AFTER: Duration = Duration::from_millis(1500);

/// Why a request has no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LinkError {
    /// It was never sent.
    NotSent(String),
    /// The connection was lost after it was, or may have been, sent.
    Lost,
    /// The node says nothing at all; it may answer yet.
    Silent,
}

/// A handle; all clones share the connection, which is made when it is first needed and again after it was lost.
#[derive(Clone)]
pub(super) struct Link {
    address: String,
    requests: mpsc::Sender<Asked>,
    silence: Arc<Silence>,
}

/// What is asked of a node.
struct Asked {
    group: u64,
    body: request::Body,
    answer: Waiter,
}

type Waiter = oneshot::Sender<Result<proto::Response, LinkError>>;

/// Whether a node is known to be silent.
#[derive(Default)]
struct Silence {
    now: AtomicBool,
    fell: Notify,
    /// Somebody looks already whether it is over.
    probed: AtomicBool,
}

impl Silence {
    fn begin(&self) {
        self.now.store(true, Ordering::Release);
        self.fell.notify_waiters();
    }

    fn end(&self) {
        self.now.store(false, Ordering::Release);
    }
}

/// Requests without an answer, and when the node was last heard.
struct Waiting {
    of: Mutex<HashMap<u64, Waiter>>,
    heard: Mutex<Stopwatch>,
}

impl Waiting {
    fn new() -> Self {
        Self {
            of: Mutex::default(),
            heard: Mutex::new(Stopwatch::start()),
        }
    }

    fn of(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody still waits.
    fn owes(&self) -> bool {
        let mut of = self.of();
        of.retain(|_, waiter| !waiter.is_closed());
        !of.is_empty()
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Stopwatch::start();
    }

    fn silent_for(&self) -> Duration {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.elapsed()
    }
}

impl Link {
    /// A link to a node at this address, if the transport knows no other.
    pub(super) fn new(
        transport: Arc<TcpTransport>,
        node: NodeId,
        address: String,
        supervisor: Supervisor,
    ) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let silence = Arc::<Silence>::default();
        let dialled = Dialled {
            transport,
            node,
            address: address.clone(),
            silence: Arc::clone(&silence),
        };
        let queue = tokio::sync::Mutex::new(queue);
        tokio::spawn(async move {
            let run = || dialled.run(&queue);
            supervisor.keep("peer-link", run).await;
        });
        Self {
            address,
            requests,
            silence,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether the node does not answer; others are rather asked.
    pub(super) fn is_silent(&self) -> bool {
        self.silence.now.load(Ordering::Acquire)
    }

    /// Makes the connection again, if it is lost, and looks whether the node answers; somebody else does the asking. Once for each
    /// connection, which pings on while the node is silent.
    pub(super) fn probe(&self) {
        if self.silence.probed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (answer, _) = oneshot::channel();
        // Asks for nothing: any answer will do. If the queue is full, others are doing the same.
        let _ = self.requests.try_send(Asked {
            group: 0,
            body: request::Body::Call(proto::Call::default()),
            answer,
        });
    }

    /// Asks, and waits for the answer; `patient` is who must not give up while an answer may come yet.
    pub(super) async fn ask(
        &self,
        group: u64,
        body: request::Body,
        patient: bool,
    ) -> Result<proto::Response, LinkError> {
        let (answer, answered) = oneshot::channel();
        let stopped = |_| LinkError::NotSent("the connection was given up".to_owned());
        let mut fell = std::pin::pin!(self.silence.fell.notified());
        // From here on, so that no silence is missed.
        fell.as_mut().enable();
        let asked = Asked {
            group,
            body,
            answer,
        };
        let answer = async {
            self.requests.send(asked).await.map_err(stopped)?;
            answered.await.unwrap_or(Err(LinkError::Lost))
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = fell, if !patient => Err(LinkError::Silent),
        }
    }
}

/// Whom a link connects to.
struct Dialled {
    transport: Arc<TcpTransport>,
    node: NodeId,
    address: String,
    silence: Arc<Silence>,
}

impl Dialled {
    /// Owns the connection; ends with the last handle.
    async fn run(&self, queue: &tokio::sync::Mutex<mpsc::Receiver<Asked>>) {
        let mut queue = queue.lock().await;
        loop {
            self.silence.probed.store(false, Ordering::Release);
            let Some(first) = queue.recv().await else {
                return;
            };
            let dial = self.transport.open_requests(self.node, &self.address);
            let dialled = clock::timeout(CONNECT_WITHIN, dial).await;
            let connected = match dialled {
                Some(Ok(connection)) => Ok(connection),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("it does not answer".to_owned()),
            };
            match connected {
                Ok(connection) => {
                    self.silence.end();
                    // Those still waiting when this is dropped see that the connection was lost.
                    let waiting = Waiting::new();
                    tokio::select! {
                        () = self.read(connection.reader, &waiting) => {}
                        () = self.write(connection.writer, first, &mut queue, &waiting) => {}
                        () = self.notice_silence(&waiting) => {}
                    }
                }
                Err(reason) => {
                    self.silence.begin();
                    // All that came meanwhile would only wait for the same.
                    let mut next = Some(first);
                    while let Some(asked) = next {
                        // Whoever asked may have left.
                        let _ = asked.answer.send(Err(LinkError::NotSent(reason.clone())));
                        next = queue.try_recv().ok();
                    }
                }
            }
        }
    }

    async fn read(&self, mut reader: FrameReader, waiting: &Waiting) {
        // Anything else is not the protocol; a new connection starts clean.
        while let Ok(Some(body)) = reader.next(None).await {
            waiting.hear();
            self.silence.end();
            match body {
                peer_frame::Body::Response(response) => {
                    let waiter = waiting.of().remove(&response.id);
                    if let Some(waiter) = waiter {
                        // Whoever asked may have left.
                        let _ = waiter.send(Ok(response));
                    }
                }
                peer_frame::Body::Ping(_) => {}
                _ => return,
            }
        }
    }

    /// Looks whether the node says anything, which a write that waits for it cannot. Does not end.
    async fn notice_silence(&self, waiting: &Waiting) {
        loop {
            clock::sleep(PING_EVERY).await;
            if waiting.owes() && waiting.silent_for() >= SILENT_AFTER {
                self.silence.begin();
            }
        }
    }

    async fn write(
        &self,
        mut writer: FrameWriter,
        first: Asked,
        queue: &mut mpsc::Receiver<Asked>,
        waiting: &Waiting,
    ) {
        let encoder = Encoder::new(MAX_CLIENT_FRAME);
        let (mut output, mut last) = (BytesMut::new(), 0);
        let mut batch = vec![first];
        let mut tick = std::pin::pin!(clock::sleep(PING_EVERY));
        loop {
            for asked in batch.drain(..) {
                last += 1;
                let request = proto::Request {
                    id: last,
                    group: asked.group,
                    body: Some(asked.body),
                };
                match encoder.put(&frame(peer_frame::Body::Request(request)), &mut output) {
                    Ok(()) => {
                        let mut of = waiting.of();
                        if of.is_empty() {
                            waiting.hear();
                        }
                        of.insert(last, asked.answer);
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        drop(asked.answer.send(Err(LinkError::NotSent(reason))));
                    }
                }
            }
            if writer.send_encoded(&output).await.is_err() {
                return;
            }
            empty(&mut output, KEPT_BY_CLIENT);
            tokio::select! {
                taken = queue.recv_many(&mut batch, BATCH) => if taken == 0 {
                    return;
                },
                () = &mut tick => {
                    tick.set(clock::sleep(PING_EVERY));
                    let awaited = waiting.owes() || self.silence.now.load(Ordering::Acquire);
                    if awaited && waiting.silent_for() >= PING_EVERY {
                        let ping = frame(peer_frame::Body::Ping(proto::Nothing {}));
                        if encoder.put(&ping, &mut output).is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
