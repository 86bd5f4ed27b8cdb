//! What makes a cluster itself: the stores that it was founded with.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use crate::id::NodeId;

/// Most founders of a cluster, and most survivors of a forced recovery.
pub const FOUNDERS_MAX: usize = 64;
/// Former identities of a cluster that are remembered, the latest ones: whoever shows an older one is a stranger.
pub const FORMER_MAX: usize = 16;

/// What a founding says, for ever: who founded the cluster, each with the store that it had. A store's id is drawn once, so no
/// two foundings are the same, and nobody has to draw anything for the cluster as a whole.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Founding {
    /// The cluster's name.
    pub cluster: String,
    /// Which life of the cluster this is: 1 from its founding on. A recovery after the loss of a majority begins another.
    pub incarnation: u64,
    /// The founders and their stores; those of a later life are the survivors that it began with.
    pub founders: BTreeMap<NodeId, [u8; 16]>,
    /// How this life came to follow on another one; nothing in the first.
    pub recovery: Option<Recovery>,
}

/// The forced recovery that began a life of a cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Recovery {
    /// sha256 of the plan. Two plans over the same survivors make two clusters.
    pub plan: [u8; 32],
    /// The identities that the cluster had before, the latest last; at most [`FORMER_MAX`].
    pub former: Vec<ClusterIdentity>,
}

impl Recovery {
    /// That of the plan of this digest, after the life of an identity that had these before it.
    pub fn after(last: ClusterIdentity, former: &[ClusterIdentity], plan: [u8; 32]) -> Self {
        let mut former = former.to_vec();
        former.push(last);
        let forgotten = former.len().saturating_sub(FORMER_MAX);
        former.drain(..forgotten);
        Self { plan, former }
    }
}

impl Founding {
    /// The first life of a cluster.
    pub fn new(cluster: impl Into<String>, founders: BTreeMap<NodeId, [u8; 16]>) -> Self {
        Self {
            cluster: cluster.into(),
            incarnation: 1,
            founders,
            recovery: None,
        }
    }

    /// The next life of this cluster, with these survivors and as the plan of this digest says.
    pub fn recovered(&self, survivors: BTreeMap<NodeId, [u8; 16]>, plan: [u8; 32]) -> Self {
        Self {
            cluster: self.cluster.clone(),
            incarnation: self.incarnation.saturating_add(1),
            founders: survivors,
            recovery: Some(Recovery::after(self.identity(), self.former(), plan)),
        }
    }

    /// The identities that the cluster had before, as far as they are remembered.
    pub fn former(&self) -> &[ClusterIdentity] {
        self.recovery
            .as_ref()
            .map_or(&[], |recovery| &recovery.former)
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
        if let Some(recovery) = &self.recovery {
            hash.update(b"recovered\0");
            hash.update(recovery.plan);
            for former in &recovery.former {
                hash.update(former.0);
            }
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
        let recovered = one.recovered(one.founders.clone(), [1; 32]);
        assert_eq!(recovered.former(), [one.identity()]);
        let again = recovered.recovered(one.founders.clone(), [1; 32]);
        assert_eq!(again.former(), [one.identity(), recovered.identity()]);
        let all = [
            one.clone(),
            one.recovered(one.founders.clone(), [2; 32]),
            recovered,
            again,
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
    fn the_oldest_identities_are_forgotten() {
        let mut life = founding("bees", &[(1, 7)]);
        let first = life.identity();
        for plan in 0..=FORMER_MAX as u8 {
            life = life.recovered(life.founders.clone(), [plan; 32]);
        }
        assert_eq!(life.former().len(), FORMER_MAX);
        assert!(!life.former().contains(&first));
        assert_eq!(life.incarnation, FORMER_MAX as u64 + 2);
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
