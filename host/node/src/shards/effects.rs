//! What replicas ask for is carried out: records, messages, snapshots, answers, work of machines.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use skep_core::effect::{Call, Effect, Work};
use skep_core::id::{LogIndex, NodeId};
use skep_core::input::Input;
use skep_core::message::{PeerMessage, SnapshotName};
use skep_log::Record;
use skep_store::convert;

use crate::disk::store::{Disk, Token};
use crate::error::Error;
use crate::machines::queries::Query;
use crate::machines::worker::Job;
use crate::pool::Pool;
use crate::shards::mailbox::{Completion, Event};
use crate::shards::outbox::Outbox;
use crate::shards::replica::{Replica, Waiting};
use crate::shards::router::{Router, TransferReporter};
use crate::transport::{Reporter, Transport};

/// The records of a round, by the log they belong to: one for almost all groups.
pub(super) type Records = Vec<(Arc<Disk>, Vec<(Record, Token)>)>;

/// Where effects go.
pub(super) struct Out<'a> {
    pub(super) router: &'a Arc<Router>,
    pub(super) transport: &'a Arc<dyn Transport>,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) outbox: &'a mut Outbox,
    pub(super) records: &'a mut Records,
}

impl Out<'_> {
    /// Answers whether the replica is to be removed.
    pub(super) fn carry_out(&mut self, replica: &mut Replica, effect: Effect) -> bool {
        match effect {
            Effect::Persist(persist) => {
                let number = persist.number;
                if let Some(snapshot) = &persist.snapshot {
                    replica.marks.push_back((number, snapshot.clone()));
                }
                let token = Token::Persisted {
                    group: replica.group(),
                    life: replica.life,
                    number,
                };
                let record = convert::record(replica.key, persist);
                match self
                    .records
                    .iter_mut()
                    .find(|(disk, _)| Arc::ptr_eq(disk, &replica.disk))
                {
                    Some((_, records)) => records.push((record, token)),
                    None => self
                        .records
                        .push((Arc::clone(&replica.disk), vec![(record, token)])),
                }
            }
            Effect::Send { to, message } => self.outbox.push(to, message),
            Effect::SendSnapshot {
                to,
                message,
                snapshot,
            } => self.send_snapshot(replica, to, message, snapshot),
            Effect::ReadLog {
                from,
                through,
                bytes,
            } => self.read_log(replica, (from, through), bytes),
            Effect::Machine(work) => self.work(replica, work),
            Effect::Reply { waiter, result } => replica.reply(waiter, result),
            Effect::QueryFailed { waiter, error } => {
                let group = replica.group();
                if let Some(waiting) = replica.waiters.remove(&waiter) {
                    waiting.fail(Error::proposal(group, error));
                }
            }
            Effect::Diverged {
                index,
                decided,
                here,
            } => replica.diverged(index, decided, here),
            Effect::GivenUp { index, commands } => {
                self.router.given_up.fetch_add(commands as u64, Relaxed);
                let (group, name) = (replica.key.group, &replica.route.name);
                let index = index.0;
                tracing::warn!(
                    group,
                    name,
                    index,
                    commands,
                    "commands were given up: every member of the group had stopped at them; their clients are answered `unrunnable`"
                );
            }
            Effect::Distrusted { from, why } => {
                self.router.distrusted.fetch_add(1, Relaxed);
                let (group, name) = (replica.key.group, &replica.route.name);
                tracing::debug!(
                    group,
                    name,
                    node = from.0,
                    why = why.code(),
                    "a message of another node is not believed"
                );
            }
            Effect::Leader(change) => self.router.leader_changed(&replica.route, change),
            Effect::Removed => return true,
            Effect::Halt { reason } => replica.halt(reason),
        }
        false
    }

    fn work(&mut self, replica: &mut Replica, work: Work) {
        match work {
            Work::Query {
                waiter,
                request,
                index,
                term,
            } => {
                if let Some(Waiting::Answer(asked)) = replica.waiters.remove(&waiter) {
                    replica.worker.push(Job::Query(Query {
                        request,
                        index,
                        term,
                        asked,
                    }));
                }
            }
            work => {
                let changes_members = match &work {
                    Work::Apply { calls, .. } => calls
                        .iter()
                        .any(|call| matches!(call, Call::ConfChange(_) | Call::Init(_))),
                    Work::Restore { .. } => true,
                    Work::Barrier { .. }
                    | Work::Prepare { .. }
                    | Work::Decide { .. }
                    | Work::Query { .. } => false,
                };
                replica.worker.push(Job::Work(work));
                if changes_members {
                    let members = replica.status().replica.members;
                    replica
                        .route
                        .set_members(members.iter().map(|member| member.node).collect());
                }
            }
        }
    }

    /// Reading waits for the disk, so it is done elsewhere.
    fn read_log(&self, replica: &Replica, range: (LogIndex, LogIndex), bytes: u64) {
        let (disk, key) = (Arc::clone(&replica.disk), replica.key);
        let (group, life) = (replica.group(), replica.life);
        let router = Arc::clone(self.router);
        self.pool.run(move || {
            let read = disk.read_log(key, range, bytes);
            let from = range.0;
            router.input(group, life, Input::LogRead { from, read });
        });
    }

    /// Opening verifies the whole file, so it is done elsewhere.
    fn send_snapshot(
        &self,
        replica: &Replica,
        to: NodeId,
        message: PeerMessage,
        snapshot: SnapshotName,
    ) {
        let (disk, key, group) = (Arc::clone(&replica.disk), replica.key, replica.group());
        let (router, life) = (Arc::clone(self.router), replica.life);
        let reporter = TransferReporter::new(Arc::clone(&router), to, group, life);
        let transport = Arc::clone(self.transport);
        self.pool
            .run(move || match disk.open_snapshot(key, &snapshot) {
                Ok(file) => transport.send_snapshot(
                    to,
                    message,
                    Arc::new(file),
                    &(Arc::new(reporter) as Arc<dyn Reporter>),
                ),
                Err(error) => {
                    tracing::warn!(group = group.0, to = to.0, %error, "a snapshot cannot be sent");
                    let event = if error.is_transient() {
                        Event::NotSent(reporter)
                    } else {
                        // The reporter is dropped, which reports the failure; Raft asks again, and there is none to send
                        // until there is a new one.
                        Event::Input(Input::SnapshotUnreadable {
                            index: snapshot.index,
                            reason: format!("its file cannot be read: {error}"),
                        })
                    };
                    router.complete(group, [Completion { group, life, event }]);
                }
            });
    }
}
