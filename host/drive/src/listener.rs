//! Who watches a driver.

use skep_core::activation::Decision;
use skep_core::deployment::Deployment;
use skep_core::effect::Call;
use skep_core::outcome::EntryContext;

use crate::activation::Lack;
use crate::barrier::CanonicalPoint;
use crate::state_machine::{Applied, MachineError};

/// Sees what a driver does, and changes nothing of it. Every method does nothing unless written otherwise.
#[expect(unused_variables, reason = "the names are documentation")]
pub trait Listener<M> {
    /// A call of an entry returned, with what the machine itself said: a fault of a hook, and the outcome of `init` and of a
    /// change of leader, which nobody waits for, are among it.
    fn called(&mut self, context: &EntryContext, call: &Call, said: &Applied) {}

    /// The group runs this machine from here on.
    fn replaced(&mut self, deployment: &Deployment, machine: &M) {}

    /// The machine has saved itself at a barrier, as so many bytes.
    fn saved(&mut self, context: &EntryContext, bytes: usize) {}

    /// The machine was rebuilt from the bytes of a snapshot.
    fn restored(&mut self, point: &CanonicalPoint) {}

    /// The machine was rebuilt from these bytes, which it saved, and goes on from them; with none, it goes on from what nobody
    /// keeps. Not told of a barrier that leaves an image: the machine goes on from what it did before.
    fn goes_on_from(&mut self, point: Option<&CanonicalPoint>) {}

    /// The machine cannot save itself at a barrier, or does not take what it has saved, as on every replica. It goes on as it
    /// is.
    fn no_snapshot(&mut self, context: &EntryContext, error: &MachineError) {}

    /// This node could take no image of the machine at a barrier. The machine goes on as it is.
    fn no_image(&mut self, context: &EntryContext, error: &MachineError) {}

    /// This node's machine cannot go on from the image that a snapshot is. It does nothing before it has
    /// another.
    fn not_resumed(&mut self, context: &EntryContext, error: &MachineError) {}

    /// The other machine of an activation was made, and has the state. Told once.
    fn prepared(&mut self, context: &EntryContext, deployment: &Deployment) {}

    /// The other machine of an activation is not to be had.
    fn lacks(&mut self, context: &EntryContext, deployment: &Deployment, lack: &Lack) {}

    /// What was decided of an activation is done.
    fn decided(&mut self, context: &EntryContext, deployment: &Deployment, decision: Decision) {}

    /// An activation was given up, and the machine that ran does not take what it has saved, as on every replica. It goes on
    /// as it is.
    fn not_rebuilt(&mut self, context: &EntryContext, error: &MachineError) {}

    /// An activation was given up, and this node cannot rebuild the machine that ran. It is asked again.
    fn waits_to_go_on(&mut self, context: &EntryContext, error: &MachineError) {}
}

/// Nobody watches.
impl<M> Listener<M> for () {}
