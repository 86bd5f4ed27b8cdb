//! A link to a node that does as it is told.

use std::sync::Mutex;

use bytes::Bytes;
use futures::future::BoxFuture;
use skep_client::link::{Failure, SILENT_AFTER};
use skep_core::message::{PeerMessage, SnapshotName};
use skep_log::{SnapshotFile, SnapshotReceiver};
use skep_types::founding::Founding;
use skep_wire::proto::{request, response};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::*;
use skep::transport::{
    PeerCheck, PeerRefused, RequestHandler, SnapshotRefusal, TcpConfig, TcpLimits,
};
use skep::{Batch, Inbound};
use skep_types::past::Past;

/// Everybody is who he says, and no batch comes.
struct Trusting;

impl PeerCheck for Trusting {
    fn check(&self, _: NodeId, _: [u8; 16], _: &Past) -> Result<(), PeerRefused> {
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
    fn answer(&self, from: NodeId, request: proto::Request) -> BoxFuture<'static, proto::Response> {
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
        founding: Founding::unfounded("test"),
        node: NodeId(node),
        store: [node as u8; 16],
        account: Arc::default(),
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
    let port = Port {
        transport: one,
        node: NodeId(2),
        address: String::new(),
    };
    port.linked(Supervisor::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_requests_in_any_order_and_a_lost_connection_is_made_again() {
    let at = listener("127.0.0.1:0").await;
    let address = at.local_addr().expect("bound").to_string();
    let (node, mut requests) = two(at).await;
    let link = link_to(&address).await;
    let ask = |link: &Link, method: &'static str| {
        let link = link.clone();
        tokio::spawn(async move { link.ask(0, Some(call(method)), true).await })
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
    assert_eq!(three.await.expect("ends"), Err(Failure::Lost));
    let four = ask(&link, "four").await.expect("ends");
    assert!(matches!(four, Err(Failure::NotSent(_))), "{four:?}");
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
    let slow = tokio::spawn(async move { asked.ask(0, Some(call("slow")), false).await });
    let (request, answer) = requests.recv().await.expect("asked");
    clock::sleep(2 * SILENT_AFTER).await;
    assert!(!link.is_silent());
    answer.send(called(request.id, b"")).expect("awaited");
    assert!(slow.await.expect("ends").is_ok());

    // Accepts, and never welcomes.
    let stopped = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let link = link_to(&stopped.local_addr().expect("bound").to_string()).await;
    let answer = link.ask(0, Some(call("any")), false).await;
    assert!(
        matches!(answer, Err(Failure::NotSent(_) | Failure::Silent)),
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
    let first = tokio::spawn(async move { asked.ask(0, Some(call("first")), true).await });
    let (request, answer) = requests.recv().await.expect("asked");
    answer.send(called(request.id, b"")).expect("awaited");
    assert!(first.await.expect("ends").is_ok());
    link.probe();
    let (probe, _answer) = requests.recv().await.expect("asked");
    assert_eq!(probe.body, Some(call("")));
    link.probe();
    let asked = link.clone();
    tokio::spawn(async move { asked.ask(0, Some(call("next")), true).await });
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

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_noticed_while_a_write_waits_for_it() {
    let (test, said) = std::sync::mpsc::channel();
    let stopped = Arc::new(Stopped(Mutex::new(said)));
    // The node has threads of its own: one that waits keeps the task that it would run next from all others.
    let node = std::thread::spawn(|| {
        let runtime = Runtime::new().expect("threads");
        let (node, address) = runtime.block_on(async {
            let at = listener("127.0.0.1:0").await;
            let address = at.local_addr().expect("bound").to_string();
            (transport(2, at, Vec::new(), Some(stopped)).await, address)
        });
        (runtime, node, address)
    });
    let (runtime, _node, address) = node.join().expect("it starts");
    let link = link_to(&address).await;
    // More than the buffers of any kernel take.
    let body = Bytes::from(vec![0; 12 << 20]);
    let mut answers = Vec::new();
    for _ in 0..8 {
        let call = proto::Call {
            body: body.clone(),
            ..Default::default()
        };
        let mut answer = Box::pin(link.ask(0, Some(request::Body::Call(call)), true));
        assert!(futures::poll!(&mut answer).is_pending(), "it waits");
        answers.push(answer);
    }
    let answer = link.ask(0, Some(call("any")), false).await;
    assert_eq!(answer, Err(Failure::Silent));
    assert!(link.is_silent());
    drop(test);
    runtime.shutdown_background();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_no_frame_holds_is_an_error_and_the_others_are_answered() {
    let at = listener("127.0.0.1:0").await;
    let address = at.local_addr().expect("bound").to_string();
    let (_node, mut requests) = two(at).await;
    let link = link_to(&address).await;
    let asked = link.clone();
    let other = tokio::spawn(async move { asked.ask(0, Some(call("other")), true).await });
    let (second, answer_second) = requests.recv().await.expect("asked");
    let asked = link.clone();
    let large = tokio::spawn(async move { asked.ask(0, Some(call("large")), true).await });
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
