//! Messages of one round, merged: one batch for each destination and priority, over all groups.

use std::collections::HashMap;
use std::sync::Arc;

use skep_core::id::NodeId;
use skep_core::message::{Batch, PeerMessage, Priority};

use crate::transport::{Reporter, Transport};

/// Bytes of one batch; a larger round makes several. Well below the frame limit of 64 MiB, which one entry and its
/// neighbours must fit into.
const BATCH_BYTES_MAX: usize = 8 << 20;

pub(crate) struct Outbox {
    node: NodeId,
    open: HashMap<(Priority, NodeId), (Batch, usize)>,
    full: Vec<Batch>,
}

impl Outbox {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            open: HashMap::new(),
            full: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, to: NodeId, message: PeerMessage) {
        let priority = message.body.priority();
        let size = message.body.size();
        let from = self.node;
        let empty = || Batch {
            from,
            to,
            priority,
            messages: Default::default(),
        };
        let (batch, bytes) = self
            .open
            .entry((priority, to))
            .or_insert_with(|| (empty(), 0));
        if *bytes > 0 && *bytes + size > BATCH_BYTES_MAX {
            self.full.push(std::mem::replace(batch, empty()));
            *bytes = 0;
        }
        *bytes += size;
        batch
            .messages
            .entry(message.group)
            .or_default()
            .push(message);
    }

    /// Sends everything, the most urgent first; what was full first within a priority, so that nothing overtakes.
    pub(crate) fn flush(&mut self, transport: &dyn Transport, reporter: &Arc<dyn Reporter>) {
        if self.open.is_empty() {
            return;
        }
        let mut batches = std::mem::take(&mut self.full);
        batches.extend(self.open.drain().map(|(_, (batch, _))| batch));
        batches.sort_by_key(|batch| std::cmp::Reverse(batch.priority));
        for batch in batches {
            transport.send(batch, reporter);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use skep_core::id::{GroupId, Incarnation, ReplicaId, RequestId};
    use skep_core::message::{Body, Forward};
    use skep_core::proposal::{Command, Proposal};
    use skep_log::SnapshotFile;

    use super::*;
    use crate::error::Error;
    use crate::transport::SnapshotStatus;

    #[derive(Default)]
    struct Seen(Mutex<Vec<Batch>>);

    impl Transport for Seen {
        fn send(&self, batch: Batch, _: &Arc<dyn Reporter>) {
            self.0.lock().expect("no panic").push(batch);
        }

        fn send_snapshot(
            &self,
            _: NodeId,
            _: PeerMessage,
            _: Arc<SnapshotFile>,
            _: &Arc<dyn Reporter>,
        ) {
        }
    }

    struct Nobody;

    impl Reporter for Nobody {
        fn report_unreachable(&self, _: GroupId, _: NodeId) -> Result<(), Error> {
            Ok(())
        }

        fn report_snapshot(&self, _: GroupId, _: NodeId, _: SnapshotStatus) -> Result<(), Error> {
            Ok(())
        }
    }

    fn message(group: u64, body: Body) -> PeerMessage {
        PeerMessage {
            group: GroupId(group),
            incarnation: Incarnation(1),
            from: ReplicaId(1),
            to: ReplicaId(2),
            body,
        }
    }

    fn bulky(token: u64, bytes: usize) -> Body {
        let command = Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data: Bytes::from(vec![0; bytes]),
        };
        Body::Forward(vec![Forward {
            token,
            proposal: Proposal::Command(command),
        }])
    }

    fn heartbeat() -> Body {
        let msg_type = raft::eraftpb::MessageType::MsgHeartbeat;
        let message = raft::eraftpb::Message {
            msg_type,
            ..Default::default()
        };
        Body::Raft(message)
    }

    fn token(message: &PeerMessage) -> Option<u64> {
        match &message.body {
            Body::Forward(forwards) => forwards.first().map(|forward| forward.token),
            _ => None,
        }
    }

    #[test]
    fn one_batch_for_each_destination_and_priority_the_urgent_first() {
        let mut outbox = Outbox::new(NodeId(1));
        for group in 1..=3 {
            for to in [2, 3] {
                outbox.push(NodeId(to), message(group, bulky(group, 1)));
                outbox.push(NodeId(to), message(group, heartbeat()));
            }
        }
        let seen = Seen::default();
        outbox.flush(&seen, &(Arc::new(Nobody) as Arc<dyn Reporter>));
        let batches = seen.0.into_inner().expect("no panic");
        let priorities: Vec<_> = batches.iter().map(|batch| batch.priority).collect();
        assert_eq!(
            priorities,
            [
                Priority::High,
                Priority::High,
                Priority::Normal,
                Priority::Normal
            ]
        );
        assert!(
            batches
                .iter()
                .all(|batch| batch.len() == 3 && batch.from == NodeId(1))
        );
    }

    #[test]
    fn a_large_round_is_split_in_order() {
        let mut outbox = Outbox::new(NodeId(1));
        for token in 0..5 {
            outbox.push(NodeId(2), message(1, bulky(token, BATCH_BYTES_MAX / 2)));
        }
        let seen = Seen::default();
        outbox.flush(&seen, &(Arc::new(Nobody) as Arc<dyn Reporter>));
        let batches = seen.0.into_inner().expect("no panic");
        assert!(batches.len() > 1);
        let tokens: Vec<_> = batches
            .iter()
            .flat_map(|batch| &batch.messages[&GroupId(1)])
            .map(token)
            .collect();
        assert_eq!(tokens, (0..5).map(Some).collect::<Vec<_>>());
    }
}
