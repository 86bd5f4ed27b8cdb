//! What other nodes said of their logs since they were let in: noted durably now and then, so that one which is set back to an older
//! copy is found out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_core::id::NodeId;
use skep_log::{Heard, LogError};
use skep_types::past::Durable;
use skep_types::shared::lock;

use super::PeerCheck;
use crate::clock::sleep;

/// What was heard is durable after so long, or when the transport stops.
pub const REMEMBERED_WITHIN: Duration = Duration::from_secs(5);

/// Of each node that was let in. Its own life is not known to it before its log is open, so it is told with each word.
#[derive(Default)]
pub(super) struct Hearsay(Mutex<BTreeMap<u64, Word>>);

#[derive(Clone, Copy)]
struct Word {
    heard: Heard,
    is_noted: bool,
}

impl Hearsay {
    /// A node says how far its log is durable. Words out of order are passed over. `false` if it speaks in a former life: whatever it
    /// says is none of the present one's.
    pub(super) fn note(&self, node: NodeId, life: u64, durable: Durable) -> bool {
        let mut said = lock(&self.0);
        let heard = Heard { life, durable };
        let word = said.entry(node.0).or_insert(Word {
            heard,
            is_noted: false,
        });
        if (heard.life, heard.durable) > (word.heard.life, word.heard.durable) {
            *word = Word {
                heard,
                is_noted: false,
            };
        }
        heard.life == word.heard.life
    }

    /// What was heard of one node and is not durable yet.
    pub(super) fn of(&self, node: NodeId) -> Option<BTreeMap<u64, Heard>> {
        let said = lock(&self.0);
        let word = said.get(&node.0).filter(|word| !word.is_noted)?;
        Some([(node.0, word.heard)].into())
    }

    /// The node is none any more.
    pub(super) fn forget(&self, node: NodeId) {
        lock(&self.0).remove(&node.0);
    }

    fn news(&self) -> BTreeMap<u64, Heard> {
        let said = lock(&self.0);
        let news = said.iter().filter(|(_, word)| !word.is_noted);
        news.map(|(node, word)| (*node, word.heard)).collect()
    }

    fn noted(&self, heard: &BTreeMap<u64, Heard>) {
        let mut said = lock(&self.0);
        for (node, heard) in heard {
            if let Some(word) = said.get_mut(node) {
                word.is_noted = word.heard == *heard;
            }
        }
    }

    /// Makes durable what was heard.
    pub(super) async fn settle(self: &Arc<Self>, peers: &Arc<dyn PeerCheck>) {
        let heard = self.news();
        if heard.is_empty() {
            return;
        }
        let (said, peers) = (Arc::clone(self), Arc::clone(peers));
        let note = move || {
            peers.remember(&heard)?;
            said.noted(&heard);
            Ok::<_, LogError>(())
        };
        match tokio::task::spawn_blocking(note).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "what other nodes said of their logs is not noted yet");
            }
            Err(error) => tracing::error!(%error, "a note of what other nodes said did not end"),
        }
    }

    /// Does so now and then, for ever.
    pub(super) async fn keep(self: Arc<Self>, peers: Arc<dyn PeerCheck>) {
        loop {
            sleep(REMEMBERED_WITHIN).await;
            self.settle(&peers).await;
        }
    }
}
