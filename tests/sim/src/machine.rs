//! The replicated machine of a simulation: a few cells, a count, and a hash of everything it was ever told.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use skep_core::activation::{Decision, Readiness, Refusal};
use skep_core::effect::Call;
use skep_core::id::{ComponentId, LogIndex};
use skep_core::outcome::{EntryContext, GuestFault, Outcome};

use crate::trace::digest;

/// Cells of one machine; few, so that clients meet.
pub const CELLS: u64 = 8;

/// One command: who sent it as its how-manieth, and what it adds to which cell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Command {
    /// The client, unique in the simulation.
    pub client: u64,
    /// Counts the client's commands.
    pub number: u64,
    /// Below [`CELLS`].
    pub cell: u64,
    /// Added to the cell.
    pub add: u64,
}

impl Command {
    /// As bytes, with some ballast so that logs grow.
    pub fn encode(&self, ballast: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(32 + ballast);
        for word in [self.client, self.number, self.cell, self.add] {
            bytes.put_u64_le(word);
        }
        bytes.put_bytes(self.number as u8, ballast);
        bytes.freeze()
    }

    /// From bytes that [`encode`](Self::encode) made.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= 32).then(|| Self {
            client: bytes.get_u64_le(),
            number: bytes.get_u64_le(),
            cell: bytes.get_u64_le(),
            add: bytes.get_u64_le(),
        })
    }
}

/// Whether a node that is sick cannot run a command; the same on all nodes.
pub fn is_too_much(command: &[u8]) -> bool {
    let Some(Command { client, number, .. }) = Command::decode(command) else {
        return false;
    };
    digest((client, number)).is_multiple_of(16)
}

/// The machine of one replica.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The last entry that called it, or that it was restored at.
    pub applied: LogIndex,
    count: u64,
    hash: u64,
    cells: BTreeMap<u64, u64>,
}

/// What one entry did to a machine.
#[derive(Debug)]
pub struct Applied {
    /// As the core wants them.
    pub outcomes: Vec<Outcome>,
    /// The commands among the calls.
    pub commands: Vec<Command>,
    /// Of context and calls.
    pub input: u64,
}

impl Applied {
    fn at(context: &EntryContext) -> Self {
        Self {
            outcomes: Vec::new(),
            commands: Vec::new(),
            input: digest((
                context.index.0,
                context.term.0,
                context.now,
                context.entropy,
            )),
        }
    }
}

/// What a component is like; drawn by who asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nature {
    /// Every node has it at once.
    Easy,
    /// No machine of it takes any state.
    Refuses,
    /// A node has it after about so many seconds.
    Slow(u64),
}

impl Nature {
    /// The nature of a component.
    pub fn of(component: ComponentId) -> Self {
        match component.0[0] % 4 {
            0 => Self::Easy,
            1 => Self::Refuses,
            2 => Self::Slow(2),
            _ => Self::Slow(20),
        }
    }

    /// How far a node is with it that asks at this time, where nothing is on its way for longer than `most` seconds.
    pub fn readiness(self, node: u64, now: u64, most: u64) -> Readiness {
        match self {
            Self::Easy => Readiness::Prepared,
            Self::Refuses => Readiness::Refused(Refusal::Restore(GuestFault::Unreachable)),
            Self::Slow(seconds) if !digest((node, now)).is_multiple_of(seconds.min(most)) => {
                Readiness::NotYet
            }
            Self::Slow(_) => Readiness::Prepared,
        }
    }
}

impl Machine {
    /// Everything the machine ever saw, as one number.
    pub fn state(&self) -> u64 {
        digest((self.count, self.hash, &self.cells))
    }

    /// The answer to a query.
    pub fn query(&self) -> (LogIndex, u64) {
        (self.applied, self.state())
    }

    /// Applies an entry. A reply is the count and the cell after the command.
    pub fn apply(&mut self, context: &EntryContext, calls: Vec<Call>) -> Applied {
        let mut applied = Applied::at(context);
        for call in calls {
            match call {
                Call::Init(bytes) => self.note(&mut applied, (0_u8, &bytes[..])),
                Call::Commands(commands) => {
                    for bytes in commands {
                        self.note(&mut applied, (1_u8, &bytes[..]));
                        applied
                            .outcomes
                            .push(self.command(&bytes, &mut applied.commands));
                    }
                }
                Call::ConfChange(change) => {
                    let what = (2_u8, change.kind, change.node.0, &change.data[..]);
                    self.note(&mut applied, what);
                    applied.outcomes.push(Outcome::Reply(change.data));
                }
                Call::StatusChange(changed) => {
                    let what = (3_u8, changed.old.0, changed.new.0, changed.term.0);
                    self.note(&mut applied, what);
                }
            }
        }
        self.hash = digest((self.hash, applied.input));
        self.applied = context.index;
        applied
    }

    /// It is another from now on.
    pub fn go_wrong(&mut self) {
        self.count += 1;
        self.hash = digest((self.hash, "wrong"));
    }

    /// Goes on with another component, or as it was.
    pub fn exchange(
        &mut self,
        context: &EntryContext,
        component: ComponentId,
        decision: Decision,
    ) -> Applied {
        let mut applied = Applied::at(context);
        let reason = match decision {
            Decision::Confirmed => 0,
            Decision::Aborted(reason) => reason.code(),
        };
        self.note(&mut applied, (4_u8, component.0, reason));
        self.hash = digest((self.hash, applied.input));
        self.applied = context.index;
        applied
    }

    fn note(&mut self, applied: &mut Applied, call: impl std::hash::Hash) {
        applied.input = digest((applied.input, call));
    }

    fn command(&mut self, bytes: &[u8], commands: &mut Vec<Command>) -> Outcome {
        self.count += 1;
        let Some(command) = Command::decode(bytes) else {
            return Outcome::Rejected {
                code: 0,
                message: "no command".to_owned(),
            };
        };
        commands.push(command);
        let cell = self.cells.entry(command.cell).or_default();
        *cell = cell.wrapping_add(command.add);
        let mut reply = BytesMut::with_capacity(16);
        reply.put_u64_le(self.count);
        reply.put_u64_le(*cell);
        Outcome::Reply(reply.freeze())
    }

    /// The whole state.
    pub fn save(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u64_le(self.count);
        bytes.put_u64_le(self.hash);
        for (cell, value) in &self.cells {
            bytes.put_u64_le(*cell);
            bytes.put_u64_le(*value);
        }
        bytes.freeze()
    }

    /// From what [`save`](Self::save) wrote at the barrier `index`.
    pub fn restore(index: LogIndex, mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 16 || !bytes.len().is_multiple_of(16) {
            return None;
        }
        let mut machine = Self {
            applied: index,
            count: bytes.get_u64_le(),
            hash: bytes.get_u64_le(),
            cells: BTreeMap::new(),
        };
        while bytes.has_remaining() {
            let cell = bytes.get_u64_le();
            machine.cells.insert(cell, bytes.get_u64_le());
        }
        Some(machine)
    }
}
