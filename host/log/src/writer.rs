//! The thread that owns the log: it takes everything queued, writes it, syncs once, and reports.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use skep_types::shared::{lock, wait_while};

use crate::error::LogError;
use crate::frame::body_bound;
use crate::log::Log;
use crate::record::{GroupKey, Record};
use crate::stats::{Counters, LogStats};

/// The one thread that owns a [`Log`]. Each round takes all that is queued, so the busier the node, the more records
/// share one sync.
#[derive(Debug)]
pub struct LogWriter {
    _never: PhantomData<()>,
}

/// How the writer batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriterOptions {
    /// How long the writer waits after the first record of a round so that more share its sync; zero syncs at once.
    /// It delays the acknowledgement, which never comes before the sync.
    pub sync_delay: Duration,
}

/// What the writer reports, on its own thread.
#[derive(Debug)]
pub enum WriterEvent<T> {
    /// The records with these tokens are durable, in the order they were submitted.
    Persisted(Vec<T>),
    /// These groups should snapshot and truncate their log: they keep old segments alive.
    Heavy(Vec<GroupKey>),
    /// The record contradicts its group's log ([`LogError::is_record_error`]) and was not written. Nor will later
    /// records of the same group be; they are reported alike. All other groups go on.
    Rejected {
        /// The refused record's token.
        token: T,
        /// Why.
        error: LogError,
    },
    /// The log failed for good. Records not yet reported may or may not be durable; the node must stop. This is the
    /// last event.
    Poisoned {
        /// The first failure.
        error: LogError,
    },
}

/// The writer has stopped, because it was asked to or because the log failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log writer has stopped")]
pub struct Stopped;

/// Submits records to the writer. Clones share it; when the last one goes, the writer finishes what is queued and ends.
///
/// *Concurrency*: any thread. Records of one group must be submitted in order, by one thread at a time.
pub struct LogHandle<T> {
    owner: Arc<Owner<T>>,
}

/// A round takes at most this many bytes, so that no acknowledgement waits for more than a few milliseconds of disk.
const ROUND_BYTES: u64 = 8 << 20;

/// `submit` blocks while more than this is queued: a second or so of a slow disk's work.
const QUEUE_BYTES: u64 = 64 << 20;

/// Collection copies about this much between two rounds.
const COLLECT_BYTES: u64 = 1 << 20;

impl LogWriter {
    /// Starts the thread. `on_event` runs on it: it must not block, and must not submit.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn spawn<T: Send + 'static>(
        log: Log,
        options: WriterOptions,
        on_event: impl FnMut(WriterEvent<T>) + Send + 'static,
    ) -> io::Result<(LogHandle<T>, JoinHandle<()>)> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            filled: Condvar::new(),
            drained: Condvar::new(),
            counters: Arc::clone(&log.counters),
        });
        let owner = Arc::new(Owner {
            shared: Arc::clone(&shared),
        });
        let thread = thread::Builder::new()
            .name("skep-log".to_owned())
            .spawn(move || {
                let _end = MarkEnd(Arc::clone(&shared));
                lock(&shared.queue).thread = Some(thread::current().id());
                Writer {
                    log,
                    options,
                    on_event,
                    shared,
                    refused: BTreeSet::new(),
                }
                .run();
            })?;
        Ok((LogHandle { owner }, thread))
    }
}

impl<T> LogHandle<T> {
    /// Queues records, each with the token that reports it. Blocks while the queue is full. The records of one call
    /// stay together in order, but may be synced in several rounds.
    ///
    /// # Errors
    /// [`Stopped`]; then none of the records will be written.
    pub fn submit(&self, batch: Vec<(Record, T)>) -> Result<(), Stopped> {
        let sizes: Vec<u64> = batch.iter().map(|(record, _)| body_bound(record)).collect();
        let shared = &self.owner.shared;
        let mut queue = wait_while(&shared.drained, lock(&shared.queue), |queue| {
            queue.bytes >= QUEUE_BYTES && !queue.closed
        });
        if queue.closed {
            return Err(Stopped);
        }
        queue.bytes += sizes.iter().sum::<u64>();
        queue.items.extend(
            batch
                .into_iter()
                .zip(sizes)
                .map(|((record, token), size)| Item {
                    record,
                    token,
                    size,
                }),
        );
        drop(queue);
        shared.filled.notify_one();
        Ok(())
    }

    /// The log's counters.
    pub fn stats(&self) -> LogStats {
        self.owner.shared.counters.read()
    }

    /// Refuses further records, waits until everything queued is durable and reported and the log is closed. Called on
    /// the writer's own thread it does not wait.
    pub fn stop(self) {
        let shared = &self.owner.shared;
        let own = Some(thread::current().id());
        drop(wait_while(&shared.drained, shared.close(), |queue| {
            !queue.ended && queue.thread != own
        }));
    }
}

impl<T> Clone for LogHandle<T> {
    fn clone(&self) -> LogHandle<T> {
        LogHandle {
            owner: Arc::clone(&self.owner),
        }
    }
}

impl<T> std::fmt::Debug for LogHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle")
            .field("stats", &self.stats())
            .finish()
    }
}

/// Closes the queue when the last handle goes.
struct Owner<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        drop(self.shared.close());
    }
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    /// Somebody queued a record or closed the queue.
    filled: Condvar,
    /// The writer took records or ended.
    drained: Condvar,
    counters: Arc<Counters>,
}

struct Queue<T> {
    items: VecDeque<Item<T>>,
    bytes: u64,
    closed: bool,
    ended: bool,
    thread: Option<ThreadId>,
}

struct Item<T> {
    record: Record,
    token: T,
    size: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            items: VecDeque::new(),
            bytes: 0,
            closed: false,
            ended: false,
            thread: None,
        }
    }
}

impl<T> Shared<T> {
    fn close(&self) -> MutexGuard<'_, Queue<T>> {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        self.filled.notify_all();
        self.drained.notify_all();
        queue
    }

    /// Waits for records, then for the delay to let more come, and takes a round of them. Empty means: closed.
    fn take_round(&self, delay: Duration) -> Vec<Item<T>> {
        let mut queue = wait_while(&self.filled, lock(&self.queue), |queue| {
            queue.items.is_empty() && !queue.closed
        });
        if !delay.is_zero() {
            let wait = self.filled.wait_timeout_while(queue, delay, |queue| {
                !queue.closed && queue.bytes < ROUND_BYTES
            });
            (queue, _) = wait.unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        let mut count = 0;
        for item in &queue.items {
            if count > 0 && bytes + item.size > ROUND_BYTES {
                break;
            }
            bytes += item.size;
            count += 1;
        }
        queue.bytes -= bytes;
        let round = queue.items.drain(..count).collect();
        drop(queue);
        self.drained.notify_all();
        round
    }
}

/// Marks the writer as ended however its thread ends, so that nobody waits for it for ever.
struct MarkEnd<T>(Arc<Shared<T>>);

impl<T> Drop for MarkEnd<T> {
    fn drop(&mut self) {
        let mut queue = self.0.close();
        queue.ended = true;
        queue.items.clear();
        queue.bytes = 0;
        drop(queue);
        self.0.drained.notify_all();
    }
}

struct Writer<T, F> {
    log: Log,
    options: WriterOptions,
    on_event: F,
    shared: Arc<Shared<T>>,
    /// Groups one of whose records was refused; what follows it cannot be trusted either.
    refused: BTreeSet<GroupKey>,
}

impl<T, F: FnMut(WriterEvent<T>)> Writer<T, F> {
    fn run(mut self) {
        loop {
            let round = self.shared.take_round(self.options.sync_delay);
            if round.is_empty() {
                if let Err(error) = self.log.close() {
                    (self.on_event)(WriterEvent::Poisoned { error });
                }
                return;
            }
            if let Err(error) = self.persist(round).and_then(|()| self.maintain()) {
                // Refuse further records before anybody hears of the failure.
                drop(self.shared.close());
                (self.on_event)(WriterEvent::Poisoned { error });
                return;
            }
        }
    }

    fn persist(&mut self, round: Vec<Item<T>>) -> Result<(), LogError> {
        let mut tokens = Vec::with_capacity(round.len());
        let mut rejected = Vec::new();
        for Item { record, token, .. } in round {
            match self.append(&record) {
                Ok(()) => tokens.push(token),
                Err(error) if error.is_record_error() => rejected.push((token, error)),
                Err(error) => return Err(error),
            }
        }
        self.log.sync()?;
        if !tokens.is_empty() {
            (self.on_event)(WriterEvent::Persisted(tokens));
        }
        for (token, error) in rejected {
            (self.on_event)(WriterEvent::Rejected { token, error });
        }
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), LogError> {
        let key = record.key;
        // A tombstone is always welcome: it ends the group that went wrong.
        if self.refused.contains(&key) && !record.removed {
            return Err(LogError::InvalidRecord {
                key,
                reason: "an earlier record of the group was refused".to_owned(),
            });
        }
        let outcome = self.log.append(record);
        if outcome.as_ref().is_err_and(LogError::is_record_error) {
            self.refused.insert(key);
        }
        outcome
    }

    /// Work that nobody waits for: collection, and zeros ahead of the data.
    fn maintain(&mut self) -> Result<(), LogError> {
        if self.log.wants_collect() {
            let collected = self.log.collect(COLLECT_BYTES)?;
            if !collected.heavy.is_empty() {
                (self.on_event)(WriterEvent::Heavy(collected.heavy));
            }
        }
        self.log.prepare()
    }
}
