//! One connection to a node that many requests share: in flight at once, matched by id. Clients ask nodes over it, and nodes
//! each other; what differs between the two is their [`Way`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use skep_types::shared::lock;
use skep_wire::WireError;
use skep_wire::proto::{Call, Request, Response, request};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::{Deadline, sleep};
use crate::error::ClientError;

/// Requests that wait to be written; more wait outside.
const QUEUE: usize = 1024;

/// No more requests are encoded while this much waits for the socket.
const WRITE_AHEAD: usize = 1 << 20;

/// Requests without an answer yet, those that nobody waits for any more included: these are forgotten when there are so
/// many. Whoever asks bounds the others.
const MAX_PENDING: usize = 32 << 10;

/// How often a node that owes answers is asked whether it is there.
const PING_EVERY: Duration = Duration::from_millis(500);

/// A node that owes answers and says nothing at all for this long is silent: others are asked first. It is longer than a
/// busy node takes to send a ping back, and shorter than an election.
pub const SILENT_AFTER: Duration = Duration::from_millis(1500);

/// How a node is reached, and in which frames requests go there and answers come.
pub trait Way: Send + Sync + 'static {
    /// The half of a connection that answers come from.
    type Reader: Send;
    /// The half that requests go to.
    type Writer: Send;

    /// Connects and introduces itself; ends in any case.
    fn dial(
        &self,
    ) -> impl Future<Output = Result<(Self::Reader, Self::Writer), ClientError>> + Send;

    /// What the node says next; `None` at the end of the connection, and after anything that is none of the protocol. May
    /// be dropped and called again without losing a byte.
    fn read(reader: &mut Self::Reader) -> impl Future<Output = Option<Heard>> + Send;

    /// Writes frames.
    fn write(
        writer: &mut Self::Writer,
        frames: &[u8],
    ) -> impl Future<Output = Result<(), WireError>> + Send;

    /// Appends a request to the frames that are written next.
    fn put(request: Request, frames: &mut BytesMut) -> Result<(), WireError>;

    /// A frame that a node sends back at once, if the protocol has one. Without it no node that takes connections is
    /// found silent.
    fn ping() -> Option<BytesMut> {
        None
    }
}

/// What a node says.
#[derive(Debug)]
pub enum Heard {
    /// The answer to a request.
    Answer(Response),
    /// That it is there.
    Ping,
}

/// Why a request has no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The node certainly did not see it.
    NotSent(ClientError),
    /// The connection was lost after it was, or may have been, sent.
    Lost,
    /// The node says nothing at all; it may answer yet.
    Silent,
}

/// A handle; all clones share the connection.
#[derive(Clone, Debug)]
pub struct Link {
    requests: mpsc::Sender<Asked>,
    silence: Arc<Silence>,
}

/// What runs a [`Link`].
#[derive(Debug)]
pub struct Line<W> {
    way: W,
    queue: tokio::sync::Mutex<mpsc::Receiver<Asked>>,
    silence: Arc<Silence>,
}

/// What is asked of a node: of a group, or nothing if only the connection is wanted; and who waits, if anybody does.
#[derive(Debug)]
struct Asked(Option<(u64, request::Body)>, Option<Waiter>);

type Answer = Result<Response, Failure>;
type Waiter = oneshot::Sender<Answer>;

/// Tells who waits; that one may have left.
fn tell(waiter: Option<Waiter>, answer: Answer) {
    let _ = waiter.map(|waiter| waiter.send(answer));
}

/// Whether a node is known to be silent, and whether there is a connection to it.
#[derive(Default, Debug)]
struct Silence {
    connected: AtomicBool,
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

impl Link {
    /// A link over that way; it does nothing until [`Line::run`] does.
    pub fn new<W: Way>(way: W) -> (Self, Line<W>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        let silence = Arc::<Silence>::default();
        let line = Line {
            way,
            queue: tokio::sync::Mutex::new(queue),
            silence: Arc::clone(&silence),
        };
        (Self { requests, silence }, line)
    }

    /// Whether nothing runs it any more.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Whether the node does not answer; others are rather asked.
    pub fn is_silent(&self) -> bool {
        self.silence.now.load(Ordering::Acquire)
    }

    /// Whether there is a connection, on which the node was not found silent.
    pub fn is_connected(&self) -> bool {
        self.silence.connected.load(Ordering::Acquire) && !self.is_silent()
    }

    /// Makes the connection again, if it is lost, and looks whether the node answers; somebody else does the asking. Once
    /// for each connection, which pings on while the node is silent.
    pub fn probe(&self) {
        if !self.silence.probed.swap(true, Ordering::AcqRel) {
            // Asks for nothing: any answer will do. If the queue is full, others are doing the same.
            let nothing = request::Body::Call(Call::default());
            let _ = self.requests.try_send(Asked(Some((0, nothing)), None));
        }
    }

    /// Asks a group, and waits for the answer; `patient` is who must not give up while an answer may come yet. Without a
    /// body there is only a connection afterwards, and an empty answer.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn ask(
        &self,
        group: u64,
        body: Option<request::Body>,
        patient: bool,
    ) -> Result<Response, Failure> {
        let (waiter, answered) = oneshot::channel();
        let mut fell = std::pin::pin!(self.silence.fell.notified());
        // From here on, so that no silence is missed.
        fell.as_mut().enable();
        let asked = Asked(body.map(|body| (group, body)), Some(waiter));
        let answer = async {
            // What nothing runs drops the request, and who waits for it notices.
            let _ = self.requests.send(asked).await;
            answered.await.unwrap_or(Err(Failure::Lost))
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = fell, if !patient => Err(Failure::Silent),
        }
    }
}

impl<W: Way> Line<W> {
    /// Makes the connection when it is first needed, and again after it was lost; ends with the last handle.
    pub async fn run(&self) {
        let mut queue = self.queue.lock().await;
        loop {
            self.silence.probed.store(false, Ordering::Release);
            let Some(first) = queue.recv().await else {
                return;
            };
            match self.way.dial().await {
                Ok((reader, writer)) => {
                    self.silence.end();
                    self.silence.connected.store(true, Ordering::Release);
                    // Those still waiting when this is dropped see that the connection was lost.
                    let owed = Mutex::new(Owed {
                        waiters: HashMap::new(),
                        silent: Deadline::after(SILENT_AFTER),
                    });
                    tokio::select! {
                        () = self.read(reader, &owed) => {}
                        () = self.write(writer, first, &mut queue, &owed) => {}
                        () = self.notice_silence(&owed) => {}
                    }
                    self.silence.connected.store(false, Ordering::Release);
                }
                Err(reason) => {
                    self.silence.begin();
                    // All that came meanwhile would only wait for the same.
                    let mut next = Some(first);
                    while let Some(Asked(_, waiter)) = next {
                        tell(waiter, Err(Failure::NotSent(reason.clone())));
                        next = queue.try_recv().ok();
                    }
                }
            }
        }
    }

    async fn read(&self, mut reader: W::Reader, owed: &Mutex<Owed>) {
        while let Some(heard) = W::read(&mut reader).await {
            let mut owed = lock(owed);
            owed.hear();
            self.silence.end();
            if let Heard::Answer(response) = heard {
                // It was forgotten if nobody waits for it any more.
                tell(owed.waiters.remove(&response.id), Ok(response));
            }
        }
    }

    /// Looks whether the node says anything, which a write that waits for it cannot. Does not end.
    async fn notice_silence(&self, owed: &Mutex<Owed>) {
        if W::ping().is_none() {
            std::future::pending().await
        }
        loop {
            sleep(PING_EVERY).await;
            let mut owed = lock(owed);
            if owed.is_any() && owed.quiet_for(SILENT_AFTER) {
                self.silence.begin();
            }
        }
    }

    async fn write(
        &self,
        mut writer: W::Writer,
        first: Asked,
        queue: &mut mpsc::Receiver<Asked>,
        owed: &Mutex<Owed>,
    ) {
        let ping = W::ping();
        let (mut frames, mut last) = (BytesMut::new(), 0);
        let mut next = Some(first);
        let mut tick = std::pin::pin!(sleep(PING_EVERY));
        loop {
            while let Some(asked) = next.take() {
                last += 1;
                put::<W>(last, asked, &mut frames, owed);
                // Whatever else waits shares the write.
                if frames.len() < WRITE_AHEAD {
                    next = queue.try_recv().ok();
                }
            }
            if W::write(&mut writer, &frames).await.is_err() {
                return;
            }
            frames = BytesMut::new();
            tokio::select! {
                asked = queue.recv() => match asked {
                    None => return,
                    asked => next = asked,
                },
                () = &mut tick, if ping.is_some() => {
                    tick.set(sleep(PING_EVERY));
                    let mut owed = lock(owed);
                    let awaited = owed.is_any() || self.silence.now.load(Ordering::Acquire);
                    if awaited && owed.quiet_for(PING_EVERY) {
                        frames.extend_from_slice(ping.as_deref().unwrap_or_default());
                    }
                }
            }
        }
    }
}

/// Appends a request to what is written next, unless whoever asked has left.
fn put<W: Way>(id: u64, asked: Asked, frames: &mut BytesMut, owed: &Mutex<Owed>) {
    let Asked(asked, waiter) = asked;
    if waiter.as_ref().is_some_and(Waiter::is_closed) {
        return;
    }
    let Some((group, body)) = asked else {
        return tell(waiter, Ok(Response::default()));
    };
    let body = Some(body);
    match W::put(Request { id, group, body }, frames) {
        Ok(()) => lock(owed).begin(id, waiter),
        Err(error) => {
            let error = match error {
                WireError::FrameTooLarge { size, limit } => ClientError::TooLarge { size, limit },
                error => ClientError::BadAnswer(error.to_string()),
            };
            tell(waiter, Err(Failure::NotSent(error)));
        }
    }
}

/// What a node owes on one connection.
struct Owed {
    waiters: HashMap<u64, Waiter>,
    /// When the node is silent, if nothing is heard until then.
    silent: Deadline,
}

impl Owed {
    fn begin(&mut self, id: u64, waiter: Option<Waiter>) {
        if self.waiters.is_empty() {
            self.hear();
        }
        if self.waiters.len() >= MAX_PENDING {
            self.is_any();
        }
        self.waiters.extend(waiter.map(|waiter| (id, waiter)));
    }

    /// Whether anybody still waits; forgets the others.
    fn is_any(&mut self) -> bool {
        self.waiters.retain(|_, waiter| !waiter.is_closed());
        !self.waiters.is_empty()
    }

    fn hear(&mut self) {
        self.silent = Deadline::after(SILENT_AFTER);
    }

    fn quiet_for(&self, time: Duration) -> bool {
        self.silent.left() <= SILENT_AFTER.saturating_sub(time)
    }
}
