//! Why nothing is planned, or carried out.

use std::path::PathBuf;

use skep_core::id::NodeId;

/// Why there is no plan, or none is carried out. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A description or a plan cannot be understood.
    #[error("the file cannot be understood: {0}")]
    Unreadable(String),
    /// A plan is not what it was when it was made.
    #[error("the plan was changed since it was made; make another one (`skep recover plan`)")]
    Tampered,
    /// A directory belongs to no cluster.
    #[error("{} belongs to no cluster, so there is nothing to recover in it", .0.display())]
    Unfounded(PathBuf),
    /// There is nothing to plan with.
    #[error("no directory was described; name those of all nodes that are left")]
    Nothing,
    /// Two directories are of one node.
    #[error("two of the directories are of node {0}; leave the copy out")]
    Twice(NodeId),
    /// They are of two clusters, or of two lives of one.
    #[error(
        "the directories of nodes {0} and {1} belong to different clusters, or a plan was carried out in one of them and not in the \
         other: then run `skep recover apply` with that plan in both"
    )]
    Apart(NodeId, NodeId),
    /// Nobody has a usable catalogue.
    #[error("no directory has a usable replica of the catalogue (group 0): {0}")]
    NoCatalogue(String),
    /// A directory is none of the cluster's as the catalogue has it.
    #[error(
        "the catalogue that is left does not know node {0} with this store; leave its directory out, and have the node join anew"
    )]
    Stranger(NodeId),
    /// The operator gives up others than those that are missing.
    #[error(
        "missing are the nodes {missing}, and {said} were named as lost. Describe the directory of each node that is not lost, and \
         name all others with --lost"
    )]
    NotTheLost {
        /// The nodes of the catalogue that no directory is of.
        missing: String,
        /// Those that were named.
        said: String,
    },
    /// Every group has its majority.
    #[error(
        "every group has a majority of its voters among these nodes, the catalogue too: nothing has to be forced. Start them, and \
         take the lost ones out with `skep node remove`"
    )]
    NotNeeded,
    /// Groups would be lost.
    #[error(
        "of {0} no usable replica is left. Find the directory of another node that has one, or give them up with --give-up-groups"
    )]
    GroupsGone(String),
    /// Nodes that should be lost answer.
    #[error(
        "{0} answers, so it is not lost. Stop it and describe its directory too; or switch the machine off for good, and try again"
    )]
    Alive(String),
    /// A directory is not of the plan.
    #[error("the plan does not name node {0} with this store as a survivor")]
    NotPlanned(NodeId),
    /// Files that this process makes would be somebody else's.
    #[error(
        "{} belongs to user {}, and the node could not read what another user writes there; run this as that user",
        .0.display(), .1
    )]
    NotOwner(PathBuf, u32),
    /// The plan would not fit into what a log takes.
    #[error("the plan cannot be written down: {0}")]
    Unwritable(String),
}
