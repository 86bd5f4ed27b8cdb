//! What a shard is told: a queue that many write and the one shard thread drains in rounds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use skep_core::id::{GroupId, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{PeerMessage, Priority};
use skep_core::proposal::{Proposal, Response};
use skep_types::shared::{lock, wait_while};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::shards::replica::{Life, Replica};
use crate::shards::router::TransferReporter;
use crate::status::QueryAnswer;

/// Requests, and separately appends, a shard takes in one round, so that heartbeats and ticks, taken whole each round,
/// never wait for more than this.
const ROUND_MAX: usize = 4096;

/// Bytes of appends and answers that wait for a shard. Beyond it they are dropped, as by a lossy network; Raft repeats.
const NORMAL_BYTES_MAX: usize = 64 << 20;

/// Bytes of urgent messages that wait for a shard. They are some hundred bytes and a shard takes all of them each round,
/// so this is minutes of heartbeats for thousands of groups: reached only when the shard is not running at all.
const HIGH_BYTES_MAX: usize = 256 << 20;

/// Bytes of requests without an answer that one shard holds, wherever they wait: mailbox, replica, machine.
const REQUEST_BYTES_MAX: usize = 256 << 20;

/// Requests without an answer that one shard holds: four groups' worth of full queues.
const REQUESTS_MAX: usize = 256 << 10;

/// The answer to a proposal goes here.
pub(crate) struct Asked<T> {
    pub(crate) answer: oneshot::Sender<Result<T, Error>>,
    pub(crate) _permit: Permit,
}

impl<T> Asked<T> {
    /// Nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    /// Answers; nobody may be there any more.
    pub(crate) fn answer(self, result: Result<T, Error>) {
        drop(self.answer.send(result));
    }
}

/// What is done with a replica, or told why not.
type Act = Box<dyn FnOnce(Result<&mut Replica, Error>) + Send>;

/// What is seen of a replica, or told why not.
type Look = Box<dyn FnOnce(Result<&Replica, Error>) + Send>;

/// What a caller asks of a replica.
pub(crate) enum Request {
    Install(Box<Replica>),
    Propose {
        group: GroupId,
        waiter: Waiter,
        proposal: Proposal,
        asked: Asked<Response>,
    },
    Query {
        group: GroupId,
        waiter: Waiter,
        request: Bytes,
        linearizable: bool,
        asked: Asked<QueryAnswer>,
    },
    Forget {
        group: GroupId,
        waiter: Waiter,
    },
    /// Something that is done at once with a replica that is not halted.
    Act(GroupId, Act),
    /// Something that is seen at once of any replica.
    Look(GroupId, Look),
    /// Gives a faulted replica up, to be brought up again from its files.
    Park {
        group: GroupId,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Remove {
        group: GroupId,
        done: oneshot::Sender<Result<(), Error>>,
    },
}

impl Request {
    pub(crate) fn act<T: Send + 'static>(
        group: GroupId,
        act: impl FnOnce(&mut Replica) -> T + Send + 'static,
        done: oneshot::Sender<Result<T, Error>>,
    ) -> Self {
        let act = |found: Result<&mut Replica, _>| drop(done.send(found.map(act)));
        Self::Act(group, Box::new(act))
    }

    pub(crate) fn look<T: Send + 'static>(
        group: GroupId,
        look: impl FnOnce(&Replica) -> T + Send + 'static,
        done: oneshot::Sender<Result<T, Error>>,
    ) -> Self {
        let look = |found: Result<&Replica, _>| drop(done.send(found.map(look)));
        Self::Look(group, Box::new(look))
    }
}

/// Something a replica has waited for; dropped if the replica lives another life by now.
pub(crate) struct Completion {
    pub(crate) group: GroupId,
    pub(crate) life: Life,
    pub(crate) event: Event,
}

/// Most events are inputs, which a box would only make dearer.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Event {
    Input(Input),
    /// The record of this number is on stable storage.
    Persisted {
        number: u64,
    },
    /// The replica cannot go on.
    Broken {
        reason: String,
    },
    /// A snapshot could not be sent for want of something that may be there again soon.
    NotSent(TransferReporter),
    /// The log holds much of this group and asks it to snapshot.
    Heavy,
}

pub(crate) struct FromPeer {
    pub(crate) from: NodeId,
    pub(crate) message: PeerMessage,
}

/// What a shard takes in one round, in the order it is to be handled.
#[derive(Default)]
pub(crate) struct Round {
    /// A tick, with the wall clock.
    pub(crate) tick: Option<u64>,
    /// Nodes whose process has ended.
    pub(crate) gone: Vec<NodeId>,
    pub(crate) high: Vec<FromPeer>,
    pub(crate) completions: Vec<Completion>,
    pub(crate) normal: Vec<FromPeer>,
    pub(crate) requests: Vec<Request>,
}

/// The queue of one shard.
#[derive(Default)]
pub(crate) struct Mailbox {
    queues: Mutex<Queues>,
    arrived: Condvar,
    held: Arc<Held>,
}

#[derive(Default)]
struct Queues {
    tick: Option<u64>,
    gone: Vec<NodeId>,
    high: Vec<FromPeer>,
    high_bytes: usize,
    completions: Vec<Completion>,
    normal: VecDeque<FromPeer>,
    normal_bytes: usize,
    requests: VecDeque<Request>,
    closed: bool,
}

/// What one shard holds of unanswered requests.
#[derive(Default)]
struct Held {
    bytes: AtomicUsize,
    count: AtomicUsize,
}

/// The right to have one request in flight; given back when dropped.
pub(crate) struct Permit {
    held: Arc<Held>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.bytes, Relaxed);
        self.held.count.fetch_sub(1, Relaxed);
    }
}

impl Mailbox {
    /// Room for a request of this many bytes, or `None` if the shard holds too much.
    pub(crate) fn admit(&self, bytes: usize) -> Option<Permit> {
        let permit = Permit {
            held: Arc::clone(&self.held),
            bytes,
        };
        let bytes = self.held.bytes.fetch_add(bytes, Relaxed) + bytes;
        let count = self.held.count.fetch_add(1, Relaxed) + 1;
        (bytes <= REQUEST_BYTES_MAX && count <= REQUESTS_MAX).then_some(permit)
    }

    /// Requests in flight.
    pub(crate) fn held(&self) -> usize {
        self.held.count.load(Relaxed)
    }

    /// A tick; one that is not handled yet is replaced.
    pub(crate) fn tick(&self, now: u64) {
        let mut queues = lock(&self.queues);
        queues.tick = Some(now);
        self.wake(queues);
    }

    /// The process of a node has ended. Each node is named once in a round, so they are not more than there are nodes.
    pub(crate) fn gone(&self, node: NodeId) {
        let mut queues = lock(&self.queues);
        if !queues.closed && !queues.gone.contains(&node) {
            queues.gone.push(node);
        }
        self.wake(queues);
    }

    /// Messages of one priority; answers how many were dropped.
    pub(crate) fn deliver(&self, priority: Priority, messages: Vec<FromPeer>) -> usize {
        let mut queues = lock(&self.queues);
        let mut dropped = 0;
        for message in messages {
            let bytes = message.message.body.size();
            let queues = &mut *queues;
            let (held, limit) = match priority {
                Priority::High => (&mut queues.high_bytes, HIGH_BYTES_MAX),
                Priority::Normal | Priority::Low => (&mut queues.normal_bytes, NORMAL_BYTES_MAX),
            };
            if queues.closed || *held + bytes > limit {
                dropped += 1;
                continue;
            }
            *held += bytes;
            match priority {
                Priority::High => queues.high.push(message),
                Priority::Normal | Priority::Low => queues.normal.push_back(message),
            }
        }
        self.wake(queues);
        dropped
    }

    /// Completions. There are never more than the replicas have asked for, so they have no limit of their own.
    pub(crate) fn complete(&self, completions: impl IntoIterator<Item = Completion>) {
        let mut queues = lock(&self.queues);
        if !queues.closed {
            queues.completions.extend(completions);
        }
        self.wake(queues);
    }

    /// A request; given back if the shard has stopped.
    pub(crate) fn request(&self, request: Request) -> Result<(), Box<Request>> {
        let mut queues = lock(&self.queues);
        if queues.closed {
            return Err(Box::new(request));
        }
        queues.requests.push_back(request);
        self.wake(queues);
        Ok(())
    }

    /// Takes nothing more; what waits is still given out.
    pub(crate) fn close(&self) {
        let mut queues = lock(&self.queues);
        queues.closed = true;
        self.wake(queues);
    }

    /// Waits until there is something, or `None` when the mailbox is closed and empty.
    pub(crate) fn take(&self) -> Option<Round> {
        let mut queues = wait_while(&self.arrived, lock(&self.queues), |queues| {
            !queues.closed && queues.is_empty()
        });
        if queues.is_empty() {
            return None;
        }
        let queues = &mut *queues;
        let normal = queues.normal.len().min(ROUND_MAX);
        let normal: Vec<_> = queues.normal.drain(..normal).collect();
        queues.normal_bytes -= normal
            .iter()
            .map(|message| message.message.body.size())
            .sum::<usize>();
        queues.high_bytes = 0;
        let requests = queues.requests.len().min(ROUND_MAX);
        Some(Round {
            tick: queues.tick.take(),
            gone: std::mem::take(&mut queues.gone),
            high: std::mem::take(&mut queues.high),
            completions: std::mem::take(&mut queues.completions),
            normal,
            requests: queues.requests.drain(..requests).collect(),
        })
    }

    fn wake(&self, queues: MutexGuard<'_, Queues>) {
        drop(queues);
        self.arrived.notify_one();
    }
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.tick.is_none()
            && self.gone.is_empty()
            && self.high.is_empty()
            && self.completions.is_empty()
            && self.normal.is_empty()
            && self.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::{Incarnation, ReplicaId, RequestId};
    use skep_core::message::{Body, Forward};
    use skep_core::proposal::Command;

    use super::*;

    fn bulky(bytes: usize) -> FromPeer {
        let command = Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data: Bytes::from(vec![0; bytes]),
        };
        let body = Body::Forward(vec![Forward {
            token: 1,
            proposal: Proposal::Command(command),
        }]);
        let message = PeerMessage {
            group: GroupId(1),
            incarnation: Incarnation(1),
            from: ReplicaId(1),
            to: ReplicaId(2),
            body,
        };
        FromPeer {
            from: NodeId(1),
            message,
        }
    }

    fn urgent() -> FromPeer {
        let mut message = bulky(0);
        message.message.body = Body::Gone;
        message
    }

    #[test]
    fn appends_beyond_the_bound_are_dropped_and_urgent_ones_never() {
        let mailbox = Mailbox::default();
        let megabyte = 1 << 20;
        let fitting = NORMAL_BYTES_MAX / megabyte - 1;
        assert_eq!(
            mailbox.deliver(
                Priority::Normal,
                (0..fitting).map(|_| bulky(megabyte)).collect()
            ),
            0
        );
        assert_eq!(
            mailbox.deliver(Priority::Normal, vec![bulky(2 * megabyte), bulky(0)]),
            1
        );
        assert_eq!(mailbox.deliver(Priority::High, vec![urgent(), urgent()]), 0);
        let round = mailbox.take().expect("there is mail");
        assert_eq!((round.high.len(), round.normal.len()), (2, fitting + 1));
        assert_eq!(
            mailbox.deliver(Priority::Normal, vec![bulky(2 * megabyte)]),
            0
        );
    }

    #[test]
    fn late_ticks_become_one_and_bulk_never_fills_a_round() {
        let mailbox = Mailbox::default();
        mailbox.deliver(
            Priority::Normal,
            (0..ROUND_MAX + 1).map(|_| bulky(0)).collect(),
        );
        mailbox.tick(1);
        mailbox.tick(2);
        let round = mailbox.take().expect("there is mail");
        assert_eq!((round.tick, round.normal.len()), (Some(2), ROUND_MAX));
        let round = mailbox.take().expect("there is mail");
        assert_eq!((round.tick, round.normal.len()), (None, 1));
    }

    #[test]
    fn room_is_given_back() {
        let mailbox = Mailbox::default();
        let permit = mailbox
            .admit(REQUEST_BYTES_MAX)
            .expect("the mailbox is empty");
        assert!(mailbox.admit(1).is_none());
        drop(permit);
        assert!(mailbox.admit(1).is_some());
        assert_eq!(mailbox.held(), 0);
    }

    #[test]
    fn a_closed_mailbox_gives_out_what_it_has_and_takes_nothing() {
        let mailbox = Mailbox::default();
        let forget = || Request::Forget {
            group: GroupId(1),
            waiter: 1,
        };
        assert!(mailbox.request(forget()).is_ok());
        mailbox.close();
        assert!(mailbox.request(forget()).is_err());
        assert_eq!(mailbox.take().map(|round| round.requests.len()), Some(1));
        assert!(mailbox.take().is_none());
    }
}
