//! The machine of one node of a test: a model, and the driver that a host runs.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Deref;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use skep_core::deployment::{Deployment, Quota};
use skep_core::effect::{Call, Work};
use skep_core::id::{ComponentId, LogIndex};
use skep_core::input::{Input, Waiter};
use skep_core::message::SnapshotName;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};
use skep_core::proposal::ProposalError;
use skep_core::state::HostState;
use skep_drive::{
    Applied, CanonicalPoint, Descriptor, Done, Driver, Failed, ImageTaken, Imaging, Listener,
    LocalCode, MachineError, Running, Source, StateMachine, Stored, ToEnd, no_image,
};

use crate::cluster::Disk;

/// First byte of the name of a component that refuses every state.
pub const REFUSED: u8 = 13;

/// A machine that remembers every command, and what its node makes of it. Its answer is how many commands there were.
pub struct Machine {
    driver: Driver<Model>,
    pub changes: Vec<(u64, u8)>,
    pub leaders: Vec<LeaderChanged>,
    pub inits: Vec<Bytes>,
    /// Up to where the state goes that each query was answered from.
    pub answered: BTreeMap<Waiter, LogIndex>,
    /// What the host of its release says when it refuses.
    pub words: &'static str,
    pub sick: Sick,
    /// Its node cannot make any other machine, and tries again.
    pub lacks: bool,
    /// No other machine takes its state.
    pub refuses: bool,
    /// How much memory an image of it is of; none if it can have no image.
    pub memory: Option<u64>,
    /// Its node can take no image, and use none.
    pub unable: bool,
    /// An image that is being taken.
    imaging: Option<(Imaging, Bytes, Option<u64>)>,
    /// Its node has no room for the files of its snapshots.
    pub cannot_write: bool,
    /// It cannot run commands that begin so.
    pub stops_at: Option<&'static str>,
    /// It has failed, and does nothing any more.
    has_failed: bool,
}

/// How a machine differs from the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sick {
    #[default]
    Healthy,
    /// It loses what it is told.
    Forgets,
    /// It answers wrongly, and stores what is right.
    Lies,
}

/// What a group runs.
#[derive(Debug, Default)]
pub struct Model {
    pub commands: Vec<Bytes>,
    /// What it is, by the first byte of the component's name.
    pub runs: u8,
    words: &'static str,
    sick: Sick,
    stops_at: Option<&'static str>,
    stopped_at: Option<usize>,
    /// Commands since it was built: it saves nothing of that.
    pub heap: u64,
    memory: Option<u64>,
    unable: bool,
    refuses: bool,
}

impl Default for Machine {
    fn default() -> Self {
        let founding = Deployment {
            component: ComponentId::default(),
            profile: Bytes::new(),
            quota: Quota::default(),
            barriers: Default::default(),
        };
        Self {
            driver: Driver::exchangeable(Model::default(), founding.clone(), founding),
            changes: Vec::new(),
            leaders: Vec::new(),
            inits: Vec::new(),
            answered: BTreeMap::new(),
            words: "",
            sick: Sick::Healthy,
            lacks: false,
            refuses: false,
            memory: None,
            unable: false,
            imaging: None,
            cannot_write: false,
            stops_at: None,
            has_failed: false,
        }
    }
}

impl Deref for Machine {
    type Target = Model;

    fn deref(&self) -> &Model {
        self.driver.machine()
    }
}

impl Machine {
    /// Its process ends. What its node can do and cannot do stays.
    pub fn after_a_crash(&self) -> Self {
        Self {
            memory: self.memory,
            unable: self.unable,
            stops_at: self.stops_at,
            ..Self::default()
        }
    }

    pub fn run(
        &mut self,
        work: Work,
        disk: &mut Disk,
        queries: &mut BTreeMap<Waiter, Result<Vec<Bytes>, ProposalError>>,
    ) -> Option<Input> {
        if self.has_failed && !matches!(work, Work::Query { .. }) {
            return None;
        }
        let model = self.driver.machine_mut();
        (model.words, model.sick, model.stops_at) = (self.words, self.sick, self.stops_at);
        (model.memory, model.unable) = (self.memory, self.unable);
        if matches!(work, Work::Restore { .. }) {
            self.imaging = None;
        }
        let mut shelf = Shelf {
            disk,
            lacks: self.lacks,
            refuses: self.refuses,
        };
        let mut told = Told {
            changes: &mut self.changes,
            leaders: &mut self.leaders,
            inits: &mut self.inits,
        };
        match self.driver.drive(work, &mut shelf, &mut told).to_end() {
            Ok(Done::Tell(input)) => Some(input),
            Ok(Done::Passed {
                point,
                state,
                memory,
            }) => Some(self.settle(point, state, memory, disk)),
            Ok(Done::Imaging {
                image,
                state,
                memory,
            }) => {
                assert!(self.imaging.is_none(), "one is taken at a time");
                self.imaging = Some((image, state, memory));
                None
            }
            Ok(Done::Answer {
                waiter,
                answer,
                index,
            }) => {
                self.answered.insert(waiter, index);
                let Ok(Outcome::Reply(reply)) = answer else {
                    panic!("a query was answered {answer:?}");
                };
                let answer = Ok(unpacked(reply));
                assert!(queries.insert(waiter, answer).is_none(), "answered twice");
                None
            }
            Err(failed) if failed.is_broken => panic!("{failed}"),
            Err(failed) => {
                self.has_failed = true;
                Some(failed.input())
            }
        }
    }

    /// Takes an image to its end, if one is being taken.
    pub fn finish_image(&mut self, disk: &mut Disk) -> Option<Input> {
        let (mut image, state, memory) = self.imaging.take().filter(|_| !self.has_failed)?;
        let index = image.index();
        Some(match image.finish() {
            Ok(point) => self.settle(point, state, memory, disk),
            Err(error) => no_image(index, &error),
        })
    }

    /// Writes the snapshot of a barrier.
    fn settle(
        &self,
        point: CanonicalPoint,
        state: Bytes,
        memory: Option<u64>,
        disk: &mut Disk,
    ) -> Input {
        let CanonicalPoint { context, guest, .. } = point;
        let mut hash = Sha256::new();
        hash.update(&state);
        hash.update(&guest);
        let name = SnapshotName {
            index: context.index,
            term: context.term,
            digest: hash.finalize().into(),
            size: 1,
        };
        let index = context.index;
        disk.files.insert(index, (name.clone(), state, guest));
        match self.cannot_write {
            true => Input::Unwritten {
                index,
                snapshot: name,
                memory,
                reason: "no room".into(),
            },
            false => Input::Snapshotted {
                index,
                snapshot: Some(name),
                memory,
            },
        }
    }
}

/// Where the driver gets what its node has.
struct Shelf<'a> {
    disk: &'a Disk,
    lacks: bool,
    refuses: bool,
}

impl Source<Model> for Shelf<'_> {
    fn current(&mut self, deployment: &Deployment) -> Result<Model, Failed> {
        Ok(Model::of(deployment))
    }

    fn successor(&mut self, deployment: &Deployment) -> Result<Model, MachineError> {
        let model = Model::of(deployment);
        let refuses = self.refuses || model.runs == REFUSED;
        if self.lacks && !refuses {
            return Err(MachineError::Local {
                call: "start",
                code: LocalCode::Missing,
                reason: "it is not here yet".into(),
            });
        }
        Ok(Model { refuses, ..model })
    }

    fn snapshot(&mut self, name: &SnapshotName) -> Result<Stored, Failed> {
        let (_, state, guest) = &self.disk.files[&name.index];
        let (state, _) = HostState::decode(state.clone()).expect("the host's section");
        Ok(Stored {
            form: state.form,
            schema: 1,
            guest: guest.clone(),
        })
    }
}

/// What the machines of a node were told.
struct Told<'a> {
    changes: &'a mut Vec<(u64, u8)>,
    leaders: &'a mut Vec<LeaderChanged>,
    inits: &'a mut Vec<Bytes>,
}

impl Listener<Model> for Told<'_> {
    fn called(&mut self, _: &EntryContext, call: &Call, _: &Applied) {
        match call {
            Call::Init(config) => self.inits.push(config.clone()),
            Call::Commands(_) => {}
            Call::ConfChange(change) => self.changes.push((change.node.0, change.kind as u8)),
            Call::StatusChange(changed) => self.leaders.push(*changed),
        }
    }
}

impl Model {
    fn of(deployment: &Deployment) -> Self {
        Self {
            runs: deployment.component.0[0],
            ..Self::default()
        }
    }

    fn command(&mut self, command: &Bytes) -> Outcome {
        if &command[..] == b"fault" {
            return Outcome::Fault(GuestFault::Unreachable);
        }
        if command.starts_with(b"full ") {
            return Outcome::Fault(GuestFault::OutOfMemory);
        }
        if &command[..] == b"refuse" {
            return Outcome::Refused {
                code: 9,
                message: self.words.into(),
            };
        }
        if &command[..] == b"heap" {
            return Outcome::Reply(self.heap.to_string().into());
        }
        self.heap += 1;
        if command.starts_with(b"echo ") {
            return Outcome::Reply(command.clone());
        }
        if self.sick != Sick::Forgets {
            self.commands.push(command.clone());
        }
        let count = match self.sick {
            Sick::Lies => 0,
            _ => self.commands.len(),
        };
        Outcome::Reply(count.to_string().into())
    }

    fn run(&mut self, context: &EntryContext, commands: &[Bytes]) -> Result<Applied, MachineError> {
        let mut outcomes = Vec::new();
        for (place, command) in commands.iter().enumerate() {
            let begins = |stop: &str| command.starts_with(stop.as_bytes());
            if self.stops_at.is_some_and(begins) {
                self.stopped_at = Some(place);
                return Err(MachineError::Local {
                    call: "apply",
                    code: LocalCode::OutOfBudget,
                    reason: format!("it stops at entry {}", context.index),
                });
            }
            outcomes.push(self.command(command));
        }
        said(outcomes)
    }
}

fn said(outcomes: Vec<Outcome>) -> Result<Applied, MachineError> {
    Ok(Applied { outcomes, fuel: 1 })
}

impl StateMachine for Model {
    fn describe(&self) -> Descriptor {
        Descriptor {
            schema: 1,
            oldest_schema: 1,
            ..Descriptor::default()
        }
    }

    fn init(&mut self, _: &EntryContext, _: &Bytes) -> Running<'_, Applied> {
        Box::pin(async { said(Vec::new()) })
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        Box::pin(async { self.run(context, commands) })
    }

    fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        _: &EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        Box::pin(async { said(vec![Outcome::Reply(change.data.clone())]) })
    }

    fn process_status_change(
        &mut self,
        _: &EntryContext,
        _: &LeaderChanged,
    ) -> Running<'_, Applied> {
        Box::pin(async { said(Vec::new()) })
    }

    /// Every query is answered with all commands.
    fn query(&mut self, _: &Bytes) -> Running<'_, Outcome> {
        Box::pin(async { Ok(Outcome::Reply(packed(&self.commands))) })
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async {
            let written = to.write_all(&packed(&self.commands));
            written.map_err(|error| MachineError::Local {
                call: "save",
                code: LocalCode::Io,
                reason: error.to_string(),
            })
        })
    }

    fn restore(&mut self, _: &EntryContext, _: u32, from: Bytes) -> Running<'_, ()> {
        Box::pin(async {
            if self.refuses {
                return Err(MachineError::Guest {
                    call: "restore",
                    fault: GuestFault::Unreachable,
                    detail: None,
                });
            }
            self.commands = unpacked(from);
            self.heap = 0;
            Ok(())
        })
    }

    fn image_bytes(&self) -> Option<u64> {
        self.memory
    }

    fn image(&mut self, _: &EntryContext) -> Running<'_, Option<Box<dyn ImageTaken>>> {
        Box::pin(async {
            if self.unable {
                return Err(unable("image"));
            }
            let image = [&self.heap.to_le_bytes()[..], &packed(&self.commands)].concat();
            let taken: Box<dyn ImageTaken> = Box::new(Bytes::from(image));
            Ok(self.memory.map(|_| taken))
        })
    }

    fn resume(&mut self, _: &EntryContext, mut image: Bytes) -> Running<'_, ()> {
        Box::pin(async move {
            if self.unable {
                return Err(unable("resume"));
            }
            self.heap = image.get_u64_le();
            self.commands = unpacked(image);
            Ok(())
        })
    }
}

fn unable(call: &'static str) -> MachineError {
    MachineError::Local {
        call,
        code: LocalCode::Missing,
        reason: "this node cannot".into(),
    }
}

/// Commands as bytes, each behind its length.
fn packed(commands: &[Bytes]) -> Bytes {
    let mut bytes = BytesMut::new();
    for command in commands {
        bytes.put_u64_le(command.len() as u64);
        bytes.put_slice(command);
    }
    bytes.freeze()
}

fn unpacked(mut bytes: Bytes) -> Vec<Bytes> {
    let mut commands = Vec::new();
    while bytes.has_remaining() {
        let length = bytes.get_u64_le() as usize;
        commands.push(bytes.split_to(length));
    }
    commands
}
