//! One Raft replica as a pure value: inputs in, effects out.
//!
//! [`Group`] wraps raft-rs' `RawNode` with what a host needs around it: the order in which records, messages and
//! entries become visible, many commands in one entry, sessions that apply a command once, membership changes that
//! cannot lose a quorum, snapshots at barrier entries, linearizable reads, and limits.
//!
//! # Layout
//!
//! * [`group`]: the replica; takes [`input::Input`]s and gives [`effect::Effect`]s. Nothing else crosses. `founding`: how it begins.
//! * `intake`: messages from other replicas; what raft-rs can take. [`message`]: what replicas say to each other.
//! * `ready`: from Raft's `Ready` to records and messages.
//! * [`payload`], [`entry`]: what an entry says; `committed`, `applying`: entries on their way to the machine, and in its hands; [`outcome`]: the results.
//! * `pending`: everybody who waits for an answer; `out`: the one way out.
//! * `proposals`: queueing and deadlines; `packing`: into entries; `forwards`: on the way to the leader. [`proposal`] has the words.
//! * `suspects`, `fullness`, [`allowance`], `throttle`: clients whose commands fail, find no memory, or have to wait; `held_back`: which of these do.
//! * `changes`: membership; `removal`: the end of a removed replica; `liveness`, `addresses`: when and where members were heard of.
//! * `reads`: linearizable queries.
//! * [`attestation`], `divergence`: whether replicas agree, and what becomes of one that does not; `cures`: snapshots for it.
//! * [`standing`]: what is believed of other replicas; `handover`: a leader whose machine failed.
//! * [`deployment`]: what a group runs; [`activation`]: how it comes to run something else; [`impasse`]: commands that no member
//!   can run.
//! * `barrier`: barriers on their way through the machine, in either [`form`]. [`healing`]: snapshots that cannot be written or read here; `spacing`: how far barriers are apart; `compaction`:
//!   in which form they are.
//! * [`sessions`], [`state`]: what is replicated beside the machine's state.
//! * `raft_node`: raft-rs, whether it runs yet or not. `log_view`: the log as Raft reads it; `read_back`: entries that are not in memory.
//! * `catch_up`: members that are behind, and what of the log is kept for them.
//! * `election`: when a replica stands: timeouts without randomness, the first election, a leader whose process has ended.
//! * [`founders`]: how a cluster is founded, which is no matter of any group. [`recovery`]: how a group goes on that has lost its
//!   majority for good.
//! * [`config`], [`id`], [`status`], [`printable`]: limits, names, what a replica shows of itself, text of strangers fit to be shown.
//! * [`planted`]: defects that a simulation switches on.
//!
//! [`id`], [`proposal`], [`outcome`] and [`status`] are modules of `skep-types`, which clients share.
//!
//! # What is absent
//!
//! No thread, socket, file, clock or randomness; no tokio, no wasmtime. Time is ticks, and a wall clock that comes with
//! them and is only ever written into entries. The same inputs give the same effects, so a simulator runs this code.

pub mod activation;
mod addresses;
pub mod allowance;
mod applying;
pub mod attestation;
mod barrier;
mod catch_up;
mod changes;
mod committed;
mod compaction;
pub mod config;
mod cures;
pub mod deployment;
mod divergence;
pub mod effect;
mod election;
pub mod entry;
mod forwards;
pub mod founders;
mod founding;
mod fullness;
pub mod group;
mod handover;
pub mod healing;
mod held_back;
pub mod impasse;
pub mod input;
mod intake;
mod liveness;
mod log_view;
pub mod message;
mod out;
mod packing;
pub mod payload;
mod pending;
pub mod planted;
pub mod printable;
mod proposals;
mod raft_node;
mod read_back;
mod reads;
mod ready;
pub mod recovery;
mod removal;
pub mod sessions;
mod spacing;
pub mod standing;
pub mod state;
mod suspects;
mod throttle;

pub use config::{GroupConfig, Limits, Member};
pub use founding::Recovered;
pub use group::Group;
pub use skep_types::{form, id, outcome, past, proposal, status};
