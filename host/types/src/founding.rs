//! What makes a cluster itself: the stores that it was founded with.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use crate::id::NodeId;

/// Most founders of a cluster.
pub const FOUNDERS_MAX: usize = 64;

/// What a founding says, for ever: who founded the cluster, each with the store that it had. A store's id is drawn once, so no
/// two foundings are the same, and nobody has to draw anything for the cluster as a whole.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Founding {
    /// The cluster's name.
    pub cluster: String,
    /// Which life of the cluster this is: 1 from its founding on. A recovery after the loss of a majority begins another.
    pub incarnation: u64,
    /// The founders and their stores.
    pub founders: BTreeMap<NodeId, [u8; 16]>,
}

impl Founding {
    /// The first life of a cluster.
    pub fn new(cluster: impl Into<String>, founders: BTreeMap<NodeId, [u8; 16]>) -> Self {
        Self {
            cluster: cluster.into(),
            incarnation: 1,
            founders,
        }
    }

    /// What stands for a cluster that nobody founded, as programs that embed the library may have them: its name is all that
    /// tells it from others.
    pub fn unfounded(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            ..Self::default()
        }
    }

    /// The identity that follows from it.
    pub fn identity(&self) -> ClusterIdentity {
        let mut hash = Sha256::new();
        hash.update(b"skep cluster, 1\0");
        hash.update((self.cluster.len() as u64).to_be_bytes());
        hash.update(self.cluster.as_bytes());
        hash.update(self.incarnation.to_be_bytes());
        for (node, store) in &self.founders {
            hash.update(node.0.to_be_bytes());
            hash.update(store);
        }
        ClusterIdentity(hash.finalize().into())
    }
}

/// Tells a cluster from every other, also from those of the same name: the hash of its [`Founding`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterIdentity(pub [u8; 32]);

impl ClusterIdentity {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let whole = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate().filter(|_| whole) {
            *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
        }
        whole.then_some(Self(bytes))
    }

    /// Its first digits, for people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding(cluster: &str, founders: &[(u64, u8)]) -> Founding {
        let stores = founders.iter();
        let stores = stores.map(|(node, store)| (NodeId(*node), [*store; 16]));
        Founding::new(cluster, stores.collect())
    }

    #[test]
    fn whatever_is_otherwise_makes_another_identity() {
        let one = founding("bees", &[(1, 7), (2, 8)]);
        let mut recovered = one.clone();
        recovered.incarnation = 2;
        let all = [
            one.clone(),
            recovered,
            founding("wasps", &[(1, 7), (2, 8)]),
            founding("bees", &[(1, 8), (2, 7)]),
            founding("bees", &[(1, 7)]),
            founding("bees", &[(1, 7), (3, 8)]),
            Founding::unfounded("bees"),
        ];
        let identities: std::collections::BTreeSet<_> =
            all.iter().map(Founding::identity).collect();
        assert_eq!(identities.len(), all.len());
        assert_eq!(
            one.identity(),
            founding("bees", &[(2, 8), (1, 7)]).identity()
        );
    }

    #[test]
    fn an_identity_survives_its_text() {
        let identity = founding("bees", &[(1, 7)]).identity();
        assert_eq!(
            ClusterIdentity::parse(&identity.to_string()),
            Some(identity)
        );
        for wrong in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(ClusterIdentity::parse(wrong), None, "{wrong}");
        }
    }
}
