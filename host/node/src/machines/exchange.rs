//! Exchanging the machine of a group: prepared at the entry that asks for it, done when a later entry decides so, and again
//! at a restart after that.

use std::fmt;
use std::sync::Arc;

use skep_core::deployment::Deployment;
use skep_core::id::LogIndex;
use skep_machine::state_machine::{MachineError, StateMachine};

/// Makes machines of one group.
///
/// # Concurrency
///
/// Called from machine threads, one call at a time for each group on a node. A call may block for as long as it takes to
/// fetch and compile a component: it holds up the group's own machine, and no other.
///
/// # Failure
///
/// [`MachineError::Guest`] says that this deployment can start nowhere: an activation is refused on every replica alike.
/// [`MachineError::Local`] says that this node cannot start it now: it is asked again. If a majority can, the group goes on
/// and leaves this node behind until it can; otherwise the activation is given up at its deadline.
pub trait MachineFactory: Send + Sync {
    /// A machine of this deployment, as it is before a group's first entry; the same on every replica.
    fn make(&self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, MachineError>;

    /// As [`make`](Self::make), for a replica that is here already and goes on from what its log says that it runs: what bounds
    /// new machines must not stop it.
    fn make_again(&self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, MachineError> {
        self.make(deployment)
    }

    /// The group runs this since the entry of this index. Called on each replica, and again whenever that entry is applied
    /// anew after a restart; must not block.
    fn activated(&self, index: LogIndex, deployment: &Deployment) {
        let _ = (index, deployment);
    }
}

/// What lets a group exchange its machine. Without it, an activation is refused.
#[derive(Clone)]
pub struct Exchange {
    /// What the group ran at its first entry; the same on every replica, for ever.
    pub founding: Deployment,
    /// What the machine that the group is brought up with runs. If the log says otherwise, another one is made.
    pub current: Deployment,
    /// Makes others.
    pub factory: Arc<dyn MachineFactory>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("founding", &self.founding.component)
            .field("current", &self.current.component)
            .finish_non_exhaustive()
    }
}
