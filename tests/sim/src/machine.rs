//! The replicated machine of a simulation: a few cells, a count, and a hash of everything it was ever told. It also has a heap, which
//! it does not save and which decides what it answers: where one replica is rebuilt and another goes on as it is, they differ.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use skep_core::activation::Decision;
use skep_core::effect::Call;
use skep_core::id::ComponentId;
use skep_core::outcome::{
    ChangeKind, ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome,
};
use skep_drive::{Descriptor, ImageTaken, LocalCode, MachineError, Running, StateMachine};

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
    /// The component that it is of.
    component: ComponentId,
    /// Its node cannot run some of the commands.
    pub sick: bool,
    /// The command of the last entry that was too much.
    stopped_at: Option<usize>,
    /// Its node can take no image now, and use none.
    pub unable: bool,
    count: u64,
    hash: u64,
    cells: BTreeMap<u64, u64>,
    heap: Heap,
}

/// What a machine does not save: it is as new where it was rebuilt.
#[derive(Clone, Copy, Hash, Debug, Default)]
struct Heap {
    /// Commands since then, each of which leaves something behind.
    commands: u64,
    /// Of these commands.
    hash: u64,
}

/// Bytes of memory of a new machine, and those that each command needs, and nobody frees.
const MEMORY: (u64, u64) = (600, 40);

/// What one entry did to a machine.
#[derive(Debug)]
pub struct Applied {
    /// As the core has them.
    pub outcomes: Vec<Outcome>,
    /// The commands among the calls.
    pub commands: Vec<Command>,
    /// Of context and calls, or of what was decided.
    pub input: u64,
}

impl Applied {
    /// Nothing yet.
    pub fn at(context: &EntryContext) -> Self {
        Self {
            outcomes: Vec::new(),
            commands: Vec::new(),
            input: digest(Entry::of(context)),
        }
    }

    /// The machine was told this.
    pub fn called(&mut self, call: &Call) {
        if let Call::Commands(commands) = call {
            let known = commands.iter().filter_map(|bytes| Command::decode(bytes));
            self.commands.extend(known);
        }
        self.input = digest((self.input, Told::of(call)));
    }

    /// The group goes on with this component, or as it was.
    pub fn decided(&mut self, component: ComponentId, decision: Decision) {
        let reason = match decision {
            Decision::Confirmed => 0,
            Decision::Aborted(reason) => reason.code(),
        };
        self.input = digest((self.input, component.0, reason));
    }
}

/// An entry, for a hash.
#[derive(Hash)]
struct Entry {
    index: u64,
    term: u64,
    now: u64,
    entropy: [u8; 16],
}

impl Entry {
    fn of(context: &EntryContext) -> Self {
        Self {
            index: context.index.0,
            term: context.term.0,
            now: context.now,
            entropy: context.entropy,
        }
    }
}

/// A call, for a hash.
#[derive(Hash)]
enum Told<'a> {
    Init(&'a [u8]),
    Commands(Vec<&'a [u8]>),
    Change(ChangeKind, u64, &'a [u8]),
    Leader(u64, u64, u64),
}

impl<'a> Told<'a> {
    fn of(call: &'a Call) -> Self {
        match call {
            Call::Init(config) => Self::Init(config),
            Call::Commands(commands) => Self::commands(commands),
            Call::ConfChange(change) => Self::change(change),
            Call::StatusChange(event) => Self::leader(event),
        }
    }

    fn commands(commands: &'a [Bytes]) -> Self {
        Self::Commands(commands.iter().map(|bytes| &bytes[..]).collect())
    }

    fn change(change: &'a ConfChange) -> Self {
        Self::Change(change.kind, change.node.0, &change.data)
    }

    fn leader(event: &LeaderChanged) -> Self {
        Self::Leader(event.old.0, event.new.0, event.term.0)
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

    /// Whether a node that asks at this time has it, where nothing is on its way for longer than about `most` seconds.
    pub fn is_at_hand(self, node: u64, now: u64, most: u64) -> bool {
        match self {
            Self::Easy | Self::Refuses => true,
            Self::Slow(seconds) => digest((node, now)).is_multiple_of(seconds.min(most)),
        }
    }
}

impl Machine {
    /// As it is before a group's first entry.
    pub fn new(component: ComponentId) -> Self {
        Self {
            component,
            ..Self::default()
        }
    }

    /// What it is and everything it ever saw, as one number.
    pub fn state(&self) -> u64 {
        digest((
            self.component.0,
            self.count,
            self.hash,
            &self.cells,
            self.heap,
        ))
    }

    /// It is another from now on.
    pub fn go_wrong(&mut self) {
        self.count += 1;
        self.hash = digest((self.hash, "wrong"));
    }

    fn note(&mut self, context: &EntryContext, told: Told<'_>) {
        self.hash = digest((self.hash, Entry::of(context), told));
    }

    /// The reply is the count, the cell after the command, and what is on the heap.
    fn command(&mut self, bytes: &[u8]) -> Outcome {
        self.count += 1;
        self.heap.commands += 1;
        self.heap.hash = digest((self.heap.hash, bytes));
        let Some(command) = Command::decode(bytes) else {
            return Outcome::Rejected {
                code: 0,
                message: "no command".to_owned(),
            };
        };
        let cell = self.cells.entry(command.cell).or_default();
        *cell = cell.wrapping_add(command.add);
        let mut reply = BytesMut::with_capacity(24);
        reply.put_u64_le(self.count);
        reply.put_u64_le(*cell);
        reply.put_u64_le(self.heap.hash);
        Outcome::Reply(reply.freeze())
    }

    fn commands(
        &mut self,
        context: &EntryContext,
        commands: &[Bytes],
    ) -> Result<skep_drive::Applied, MachineError> {
        let too_much = commands.iter().position(|bytes| is_too_much(bytes));
        self.stopped_at = too_much.filter(|_| self.sick);
        if let Some(place) = self.stopped_at {
            let reason = format!("command {place} is too much for this node");
            return Err(local("apply", LocalCode::StackOverflow, reason));
        }
        self.note(context, Told::commands(commands));
        said(commands.iter().map(|bytes| self.command(bytes)).collect())
    }

    fn saved(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u64_le(self.count);
        bytes.put_u64_le(self.hash);
        for (cell, value) in &self.cells {
            bytes.put_u64_le(*cell);
            bytes.put_u64_le(*value);
        }
        bytes.freeze()
    }

    fn read(&mut self, from: Bytes) -> Result<(), MachineError> {
        let is_strange = from.len() < 16 || !from.len().is_multiple_of(16);
        if is_strange || Nature::of(self.component) == Nature::Refuses {
            return Err(MachineError::Guest {
                call: "restore",
                fault: GuestFault::Unreachable,
                detail: is_strange.then(|| "the bytes are strange".to_owned()),
            });
        }
        self.build(from, Heap::default());
        Ok(())
    }

    /// It is as it was saved, beside what is on its heap.
    fn build(&mut self, mut from: Bytes, heap: Heap) {
        *self = Self {
            component: self.component,
            sick: self.sick,
            unable: self.unable,
            stopped_at: None,
            count: from.get_u64_le(),
            hash: from.get_u64_le(),
            cells: BTreeMap::new(),
            heap,
        };
        while from.has_remaining() {
            let cell = from.get_u64_le();
            self.cells.insert(cell, from.get_u64_le());
        }
    }

    fn has_images(&self) -> bool {
        !self.component.0[1].is_multiple_of(4) || self.component == ComponentId::default()
    }

    fn image(&self) -> Bytes {
        let mut image = BytesMut::new();
        image.put_u64_le(self.heap.commands);
        image.put_u64_le(self.heap.hash);
        image.extend_from_slice(&self.saved());
        image.freeze()
    }

    fn resume_from(&mut self, mut image: Bytes) -> Result<(), MachineError> {
        let is_strange = image.len() < 32 || !image.len().is_multiple_of(16);
        if self.unable || is_strange || !self.has_images() {
            return Err(local("resume", LocalCode::Missing, "there are no images"));
        }
        let heap = Heap {
            commands: image.get_u64_le(),
            hash: image.get_u64_le(),
        };
        self.build(image, heap);
        Ok(())
    }
}

/// The state that a query was answered with.
pub fn state_in(answer: &Outcome) -> Option<u64> {
    match answer {
        Outcome::Reply(reply) => Some(u64::from_le_bytes(reply[..].try_into().ok()?)),
        _ => None,
    }
}

fn said(outcomes: Vec<Outcome>) -> Result<skep_drive::Applied, MachineError> {
    Ok(skep_drive::Applied { outcomes, fuel: 1 })
}

impl StateMachine for Machine {
    fn describe(&self) -> Descriptor {
        Descriptor {
            schema: 1,
            oldest_schema: 1,
            ..Descriptor::default()
        }
    }

    fn init<'a>(
        &'a mut self,
        context: &'a EntryContext,
        config: &'a Bytes,
    ) -> Running<'a, skep_drive::Applied> {
        self.note(context, Told::Init(config));
        Box::pin(async { said(Vec::new()) })
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, skep_drive::Applied> {
        Box::pin(async { self.commands(context, commands) })
    }

    fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, skep_drive::Applied> {
        self.note(context, Told::change(change));
        Box::pin(async { said(vec![Outcome::Reply(change.data.clone())]) })
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, skep_drive::Applied> {
        self.note(context, Told::leader(event));
        Box::pin(async { said(Vec::new()) })
    }

    /// Every query is answered with the state.
    fn query(&mut self, _: &Bytes) -> Running<'_, Outcome> {
        let state = self.state().to_le_bytes();
        Box::pin(async move { Ok(Outcome::Reply(Bytes::copy_from_slice(&state))) })
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async {
            let written = to.write_all(&self.saved());
            written.map_err(|error| local("save", LocalCode::Io, error.to_string()))
        })
    }

    fn restore(&mut self, _: &EntryContext, _: u32, from: Bytes) -> Running<'_, ()> {
        Box::pin(async { self.read(from) })
    }

    fn image_bytes(&self) -> Option<u64> {
        let (new, command) = MEMORY;
        self.has_images()
            .then(|| new + command * self.heap.commands)
    }

    fn image(&mut self, _: &EntryContext) -> Running<'_, Option<Box<dyn ImageTaken>>> {
        Box::pin(async {
            if self.unable {
                return Err(local("image", LocalCode::Memory, "there is no room for it"));
            }
            let taken: Box<dyn ImageTaken> = Box::new(Self::image(self));
            Ok(self.has_images().then_some(taken))
        })
    }

    fn resume(&mut self, _: &EntryContext, image: Bytes) -> Running<'_, ()> {
        Box::pin(async { self.resume_from(image) })
    }
}

/// A node cannot do what others may be able to.
pub fn local(call: &'static str, code: LocalCode, reason: impl Into<String>) -> MachineError {
    MachineError::Local {
        call,
        code,
        reason: reason.into(),
    }
}
