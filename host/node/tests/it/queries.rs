//! Machines that answer queries beside their commands, and barriers that hold up neither.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use skep::trouble::Kind;
use skep::{
    ConfChange, Config, Consistency, EntryContext, GroupConfig, GroupId, LeaderChanged, LogIndex,
    MachineError, MultiNode, NodeId, Outcome, Peer, Running, StateMachine, Ticker,
};
use skep_core::status::Health;
use skep_log::vfs::{DiskVfs, Vfs, VfsFile, VfsLock};
use skep_machine::Reader;
use skep_machine::state_machine::{Answer, Applied, Descriptor, LocalCode};

use crate::support::{Cluster, GROUP, number, soon, until};

const ONE: NodeId = NodeId(1);

/// Holds up who passes while it is closed.
#[derive(Default, Debug)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicU64,
}

impl Gate {
    fn pass(&self) {
        let closed = self.closed.lock().expect("no panic");
        if *closed {
            self.waiting.fetch_add(1, SeqCst);
        }
        drop(
            self.opened
                .wait_while(closed, |closed| *closed)
                .expect("no panic"),
        );
    }

    fn close(&self) {
        *self.closed.lock().expect("no panic") = true;
    }

    fn open(&self) {
        *self.closed.lock().expect("no panic") = false;
        self.opened.notify_all();
    }

    async fn somebody_waits(&self) {
        until("somebody comes to the gate", || async {
            (self.waiting.load(SeqCst) > 0).then_some(())
        })
        .await;
    }
}

/// What a machine and its reader share with the test.
#[derive(Default, Debug)]
struct Stage {
    /// The count, and the entry it is from.
    state: Mutex<(u64, LogIndex)>,
    applies: Gate,
    saves: Gate,
    queries: Gate,
    released: AtomicU64,
}

/// Counts its commands. A query `slow` comes to a gate.
struct Tally(Arc<Stage>);

struct TallyReader(Arc<Stage>);

impl Tally {
    fn seen(&self, context: &EntryContext, count: u64) -> u64 {
        let mut state = self.0.state.lock().expect("no panic");
        *state = (state.0 + count, context.index);
        state.0
    }
}

impl StateMachine for Tally {
    fn describe(&self) -> Descriptor {
        Descriptor::default()
    }

    fn init(&mut self, _: &EntryContext, _: &Bytes) -> Running<'_, Applied> {
        Box::pin(async { Ok(Applied::default()) })
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        Box::pin(async {
            self.0.applies.pass();
            let outcomes = commands
                .iter()
                .map(|_| Outcome::Reply(self.seen(context, 1).to_string().into()))
                .collect();
            Ok(Applied { outcomes, fuel: 1 })
        })
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        _: &ConfChange,
    ) -> Running<'a, Applied> {
        Box::pin(async {
            self.seen(context, 0);
            Ok(Applied::default())
        })
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        _: &LeaderChanged,
    ) -> Running<'a, Applied> {
        Box::pin(async {
            self.seen(context, 0);
            Ok(Applied::default())
        })
    }

    fn query(&mut self, _: &Bytes) -> Running<'_, Outcome> {
        panic!("it has a reader")
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        Some(Box::new(TallyReader(Arc::clone(&self.0))))
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async {
            self.0.saves.pass();
            let count = self.0.state.lock().expect("no panic").0;
            let written = to.write_all(&count.to_le_bytes());
            written.map_err(|error| MachineError::Local {
                call: "save",
                code: LocalCode::Io,
                reason: error.to_string(),
            })
        })
    }

    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        _: u32,
        from: Bytes,
    ) -> Running<'a, ()> {
        Box::pin(async move {
            let count = u64::from_le_bytes(from[..].try_into().expect("what save wrote"));
            *self.0.state.lock().expect("no panic") = (count, context.index);
            Ok(())
        })
    }
}

impl TallyReader {
    fn answer(&self, request: &Bytes) -> Result<Answer, MachineError> {
        match &request[..] {
            b"slow" => self.0.queries.pass(),
            b"panic" => panic!("on purpose"),
            b"local" => {
                return Err(MachineError::Local {
                    call: "query",
                    code: LocalCode::Memory,
                    reason: "on purpose".into(),
                });
            }
            _ => {}
        }
        let (count, index) = *self.0.state.lock().expect("no panic");
        Ok(Answer {
            outcome: Outcome::Reply(count.to_string().into()),
            index,
            fuel: 1,
        })
    }
}

impl Reader for TallyReader {
    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Answer> {
        Box::pin(async { self.answer(request) })
    }

    fn release(&mut self) {
        self.0.released.fetch_add(1, SeqCst);
    }
}

/// The real file system, where snapshots come to a gate before they get their name, or do not get it.
#[derive(Default, Debug)]
struct Snapshots {
    gate: Gate,
    fail: AtomicBool,
    placed: AtomicU64,
}

#[derive(Debug)]
struct Files(Arc<Snapshots>);

impl Vfs for Files {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        DiskVfs.create_dir_all(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        DiskVfs.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        DiskVfs.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.parent().is_some_and(|dir| dir.ends_with("snap")) {
            self.0.gate.pass();
            if self.0.fail.load(SeqCst) {
                return Err(io::Error::other("on purpose"));
            }
        }
        DiskVfs.rename(from, to)?;
        self.0.placed.fetch_add(1, SeqCst);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        DiskVfs.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        DiskVfs.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        DiskVfs.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<VfsLock> {
        DiskVfs.lock(path)
    }
}

/// One node with one group.
struct Alone {
    cluster: Cluster,
    stage: Arc<Stage>,
    snapshots: Arc<Snapshots>,
}

impl Alone {
    async fn start() -> Self {
        let mut cluster = Cluster::start(0).await;
        let config = cluster.config(ONE);
        Self::start_with(cluster, config).await
    }

    async fn start_with(mut cluster: Cluster, config: Config) -> Self {
        let snapshots = Arc::new(Snapshots::default());
        let vfs = Arc::new(Files(Arc::clone(&snapshots)));
        cluster.start_with(Config { vfs, ..config }).await;
        let stage = Arc::new(Stage::default());
        let peers = vec![Peer {
            node: ONE,
            data: Bytes::new(),
        }];
        let group = GroupConfig::new(GROUP, "tally", Box::new(Tally(Arc::clone(&stage))), peers);
        cluster
            .node(1)
            .create_group(group)
            .await
            .expect("the group is created");
        Self {
            cluster,
            stage,
            snapshots,
        }
    }

    async fn leads(self) -> Self {
        self.cluster.leader(GROUP).await;
        self
    }

    fn node(&self) -> &MultiNode {
        self.cluster.node(1)
    }

    async fn propose(&self) -> (u64, LogIndex) {
        let proposed = self.node().propose(GROUP, Bytes::from_static(b"add"));
        let response = soon("propose", proposed).await.expect("applied");
        (number(&response.outcome), response.index)
    }

    async fn ask(&self, request: &'static str, consistency: Consistency) -> (u64, LogIndex) {
        let asked = self
            .node()
            .query(GROUP, Bytes::from_static(request.as_bytes()), consistency);
        let answer = soon("query", asked).await.expect("answered");
        (number(&answer.outcome), answer.index)
    }

    /// Asks, and does not wait for the answer.
    fn asking(&self, request: &'static str) -> tokio::task::JoinHandle<(u64, LogIndex)> {
        let node = self.node().clone();
        tokio::spawn(async move {
            let request = Bytes::from_static(request.as_bytes());
            let answer = node.query(GROUP, request, Consistency::Stale).await;
            let answer = answer.expect("answered");
            (number(&answer.outcome), answer.index)
        })
    }
}

// P-19
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_query_delays_no_command() {
    let alone = Alone::start().await.leads().await;
    alone.stage.queries.close();
    let slow = alone.asking("slow");
    alone.stage.queries.somebody_waits().await;
    // A barrier passes as well.
    for count in 1..=50 {
        assert_eq!(alone.propose().await.0, count);
        if count == 25 {
            let snapshot = soon("a barrier", alone.node().snapshot(GROUP)).await;
            snapshot.expect("a snapshot");
        }
    }
    assert!(!slow.is_finished());
    alone.stage.queries.open();
    let (count, _) = soon("the slow query", slow).await.expect("no panic");
    assert_eq!(count, 50);
}

// P-19
#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_during_a_barrier() {
    let alone = Alone::start().await.leads().await;
    alone.propose().await;
    alone.stage.saves.close();
    let node = alone.node().clone();
    let barrier = tokio::spawn(async move { node.snapshot(GROUP).await });
    alone.stage.saves.somebody_waits().await;
    for consistency in [Consistency::Stale, Consistency::Linearizable] {
        assert_eq!(alone.ask("get", consistency).await.0, 1);
    }
    assert!(!barrier.is_finished());
    alone.stage.saves.open();
    let barrier = soon("the barrier", barrier).await.expect("no panic");
    let index = barrier.expect("a snapshot").index;
    assert!(alone.ask("get", Consistency::Stale).await.1 >= index);
}

// P-20
#[tokio::test(flavor = "multi_thread")]
async fn a_query_sees_every_command_that_was_before_it() {
    let alone = Alone::start().await.leads().await;
    let (_, before) = alone.propose().await;
    alone.stage.applies.close();
    let node = alone.node().clone();
    let command =
        tokio::spawn(async move { node.propose(GROUP, Bytes::from_static(b"add")).await });
    alone.stage.applies.somebody_waits().await;
    let asked = alone.asking("get");
    until("the query is in the node", || async {
        (alone.node().node_status().requests == 2).then_some(())
    })
    .await;
    // A shard answers in the round after the one in which it handed the query on.
    for _ in 0..2 {
        alone.node().status(GROUP).await.expect("a status");
    }
    alone.stage.applies.open();
    let response = soon("the command", command).await.expect("no panic");
    let response = response.expect("applied");
    let (count, index) = soon("the query", asked).await.expect("no panic");
    assert!(response.index > before);
    assert_eq!((count, index), (2, response.index));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_breaks_harms_no_other() {
    let alone = Alone::start().await.leads().await;
    alone.propose().await;
    for request in ["panic", "local"] {
        let asked = alone.node().query(
            GROUP,
            Bytes::from_static(request.as_bytes()),
            Consistency::Stale,
        );
        let error = soon("query", asked).await.expect_err("no answer");
        assert_eq!(error.code().name(), "query-failed");
        assert_eq!(alone.ask("get", Consistency::Linearizable).await.0, 1);
    }
    assert_eq!(alone.propose().await.0, 2);
}

// P-44
#[tokio::test(flavor = "multi_thread")]
async fn the_machine_goes_on_while_its_snapshot_becomes_durable() {
    let alone = Alone::start().await.leads().await;
    alone.propose().await;
    alone.snapshots.gate.close();
    let node = alone.node().clone();
    let barrier = tokio::spawn(async move { node.snapshot(GROUP).await });
    alone.snapshots.gate.somebody_waits().await;
    let commands: Vec<_> = (0..10)
        .map(|_| {
            let node = alone.node().clone();
            tokio::spawn(async move { node.propose(GROUP, Bytes::from_static(b"add")).await })
        })
        .collect();
    // The file has no name yet, and the machine has done it all.
    until("they are applied", || async {
        (alone.stage.state.lock().expect("no panic").0 == 11).then_some(())
    })
    .await;
    let status = alone.node().status(GROUP).await.expect("a status");
    assert_eq!(status.replica.snapshot, LogIndex(0));
    assert!(!barrier.is_finished());
    alone.snapshots.gate.open();
    let barrier = soon("the barrier", barrier).await.expect("no panic");
    let barrier = barrier.expect("a snapshot").index;
    for command in commands {
        let response = soon("a command", command).await.expect("no panic");
        assert!(response.expect("applied").index > barrier);
    }
    let status = alone.node().status(GROUP).await.expect("a status");
    assert_eq!(status.replica.snapshot, barrier);
}

// P-44
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_become_durable_is_written_again_and_the_group_goes_on() {
    let alone = Alone::start().await.leads().await;
    alone.propose().await;
    alone.snapshots.fail.store(true, SeqCst);
    alone.snapshots.gate.close();
    let node = alone.node().clone();
    let barrier = tokio::spawn(async move { node.snapshot(GROUP).await });
    alone.snapshots.gate.somebody_waits().await;
    let node = alone.node().clone();
    let command =
        tokio::spawn(async move { node.propose(GROUP, Bytes::from_static(b"add")).await });
    until("it is applied", || async {
        (alone.stage.state.lock().expect("no panic").0 == 2).then_some(())
    })
    .await;
    alone.snapshots.gate.open();
    let barrier = soon("the barrier", barrier).await.expect("no panic");
    let barrier = barrier.expect("the machine went on from its bytes").index;
    let response = soon("the command", command).await.expect("no panic");
    assert!(response.expect("applied").index > barrier);
    let status = alone.node().status(GROUP).await.expect("a status");
    assert!(
        matches!(&status.replica.health, Health::Degraded { index, reason } if *index == barrier && reason.contains("on purpose")),
        "{:?}",
        status.replica.health
    );
    // No record names what is in no file.
    assert_eq!(status.replica.snapshot, LogIndex(0));
    let troubled = alone.node().node_status().troubled;
    assert_eq!(troubled.len(), 1, "{troubled:?}");
    assert_eq!(troubled[0].trouble.kind, Kind::Degraded);
    alone.snapshots.fail.store(false, SeqCst);
    until("it is written", || async {
        let status = alone.node().status(GROUP).await.ok()?.replica;
        (status.snapshot == barrier && status.health == Health::Healthy).then_some(())
    })
    .await;
    until("nobody is in trouble", || async {
        alone.node().node_status().troubled.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_group_leaves_no_snapshot_that_was_on_its_way() {
    let mut alone = Alone::start().await.leads().await;
    let others = [8, 9, 10, 11].map(GroupId);
    for other in others {
        alone.cluster.create(other, &[ONE]).await;
    }
    alone.propose().await;
    alone.snapshots.gate.close();
    let node = alone.node().clone();
    let barrier = tokio::spawn(async move { node.snapshot(GROUP).await });
    alone.snapshots.gate.somebody_waits().await;
    let node = alone.node().clone();
    let removal = tokio::spawn(async move { node.remove_group(GROUP).await });
    soon("the barrier", barrier)
        .await
        .expect("no panic")
        .expect_err("no snapshot");
    // Others are removed meanwhile: this one waits for its file.
    for other in others {
        let removed = soon("another", alone.node().remove_group(other)).await;
        removed.expect("removed");
    }
    assert!(!removal.is_finished());
    alone.snapshots.gate.open();
    until("the file has its name", || async {
        (alone.snapshots.placed.load(SeqCst) > 0).then_some(())
    })
    .await;
    let removed = soon("the removal", removal).await.expect("no panic");
    removed.expect("removed");
    let files = std::fs::read_dir(alone.cluster.dir(1).join("snap")).expect("the directory");
    assert_eq!(files.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_nobody_asks_is_released() {
    let mut cluster = Cluster::start(0).await;
    let (tick, ticks) = tokio::sync::mpsc::channel(1);
    let config = Config {
        ticker: Ticker::Channel(ticks),
        ..cluster.config(ONE)
    };
    let alone = Alone::start_with(cluster, config).await;
    // Ticks that come while one is in hand are one, so they are counted by what they do.
    until("a leader", || async {
        tick.send(()).await.expect("the node runs");
        alone.node().leader(GROUP).ok().flatten()
    })
    .await;
    for released in 0..2 {
        assert_eq!(alone.ask("get", Consistency::Stale).await.0, 0);
        assert_eq!(alone.stage.released.load(SeqCst), released);
        until("it is released", || async {
            for _ in 0..50 {
                tick.send(()).await.expect("the node runs");
            }
            (alone.stage.released.load(SeqCst) > released).then_some(())
        })
        .await;
    }
    // Once is enough.
    for _ in 0..2000 {
        tick.send(()).await.expect("the node runs");
    }
    assert_eq!(alone.ask("get", Consistency::Stale).await.0, 0);
    assert_eq!(alone.stage.released.load(SeqCst), 2);
}
