//! How urgent messages are.

/// How urgent a message is. A message of a higher priority must not wait behind one of a lower priority on the way, so
/// each priority has connections of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Priority {
    /// Snapshots, each on its way by itself.
    Low = 0,
    /// Appends, their answers and forwarded proposals; in order for each (peer, group).
    Normal = 1,
    /// Heartbeats, votes, read-index rounds.
    High = 2,
}

impl Priority {
    /// All priorities, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}
