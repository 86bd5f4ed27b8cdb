//! Which node to ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use skep_types::id::GroupId;
use skep_types::shared::lock;

use crate::config::ClientConfig;
use crate::connection::Node;

/// Nodes remembered beyond those configured; a cluster has tens.
const MAX_NODES: usize = 256;

/// Groups whose leader is remembered; forgotten all at once beyond it, which costs a redirect each.
const MAX_LEADERS: usize = 64 << 10;

/// The nodes known, which of them to ask first, and who leads which group.
pub(crate) struct Routes {
    config: ClientConfig,
    configured: Vec<Arc<Node>>,
    preferred: AtomicUsize,
    learned: Mutex<Learned>,
}

#[derive(Default)]
struct Learned {
    nodes: HashMap<String, Arc<Node>>,
    leaders: HashMap<GroupId, Arc<Node>>,
}

impl Routes {
    pub(crate) fn new(config: ClientConfig) -> Self {
        let node = |address: &String| Arc::new(Node::new(address, &config));
        let configured = config.addresses.iter().map(node).collect();
        Self {
            config,
            configured,
            preferred: AtomicUsize::new(0),
            learned: Mutex::default(),
        }
    }

    /// How many nodes were configured.
    pub(crate) fn len(&self) -> usize {
        self.configured.len()
    }

    /// The leader of the group, or else any node.
    pub(crate) fn leader(&self, group: GroupId) -> Arc<Node> {
        let leader = lock(&self.learned).leaders.get(&group).cloned();
        leader.unwrap_or_else(|| self.any())
    }

    /// The node that is asked when it does not matter which.
    pub(crate) fn any(&self) -> Arc<Node> {
        let at = self.preferred.load(Ordering::Relaxed) % self.configured.len();
        Arc::clone(&self.configured[at])
    }

    /// A node said who leads the group. Says whether that was news.
    pub(crate) fn learn(&self, group: GroupId, address: &str) -> bool {
        let mut learned = lock(&self.learned);
        if learned
            .leaders
            .get(&group)
            .is_some_and(|node| node.address() == address)
        {
            return false;
        }
        let configured = self
            .configured
            .iter()
            .find(|node| node.address() == address);
        let node = match configured.or_else(|| learned.nodes.get(address)).cloned() {
            Some(node) => node,
            None => {
                if learned.nodes.len() >= MAX_NODES {
                    learned.nodes.clear();
                }
                let node = Arc::new(Node::new(address, &self.config));
                learned.nodes.insert(address.to_owned(), Arc::clone(&node));
                node
            }
        };
        if learned.leaders.len() >= MAX_LEADERS {
            learned.leaders.clear();
        }
        learned.leaders.insert(group, node);
        true
    }

    /// The node did not do: it is not the leader, or did not answer. Others are asked next.
    pub(crate) fn avoid(&self, group: GroupId, node: &Arc<Node>) {
        let mut learned = lock(&self.learned);
        if learned
            .leaders
            .get(&group)
            .is_some_and(|leader| Arc::ptr_eq(leader, node))
        {
            learned.leaders.remove(&group);
        }
        drop(learned);
        let at = self.preferred.load(Ordering::Relaxed);
        if Arc::ptr_eq(&self.configured[at % self.configured.len()], node) {
            // If another request has moved on meanwhile, that will do.
            let _ = self.preferred.compare_exchange(
                at,
                at.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}
