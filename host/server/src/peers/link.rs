//! One connection to another node for requests, shared by many of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use skep::clock::{self, Stopwatch};
use skep::memory::{KEPT_BY_CLIENT, empty};
use skep::supervisor::Supervisor;
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
mod tests {
    use bytes::Bytes;
    use futures::future::BoxFuture;
    use skep_core::message::{PeerMessage, SnapshotName};
    use skep_log::{SnapshotFile, SnapshotReceiver};
    use skep_wire::proto::response;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use skep::transport::{
        PeerCheck, PeerRefused, RequestHandler, SnapshotRefusal, TcpConfig, TcpLimits,
    };
    use skep::{Batch, Inbound};

    /// Everybody is who he says, and no batch comes.
    struct Trusting;

    impl PeerCheck for Trusting {
        fn check(&self, _: NodeId, _: [u8; 16]) -> Result<(), PeerRefused> {
            Ok(())
        }
    }

    impl Inbound for Trusting {
        fn step_batch(&self, _: Batch) {}

        fn offer_snapshot(
            &self,
            _: NodeId,
            message: &PeerMessage,
            _: &SnapshotName,
        ) -> Result<SnapshotReceiver, SnapshotRefusal> {
            Err(SnapshotRefusal::NoSuchGroup(message.group))
        }

        fn snapshot_arrived(&self, _: NodeId, _: PeerMessage, _: SnapshotFile) {}
    }

    /// Hands each request to the test, which answers it.
    struct ByHand(UnboundedSender<(proto::Request, oneshot::Sender<proto::Response>)>);

    type Requests = UnboundedReceiver<(proto::Request, oneshot::Sender<proto::Response>)>;

    impl RequestHandler for ByHand {
        fn answer(
            &self,
            from: NodeId,
            request: proto::Request,
        ) -> BoxFuture<'static, proto::Response> {
            assert_eq!(from, NodeId(1));
            let (answer, answered) = oneshot::channel();
            self.0.send((request, answer)).expect("the test listens");
            Box::pin(async move { answered.await.expect("the test answers") })
        }
    }

    async fn transport(
        node: u64,
        listener: TcpListener,
        peers: Vec<(NodeId, String)>,
        requests: Option<Arc<dyn RequestHandler>>,
    ) -> Arc<TcpTransport> {
        let config = TcpConfig {
            cluster: "test".to_owned(),
            node: NodeId(node),
            store: [node as u8; 16],
            peers,
            check: Arc::new(Trusting),
            requests,
            insecure_plaintext: false,
            limits: TcpLimits::default(),
            supervisor: Supervisor::default(),
        };
        TcpTransport::start(config, listener, Arc::new(Trusting)).expect("it starts")
    }

    async fn listener(at: &str) -> TcpListener {
        TcpTransport::bind(at, false).await.expect("a free port")
    }

    async fn two(at: TcpListener) -> (Arc<TcpTransport>, Requests) {
        let (sender, requests) = unbounded_channel();
        let handler = Arc::new(ByHand(sender)) as Arc<dyn RequestHandler>;
        (transport(2, at, Vec::new(), Some(handler)).await, requests)
    }

    fn call(method: &str) -> request::Body {
        request::Body::Call(proto::Call {
            method: method.to_owned(),
            ..Default::default()
        })
    }

    fn called(id: u64, body: &'static [u8]) -> proto::Response {
        let body = Bytes::from_static(body);
        proto::Response {
            id,
            body: Some(response::Body::Called(proto::Called { body })),
            leader: 3,
        }
    }

    async fn link_to(address: &str) -> Link {
        let peers = vec![(NodeId(2), address.to_owned())];
        let one = transport(1, listener("127.0.0.1:0").await, peers, None).await;
        Link::new(one, NodeId(2), String::new(), Supervisor::default())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn answers_find_their_requests_in_any_order_and_a_lost_connection_is_made_again() {
        let at = listener("127.0.0.1:0").await;
        let address = at.local_addr().expect("bound").to_string();
        let (node, mut requests) = two(at).await;
        let link = link_to(&address).await;
        let ask = |link: &Link, method: &'static str| {
            let link = link.clone();
            tokio::spawn(async move { link.ask(0, call(method), true).await })
        };
        let one = ask(&link, "one");
        let (first, answer_first) = requests.recv().await.expect("asked");
        let two_ = ask(&link, "two");
        let (second, answer_second) = requests.recv().await.expect("asked");
        answer_second
            .send(called(second.id, b"2"))
            .expect("awaited");
        assert_eq!(two_.await.expect("ends"), Ok(called(second.id, b"2")));
        answer_first.send(called(first.id, b"1")).expect("awaited");
        assert_eq!(one.await.expect("ends"), Ok(called(first.id, b"1")));

        let three = ask(&link, "three");
        let (_, _never) = requests.recv().await.expect("asked");
        node.stop().await;
        assert_eq!(three.await.expect("ends"), Err(LinkError::Lost));
        let four = ask(&link, "four").await.expect("ends");
        assert!(matches!(four, Err(LinkError::NotSent(_))), "{four:?}");
        assert!(link.is_silent());
        drop((node, requests));

        let (_node, mut requests) = two(listener(&address).await).await;
        let five = ask(&link, "five");
        let (fifth, answer) = requests.recv().await.expect("asked");
        answer.send(called(fifth.id, b"5")).expect("awaited");
        assert!(five.await.expect("ends").is_ok());
        assert!(!link.is_silent());
    }

    /// The kernel of a node that is stopped still takes connections and bytes.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_says_nothing_is_silent_and_one_that_only_takes_long_is_not() {
        let at = listener("127.0.0.1:0").await;
        let address = at.local_addr().expect("bound").to_string();
        let (_node, mut requests) = two(at).await;
        let link = link_to(&address).await;
        let asked = link.clone();
        let slow = tokio::spawn(async move { asked.ask(0, call("slow"), false).await });
        let (request, answer) = requests.recv().await.expect("asked");
        clock::sleep(2 * SILENT_AFTER).await;
        assert!(!link.is_silent());
        answer.send(called(request.id, b"")).expect("awaited");
        assert!(slow.await.expect("ends").is_ok());

        // Accepts, and never welcomes.
        let stopped = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let link = link_to(&stopped.local_addr().expect("bound").to_string()).await;
        let answer = link.ask(0, call("any"), false).await;
        assert!(
            matches!(answer, Err(LinkError::NotSent(_) | LinkError::Silent)),
            "{answer:?}"
        );
        assert!(link.is_silent());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_is_probed_once_however_many_ask() {
        let at = listener("127.0.0.1:0").await;
        let address = at.local_addr().expect("bound").to_string();
        let (_node, mut requests) = two(at).await;
        let link = link_to(&address).await;
        // From then on there is a connection.
        let asked = link.clone();
        let first = tokio::spawn(async move { asked.ask(0, call("first"), true).await });
        let (request, answer) = requests.recv().await.expect("asked");
        answer.send(called(request.id, b"")).expect("awaited");
        assert!(first.await.expect("ends").is_ok());
        link.probe();
        let (probe, _answer) = requests.recv().await.expect("asked");
        assert_eq!(probe.body, Some(call("")));
        link.probe();
        let asked = link.clone();
        tokio::spawn(async move { asked.ask(0, call("next"), true).await });
        let (next, _answer) = requests.recv().await.expect("asked");
        assert_eq!(next.body, Some(call("next")));
    }

    /// Each of its tasks waits for the test, so that it reads nothing either.
    struct Stopped(Mutex<std::sync::mpsc::Receiver<()>>);

    impl RequestHandler for Stopped {
        fn answer(&self, _: NodeId, _: proto::Request) -> BoxFuture<'static, proto::Response> {
            let test = self.0.lock().expect("no panic");
            test.recv().expect_err("the test says nothing and ends");
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn silence_is_noticed_while_a_write_waits_for_it() {
        let at = listener("127.0.0.1:0").await;
        let address = at.local_addr().expect("bound").to_string();
        let (_test, said) = std::sync::mpsc::channel();
        let stopped = Arc::new(Stopped(Mutex::new(said)));
        let _node = transport(2, at, Vec::new(), Some(stopped)).await;
        let link = link_to(&address).await;
        // More than the buffers of any kernel take.
        let body = Bytes::from(vec![0; 12 << 20]);
        let mut answers = Vec::new();
        for _ in 0..8 {
            let (answer, answered) = oneshot::channel();
            answers.push(answered);
            let call = proto::Call {
                body: body.clone(),
                ..Default::default()
            };
            let (group, body) = (0, request::Body::Call(call));
            let asked = link
                .requests
                .send(Asked {
                    group,
                    body,
                    answer,
                })
                .await;
            assert!(asked.is_ok(), "the link is there");
        }
        let answer = link.ask(0, call("any"), false).await;
        assert_eq!(answer, Err(LinkError::Silent));
        assert!(link.is_silent());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_that_no_frame_holds_is_an_error_and_the_others_are_answered() {
        let at = listener("127.0.0.1:0").await;
        let address = at.local_addr().expect("bound").to_string();
        let (_node, mut requests) = two(at).await;
        let link = link_to(&address).await;
        let asked = link.clone();
        let other = tokio::spawn(async move { asked.ask(0, call("other"), true).await });
        let (second, answer_second) = requests.recv().await.expect("asked");
        let asked = link.clone();
        let large = tokio::spawn(async move { asked.ask(0, call("large"), true).await });
        let (first, answer_first) = requests.recv().await.expect("asked");
        let body = Bytes::from(vec![0; MAX_CLIENT_FRAME]);
        let called = |id, body| proto::Response {
            id,
            body: Some(response::Body::Called(proto::Called { body })),
            leader: 3,
        };
        answer_first.send(called(first.id, body)).expect("awaited");
        let refused = large.await.expect("ends").expect("an answer");
        assert_eq!((refused.id, refused.leader), (first.id, 3));
        let Some(response::Body::Error(error)) = refused.body else {
            panic!("{refused:?}");
        };
        assert_eq!(error.code, "too-large");
        assert!(error.unknown, "it was carried out");
        answer_second
            .send(called(second.id, Bytes::new()))
            .expect("awaited");
        assert!(other.await.expect("ends").is_ok());
    }
}
