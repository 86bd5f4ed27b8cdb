//! What a machine is expected to do.

use std::fmt::Display;
use std::hash::Hash;

use crate::history::Operation;

/// The sequential behaviour of a machine, one independent key at a time.
///
/// A model is a pure function of its arguments: the search calls it in any order and remembers what it said. It may be
/// shared between threads if its type may. It cannot fail; what cannot happen is [`None`].
///
/// A state may be *symbolic* and stand for several states of the machine, where outcomes left open which one it is: a
/// later output then narrows it. Whatever a state allows, a wider one must allow, too.
pub trait Model {
    /// What the machine's state falls into: operations of different keys never see each other.
    type Key: Clone + Eq + Hash + Ord + Display;
    /// What is asked. Equal inputs must be interchangeable.
    type Input: Clone + Eq + Hash + Display;
    /// What is answered.
    type Output: Clone + PartialEq + Display;
    /// The state of one key.
    type State: Clone + PartialEq + Display;
    /// What states have in common that [`Model::covers`] compares. Where states are not symbolic, the state itself.
    type Kind: Eq + Hash;

    /// The key that an input reads or changes.
    fn key(&self, input: &Self::Input) -> Self::Key;

    /// The state of a key that nothing was done to.
    fn initial(&self, key: &Self::Key) -> Self::State;

    /// The state after the input.
    ///
    /// With an output: [`None`] if the machine would not answer so in this state. Without one, the outcome is unknown:
    /// the state if the input *takes effect* here, and [`None`] if it would change nothing, because an operation without
    /// effect need not be placed at all.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// The kind of a state.
    fn kind(&self, state: &Self::State) -> Self::Kind;

    /// Whether the first of two states of one kind stands for every state of the machine that the second stands for.
    fn covers(&self, wider: &Self::State, narrower: &Self::State) -> bool {
        wider == narrower
    }

    /// A number by which answered operations of one key must be ordered. It only saves the search from orders that cannot
    /// succeed.
    fn rank(&self, _input: &Self::Input, _output: &Self::Output) -> Option<u64> {
        None
    }

    /// The rank that has been passed: in this state and in whatever follows it, [`Model::step`] accepts no operation of this
    /// rank or a lower one.
    fn passed(&self, _state: &Self::State) -> Option<u64> {
        None
    }
}

/// An operation of a model.
pub type OperationOf<M> = Operation<<M as Model>::Input, <M as Model>::Output>;
