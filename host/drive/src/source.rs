//! Where a driver gets what is not in its work.

use bytes::Bytes;
use skep_core::deployment::Deployment;
use skep_core::form::Form;
use skep_core::message::SnapshotName;

use crate::failed::Failed;
use crate::state_machine::{MachineError, ReadImage};

/// The machine's part of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// What the bytes are.
    pub form: Form,
    /// Version of bytes that a machine saved.
    pub schema: u32,
    /// The bytes.
    pub guest: Bytes,
}

/// Gives a driver what its work only names.
pub trait Source<M> {
    /// A machine of what the log says that the group runs, as it is before a group's first entry. A node that lacks it at
    /// the moment may wait in here.
    ///
    /// # Errors
    /// [`Failed`]: there is none, and the replica cannot go on.
    fn current(&mut self, deployment: &Deployment) -> Result<M, Failed>;

    /// A machine of what the group may come to run, as it is before a group's first entry. Never waits: what is not there is
    /// asked for again.
    ///
    /// # Errors
    /// [`MachineError::Guest`]: it can start nowhere. [`MachineError::Local`]: not here, or not now.
    fn successor(&mut self, deployment: &Deployment) -> Result<M, MachineError>;

    /// The machine's part of a snapshot. A node that cannot read them at the moment may wait in
    /// here.
    ///
    /// # Errors
    /// [`Failed`]: the snapshot is damaged or gone.
    fn snapshot(&mut self, name: &SnapshotName) -> Result<Stored, Failed>;

    /// Reads the image in a snapshot again, whenever it is wanted, as long as there is no newer snapshot; none if that cannot be
    /// done.
    fn read_again(&mut self, name: &SnapshotName) -> Option<ReadImage> {
        let _ = name;
        None
    }
}
