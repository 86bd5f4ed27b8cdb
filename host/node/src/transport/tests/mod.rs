mod handshakes;
mod lanes;
mod snapshots;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::{self, MessageType};
use skep_core::form::Form;
use skep_core::id::{Incarnation, ReplicaId};
use skep_core::message::{Body, Priority};
use skep_log::{
    DiskVfs, GroupKey, LogOptions, LogPosition, PeerPins, Record, SnapshotMark, SnapshotMeta,
    SnapshotStore, Store, Vfs,
};
use skep_peer::{Hello, Purpose, batch_from_wire, batch_to_wire};
use skep_types::founding::Founding;
use skep_types::past::{Durable, Life, Past};
use skep_wire::PEER_PROTOCOL;
use skep_wire::proto::{self, peer_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::connection::Connection;
use super::*;
use crate::clock::timeout;

/// Far more than anything here takes; a test that reaches it has failed.
const LIMIT: Duration = Duration::from_secs(30);

const GROUP: GroupId = GroupId(5);

#[derive(Debug, PartialEq)]
enum Report {
    Unreachable(NodeId, GroupId),
    Snapshot(NodeId, GroupId, SnapshotStatus),
}

struct Reports(UnboundedSender<Report>);

impl Reporter for Reports {
    fn report_unreachable(&self, group: GroupId, node: NodeId) -> Result<(), Error> {
        let _ = self.0.send(Report::Unreachable(node, group));
        Ok(())
    }

    fn report_snapshot(
        &self,
        group: GroupId,
        node: NodeId,
        status: SnapshotStatus,
    ) -> Result<(), Error> {
        let _ = self.0.send(Report::Snapshot(node, group, status));
        // A reporter that fails changes nothing for the transport.
        Err(Error::NoSuchGroup { group, node })
    }
}

fn reporter() -> (Arc<dyn Reporter>, UnboundedReceiver<Report>) {
    let (sender, reports) = unbounded_channel();
    (Arc::new(Reports(sender)), reports)
}

/// Takes batches and, if it has a store, snapshots.
struct Inbox {
    batches: UnboundedSender<Batch>,
    snapshots: UnboundedSender<(NodeId, PeerMessage, SnapshotFile)>,
    store: Option<SnapshotStore>,
}

impl Inbound for Inbox {
    fn step_batch(&self, batch: Batch) {
        let _ = self.batches.send(batch);
    }

    fn offer_snapshot(
        &self,
        _from: NodeId,
        message: &PeerMessage,
        name: &SnapshotName,
    ) -> Result<SnapshotReceiver, SnapshotRefusal> {
        let store = self
            .store
            .as_ref()
            .ok_or(SnapshotRefusal::NoSuchGroup(message.group))?;
        let position = LogPosition {
            index: name.index.0,
            term: name.term.0,
        };
        let mark = SnapshotMark {
            position,
            digest: name.digest,
            size: name.size,
        };
        store
            .receive(key(), mark, 1 << 30)
            .map_err(|error| SnapshotRefusal::Storage(error.to_string()))
    }

    fn snapshot_arrived(&self, from: NodeId, message: PeerMessage, file: SnapshotFile) {
        let _ = self.snapshots.send((from, message, file));
    }
}

/// Everybody is who he says.
struct Trusting;

impl PeerCheck for Trusting {
    fn check(&self, _: NodeId, _: [u8; 16], _: &Past) -> Result<(), PeerRefused> {
        Ok(())
    }
}

struct Node {
    transport: Arc<TcpTransport>,
    batches: UnboundedReceiver<Batch>,
    snapshots: UnboundedReceiver<(NodeId, PeerMessage, SnapshotFile)>,
}

struct Setup {
    config: TcpConfig,
    address: String,
    store: Option<SnapshotStore>,
}

impl Setup {
    fn new(node: u64) -> Self {
        let config = TcpConfig {
            founding: Founding::unfounded("bees"),
            node: NodeId(node),
            store: [node as u8; 16],
            account: Arc::default(),
            peers: Vec::new(),
            check: Arc::new(Trusting),
            requests: None,
            insecure_plaintext: false,
            limits: TcpLimits::default(),
            supervisor: Default::default(),
        };
        Self {
            config,
            address: "127.0.0.1:0".to_owned(),
            store: None,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut TcpConfig)) -> Self {
        change(&mut self.config);
        self
    }

    fn stored(mut self, dir: &Path) -> Self {
        self.store = Some(snapshots(dir));
        self
    }

    async fn start(self) -> Node {
        let (batches, batches_in) = unbounded_channel();
        let (snapshots, snapshots_in) = unbounded_channel();
        let inbound = Arc::new(Inbox {
            batches,
            snapshots,
            store: self.store,
        });
        let listener = TcpTransport::bind(&self.address, false).await.unwrap();
        let transport = TcpTransport::start(self.config, listener, inbound).unwrap();
        Node {
            transport,
            batches: batches_in,
            snapshots: snapshots_in,
        }
    }
}

impl Node {
    fn address(&self) -> String {
        self.transport.address().to_string()
    }

    async fn batch(&mut self) -> Batch {
        within(self.batches.recv()).await.unwrap()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("it happens in time")
}

/// Waits for a counter, which nothing announces.
async fn counted(counter: &AtomicU64, least: u64) {
    within(async {
        while counter.load(Ordering::Relaxed) < least {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn key() -> GroupKey {
    GroupKey {
        group: GROUP.0,
        incarnation: 1,
    }
}

fn snapshots(dir: &Path) -> SnapshotStore {
    SnapshotStore::open_dir(Arc::new(DiskVfs), dir).unwrap()
}

fn message(raft: eraftpb::Message) -> PeerMessage {
    PeerMessage {
        group: GROUP,
        incarnation: Incarnation(1),
        from: ReplicaId(1),
        to: ReplicaId(2),
        body: Body::Raft(raft),
    }
}

fn raft(msg_type: MessageType, index: u64) -> eraftpb::Message {
    eraftpb::Message {
        msg_type,
        from: 1,
        to: 2,
        term: 3,
        index,
        ..Default::default()
    }
}

fn batch(to: u64, priority: Priority, message: PeerMessage) -> Batch {
    Batch {
        from: NodeId(1),
        to: NodeId(to),
        priority,
        messages: BTreeMap::from([(GROUP, vec![message])]),
    }
}

fn beat(to: u64, index: u64) -> Batch {
    batch(
        to,
        Priority::High,
        message(raft(MessageType::MsgHeartbeat, index)),
    )
}

fn append(to: u64, index: u64, bytes: usize) -> Batch {
    let data = Bytes::from(vec![7; bytes]);
    let entry = eraftpb::Entry {
        term: 3,
        index: index + 1,
        data,
        ..Default::default()
    };
    let raft = eraftpb::Message {
        log_term: if index == 0 { 0 } else { 3 },
        entries: vec![entry].into(),
        ..raft(MessageType::MsgAppend, index)
    };
    batch(to, Priority::Normal, message(raft))
}

fn index(batch: &Batch) -> u64 {
    let Body::Raft(raft) = &batch.messages[&GROUP][0].body else {
        panic!("not of raft")
    };
    raft.index
}

fn snapshot_message() -> PeerMessage {
    let conf_state = eraftpb::ConfState {
        voters: vec![1, 2],
        ..Default::default()
    };
    let metadata = eraftpb::SnapshotMetadata {
        conf_state: Some(conf_state).into(),
        index: 40,
        term: 3,
        ..Default::default()
    };
    let snapshot = eraftpb::Snapshot {
        metadata: Some(metadata).into(),
        ..Default::default()
    };
    message(eraftpb::Message {
        snapshot: Some(snapshot).into(),
        ..raft(MessageType::MsgSnapshot, 0)
    })
}

fn snapshot_file(dir: &Path, bytes: usize) -> Arc<SnapshotFile> {
    let meta = SnapshotMeta {
        key: key(),
        position: LogPosition { index: 40, term: 3 },
        state: Bytes::from_static(b"state"),
        form: Form::Saved,
        schema: 1,
        component: [0; 32],
    };
    let pattern: Bytes = (0..bytes).map(|at| (at % 251) as u8).collect();
    let sealed = snapshots(dir).seal(meta, pattern).unwrap();
    Arc::new(sealed.place().unwrap())
}

/// Sends until one arrives: what is sent while a peer is down is lost, by contract.
async fn reach(node: &Arc<TcpTransport>, to: u64, reporter: &Arc<dyn Reporter>, at: &mut Node) {
    let connects = node.stats();
    let connects = connects.lane(Priority::High);
    within(async {
        loop {
            node.send(beat(to, 99), reporter);
            tokio::select! {
                _ = at.batches.recv() => return,
                () = crate::clock::sleep(Duration::from_millis(5)) => {}
            }
        }
    })
    .await;
    assert!(connects.connects.load(Ordering::Relaxed) >= 1);
}

/// Two nodes that must not speak: both say so, and nothing is delivered.
async fn refused(one: Setup, two: Setup) -> (Node, Node) {
    let mut two = two.start().await;
    let one = one
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    one.transport.send(beat(2, 1), &reporter);
    assert_eq!(
        within(reports.recv()).await,
        Some(Report::Unreachable(NodeId(2), GROUP))
    );
    counted(&one.transport.stats().dial_failures, 1).await;
    assert!(two.batches.try_recv().is_err());
    (one, two)
}
