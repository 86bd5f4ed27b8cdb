//! What goes wrong.

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// The power of a node fails: unsynced writes are lost, kept or torn.
    Crash,
    /// A process ends; the system keeps what it wrote.
    Kill,
    /// A process ends again and again, each time as soon as it has started.
    Flap,
    /// The power fails between two calls of the disk, a random number of calls from now.
    PowerCut,
    /// A coming call of the disk fails.
    DiskError,
    /// The disk is full for a while.
    DiskFull,
    /// The disk is slow for a while.
    DiskSlow,
    /// A byte on the disk of a node that is down changes.
    BitRot,
    /// A node loses its disk.
    Wipe,
    /// A node does nothing for a while, and then goes on as if nothing had been; half the time its peers have closed their
    /// connections meanwhile, its clients have not.
    Pause,
    /// Some nodes cannot talk with the others.
    Partition,
    /// One node cannot send to another, which can send to it.
    OneWay,
    /// A message of long ago arrives again, also one of a former life of its group.
    Stale,
    /// A member is added or removed.
    Membership,
    /// A node that is new comes up, and is added to a group.
    Join,
    /// A node is taken out of all its groups, and is thrown away with its disk.
    Retire,
    /// The same, and one that is new takes its places; or those of one that has lost its disk.
    Replace,
    /// A node is told that the process of another has ended, which runs.
    Rumour,
    /// Somebody asks for another leader.
    Transfer,
    /// A replica stands for election.
    Campaign,
    /// Somebody asks for a snapshot.
    Snapshot,
    /// Somebody wants a group to go on with another component, and sometimes thinks better of it.
    Upgrade,
    /// A node's machines cannot run some of the commands for a while; half the time those of all nodes.
    Sick,
    /// The machine of one replica goes wrong: its state, and what it answers from then on, is another.
    Wrong,
    /// A group is removed and created again under its id.
    Recreate,
    /// A node's wall clock jumps.
    Clock,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Crash,
        Self::Kill,
        Self::Flap,
        Self::PowerCut,
        Self::DiskError,
        Self::DiskFull,
        Self::DiskSlow,
        Self::BitRot,
        Self::Wipe,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Stale,
        Self::Membership,
        Self::Join,
        Self::Retire,
        Self::Replace,
        Self::Rumour,
        Self::Transfer,
        Self::Campaign,
        Self::Snapshot,
        Self::Upgrade,
        Self::Sick,
        Self::Wrong,
        Self::Recreate,
        Self::Clock,
    ];
}
