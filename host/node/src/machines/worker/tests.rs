//! Calls that let others go first, on the real pool.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use skep_core::effect::{Call, Work};
use skep_core::id::{ComponentId, LogIndex, NodeId, Term};
use skep_core::outcome::{ConfChange, EntryContext, LeaderChanged, Outcome};
use skep_drive::{Answer, Applied, Descriptor, Reader, Running, StateMachine};
use skep_log::{DiskVfs, GroupKey};
use tokio::sync::oneshot;

use super::{Job, Owner, Worker};
use crate::disk::store::{Disk, DiskConfig};
use crate::error::Error;
use crate::machines::queries::Query;
use crate::pool::Pool;
use crate::shards::mailbox;
use crate::shards::replica::Life;
use crate::shards::router::Router;
use crate::status::QueryAnswer;

/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command, or a query, that goes on for ever.
const LONG: &str = "long";

/// The slices of long calls, as a test sees them: each waits for leave to end.
struct Slices {
    begun: Sender<()>,
    end: Receiver<()>,
}

/// What a test has of them.
struct Watched {
    begun: Receiver<()>,
    end: Sender<()>,
}

fn watched() -> (Slices, Watched) {
    let ((begun, begins), (end, ends)) = (channel(), channel());
    let slices = Slices { begun, end: ends };
    (slices, Watched { begun: begins, end })
}

impl Slices {
    /// Never ends.
    async fn run_on<T>(&mut self) -> T {
        let Self { begun, end } = self;
        poll_fn(move |context| {
            begun.send(()).expect("the test waits");
            let _ = end.recv();
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

impl Watched {
    fn begins(&self) {
        self.begun.recv_timeout(PATIENCE).expect("a slice begins");
    }

    fn may_end(&self) {
        self.end.send(()).expect("a slice waits");
    }
}

/// A machine whose long calls never end, and whose others are counted.
struct Sliced {
    slices: Slices,
    applied: Arc<AtomicU64>,
    reader: Cell<Option<Asked>>,
    /// Dropped with the machine.
    _here: Sender<()>,
}

impl StateMachine for Sliced {
    fn describe(&self) -> Descriptor {
        Descriptor::default()
    }

    fn init(&mut self, _: &EntryContext, _: &Bytes) -> Running<'_, Applied> {
        Box::pin(async { Ok(Applied::default()) })
    }

    fn apply<'a>(&'a mut self, _: &EntryContext, commands: &'a [Bytes]) -> Running<'a, Applied> {
        Box::pin(async move {
            if commands.iter().any(|command| command == LONG) {
                return self.slices.run_on().await;
            }
            self.applied.fetch_add(1, SeqCst);
            Ok(Applied {
                outcomes: commands.iter().cloned().map(Outcome::Reply).collect(),
                fuel: 1,
            })
        })
    }

    fn apply_conf_change(&mut self, _: &EntryContext, _: &ConfChange) -> Running<'_, Applied> {
        Box::pin(async { Ok(Applied::default()) })
    }

    fn process_status_change(
        &mut self,
        _: &EntryContext,
        _: &LeaderChanged,
    ) -> Running<'_, Applied> {
        Box::pin(async { Ok(Applied::default()) })
    }

    fn query(&mut self, _: &Bytes) -> Running<'_, Outcome> {
        Box::pin(async { Ok(Outcome::Reply(Bytes::new())) })
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        self.reader.take().map(|reader| Box::new(reader) as _)
    }

    fn save<'a>(&'a mut self, _: &EntryContext, _: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn restore(&mut self, _: &EntryContext, _: u32, _: Bytes) -> Running<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Answers how often it was asked.
struct Asked {
    slices: Slices,
    times: u64,
}

impl Reader for Asked {
    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Answer> {
        Box::pin(async move {
            self.times += 1;
            if request == LONG {
                return self.slices.run_on().await;
            }
            Ok(Answer {
                outcome: Outcome::Reply(self.times.to_string().into()),
                index: LogIndex(1),
                fuel: 1,
            })
        })
    }

    fn release(&mut self) {}
}

/// A node's parts, with one thread for machines, which are never more.
struct Stage {
    _home: tempfile::TempDir,
    router: Arc<Router>,
    disk: Arc<Disk>,
    pool: Arc<Pool>,
}

/// One machine on it.
struct Actor {
    worker: Worker,
    slices: Watched,
    queries: Watched,
    applied: Arc<AtomicU64>,
    gone: Receiver<()>,
}

impl Stage {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let router = Arc::new(Router::new(NodeId(1), 1));
        let config = DiskConfig {
            vfs: Arc::new(DiskVfs),
            dir: home.path(),
            cluster: "test",
            node: NodeId(1),
            sync_delay: Duration::ZERO,
            store: None,
            reserve: 0,
        };
        Self {
            disk: Disk::open(config, &router).unwrap(),
            _home: home,
            router,
            pool: Arc::new(Pool::bounded(1, 1).unwrap()),
        }
    }

    fn actor(&self, group: u64) -> Actor {
        let owner = Owner {
            key: GroupKey {
                group,
                incarnation: 1,
            },
            name: "test".to_owned(),
            life: Life(group),
            component: ComponentId::default(),
            memory: Arc::default(),
        };
        let (for_commands, slices) = watched();
        let (for_queries, queries) = watched();
        let (here, gone) = channel();
        let applied = Arc::default();
        let machine = Sliced {
            slices: for_commands,
            applied: Arc::clone(&applied),
            reader: Cell::new(Some(Asked {
                slices: for_queries,
                times: 0,
            })),
            _here: here,
        };
        let (disk, router, pool) = (&self.disk, &self.router, &self.pool);
        let worker = Worker::new(
            owner,
            Box::new(machine),
            None,
            Arc::clone(disk),
            Arc::clone(router),
            Arc::clone(pool),
        );
        Actor {
            worker,
            slices,
            queries,
            applied,
            gone,
        }
    }

    fn query(&self, request: &'static str) -> (Job, oneshot::Receiver<Result<QueryAnswer, Error>>) {
        let (answer, answered) = oneshot::channel();
        let permit = self.router.mailboxes()[0].admit(1).expect("room");
        let query = Query {
            request: request.into(),
            index: LogIndex(0),
            term: Term(1),
            asked: mailbox::Asked {
                answer,
                _permit: permit,
            },
        };
        (Job::Query(query), answered)
    }
}

impl Actor {
    fn apply(&self, index: u64, command: &'static str) {
        let context = EntryContext {
            index: LogIndex(index),
            ..EntryContext::default()
        };
        self.worker.push(Job::Work(Work::Apply {
            context,
            entry: Bytes::new(),
            calls: vec![Call::Commands(vec![command.into()])],
        }));
    }
}

fn answer_of(answered: oneshot::Receiver<Result<QueryAnswer, Error>>) -> Outcome {
    let answer = answered.blocking_recv().expect("an answer");
    answer.expect("the reader is there").outcome
}

// P-43
#[test]
fn a_call_that_goes_on_for_long_lets_all_others_go_on() {
    let stage = Stage::new();
    let long = stage.actor(0);
    long.apply(1, LONG);
    long.slices.begins();
    let others: Vec<_> = (1..=64).map(|group| stage.actor(group)).collect();
    for other in &others {
        (1..=20).for_each(|index| other.apply(index, "short"));
    }
    // Each gets its turn between two turns of the long one, and that goes on among them.
    let have_all = || others.iter().all(|other| other.applied.load(SeqCst) == 20);
    let mut slices = 0;
    while !have_all() {
        long.slices.may_end();
        long.slices.begins();
        slices += 1;
        assert!(slices < 1_000, "they wait for a call that never ends");
    }
    assert_eq!(long.applied.load(SeqCst), 0);
    long.worker.halt();
    long.slices.may_end();
    let gone = long.gone.recv_timeout(PATIENCE);
    assert_eq!(gone, Err(RecvTimeoutError::Disconnected));
}

// P-41
#[test]
fn a_long_call_ends_with_its_slice_when_its_group_goes() {
    let stage = Stage::new();
    let long = stage.actor(1);
    long.apply(1, LONG);
    for _ in 0..3 {
        long.slices.begins();
        long.slices.may_end();
    }
    long.slices.begins();
    long.worker.halt();
    long.slices.may_end();
    let gone = long.gone.recv_timeout(PATIENCE);
    assert_eq!(gone, Err(RecvTimeoutError::Disconnected));
    // No further slice.
    assert!(long.slices.begun.try_recv().is_err());
    let (release, released) = oneshot::channel();
    long.worker.release(release);
    released
        .blocking_recv()
        .expect("it ends")
        .expect("its files stay");
}

// P-41
#[test]
fn a_query_ends_with_its_slice_when_nobody_waits_for_it() {
    let stage = Stage::new();
    let actor = stage.actor(1);
    let ask = |request| {
        let (query, answered) = stage.query(request);
        actor.worker.push(query);
        answered
    };
    assert_eq!(answer_of(ask("short")), Outcome::Reply("1".into()));
    let given_up = ask(LONG);
    actor.queries.begins();
    let waits = ask("short");
    // Commands do not wait for it.
    actor.apply(1, "short");
    let mut slices = 0;
    while actor.applied.load(SeqCst) == 0 {
        actor.queries.may_end();
        actor.queries.begins();
        slices += 1;
        assert!(
            slices < 1_000,
            "a command waits for a query that never ends"
        );
    }
    drop(given_up);
    actor.queries.may_end();
    // The same reader goes on.
    assert_eq!(answer_of(waits), Outcome::Reply("3".into()));

    let refused = ask(LONG);
    actor.queries.begins();
    actor.worker.halt();
    actor.queries.may_end();
    let refused = refused.blocking_recv().expect("an answer");
    assert!(refused.is_err(), "{refused:?}");
}
