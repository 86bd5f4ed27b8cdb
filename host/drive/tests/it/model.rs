//! A machine that does as it is told, and what its driver gets from its node.

use std::future::poll_fn;
use std::io::Write;
use std::task::Poll;

use bytes::Bytes;
use skep_core::activation::Decision;
use skep_core::deployment::{Deployment, Quota};
use skep_core::effect::{Call, Work};
use skep_core::form::Form;
use skep_core::id::{ComponentId, LogIndex, NodeId, Term};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_core::outcome::{
    ChangeKind, ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome,
};
use skep_drive::{
    Answer, Applied, CanonicalPoint, Descriptor, Done, Driver, Failed, ImageTaken, Lack, Listener,
    LocalCode, MachineError, Memory, Reader, Running, Source, StateMachine, Stored, ToEnd,
};

/// What a call does instead of what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// As on every replica.
    Guest,
    /// Of this node.
    Local,
}

/// Keeps its commands, one byte each. The answer is all of them.
#[derive(Debug, Default)]
pub struct Model {
    /// The first byte of the component's name.
    pub component: u8,
    pub state: Vec<u8>,
    pub init: Option<Outcome>,
    /// Outcomes that it leaves out.
    pub silent: usize,
    pub hook: Option<Trouble>,
    pub save: Option<Trouble>,
    pub restore: Option<Trouble>,
    /// The command that it stops at.
    pub stops_at: Option<u8>,
    pub rebuilt: usize,
    /// It can be written down as it is.
    pub has_images: bool,
    /// What an image runs into.
    pub image: Option<Trouble>,
    /// Commands since it was made: what it saves leaves that out.
    pub heap: u8,
    /// How often `apply` lets others go first.
    pub yields: usize,
    pub stopped_at: Option<usize>,
}

pub fn trouble(kind: Trouble, call: &'static str) -> MachineError {
    match kind {
        Trouble::Guest => MachineError::Guest {
            call,
            fault: GuestFault::Unreachable,
            detail: Some("its own words".into()),
        },
        Trouble::Local => MachineError::Local {
            call,
            code: LocalCode::Memory,
            reason: "no memory".into(),
        },
    }
}

fn unless(kind: Option<Trouble>, call: &'static str) -> Result<(), MachineError> {
    kind.map_or(Ok(()), |kind| Err(trouble(kind, call)))
}

fn said(outcomes: Vec<Outcome>) -> Applied {
    Applied { outcomes, fuel: 2 }
}

impl Model {
    fn run(&mut self, commands: &[Bytes]) -> Result<Applied, MachineError> {
        let mut outcomes = Vec::new();
        for (place, command) in commands.iter().enumerate() {
            if self.stops_at.is_some() && self.stops_at == command.first().copied() {
                self.stopped_at = Some(place);
                return Err(trouble(Trouble::Local, "apply"));
            }
            self.state.extend_from_slice(command);
            self.heap += 1;
            outcomes.push(Outcome::Reply(self.state.clone().into()));
        }
        outcomes.truncate(commands.len() - self.silent);
        Ok(said(outcomes))
    }
}

impl StateMachine for Model {
    fn describe(&self) -> Descriptor {
        Descriptor {
            schema: u32::from(self.component),
            ..Descriptor::default()
        }
    }

    fn init(&mut self, _: &EntryContext, _: &Bytes) -> Running<'_, Applied> {
        Box::pin(async { Ok(said(self.init.clone().into_iter().collect())) })
    }

    fn apply<'a>(&'a mut self, _: &EntryContext, commands: &'a [Bytes]) -> Running<'a, Applied> {
        Box::pin(async {
            // As a guest whose call goes on for long.
            for _ in 0..self.yields {
                yield_now().await;
            }
            self.run(commands)
        })
    }

    fn apply_conf_change(&mut self, _: &EntryContext, _: &ConfChange) -> Running<'_, Applied> {
        Box::pin(async {
            unless(self.hook, "apply-conf-change")?;
            Ok(said(Vec::new()))
        })
    }

    fn process_status_change(
        &mut self,
        _: &EntryContext,
        _: &LeaderChanged,
    ) -> Running<'_, Applied> {
        Box::pin(async {
            unless(self.hook, "process-status-change")?;
            Ok(said(vec![Outcome::Reply("nobody waits".into())]))
        })
    }

    fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    fn query(&mut self, _: &Bytes) -> Running<'_, Outcome> {
        Box::pin(async {
            unless(self.hook, "query")?;
            Ok(Outcome::Reply(self.state.clone().into()))
        })
    }

    fn memory(&self) -> Option<Memory> {
        Some(Memory {
            used_bytes: 1,
            limit_bytes: 2,
        })
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        Some(Box::new(Deaf))
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async {
            unless(self.save, "save")?;
            to.write_all(&self.state).expect("there is memory");
            Ok(())
        })
    }

    fn restore(&mut self, _: &EntryContext, _: u32, from: Bytes) -> Running<'_, ()> {
        Box::pin(async move {
            unless(self.restore, "restore")?;
            self.state = from.to_vec();
            self.heap = 0;
            self.rebuilt += 1;
            Ok(())
        })
    }

    fn image_bytes(&self) -> Option<u64> {
        self.has_images.then(|| 1 + self.state.len() as u64)
    }

    fn image(&mut self, _: &EntryContext) -> Running<'_, Option<Box<dyn ImageTaken>>> {
        Box::pin(async {
            unless(self.image, "image")?;
            let image = [&[self.heap], &self.state[..]].concat();
            let taken: Box<dyn ImageTaken> = Box::new(Bytes::from(image));
            Ok(self.has_images.then_some(taken))
        })
    }

    fn resume(&mut self, _: &EntryContext, image: Bytes) -> Running<'_, ()> {
        Box::pin(async move {
            unless((!self.has_images).then_some(Trouble::Local), "resume")?;
            self.heap = image[0];
            self.state = image[1..].to_vec();
            Ok(())
        })
    }
}

/// Is pending once.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|_| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// Answers nothing.
struct Deaf;

impl Reader for Deaf {
    fn query(&mut self, _: &Bytes) -> Running<'_, Answer> {
        Box::pin(async { Err(trouble(Trouble::Local, "query")) })
    }

    fn release(&mut self) {}
}

/// What the node of a test has, and what its driver was seen to do.
#[derive(Default)]
pub struct Node {
    /// Why it makes no other machine.
    pub lacks: Option<Trouble>,
    /// Other machines that it makes fail to restore so.
    pub refuses: Option<Trouble>,
    /// Machines that it made, by what they are, for the log's sake or for an activation.
    pub made: Vec<(u8, bool)>,
    pub snapshot: Option<(u32, Bytes)>,
    /// What the bytes are.
    pub form: Form,
}

impl Source<Model> for Node {
    fn current(&mut self, deployment: &Deployment) -> Result<Model, Failed> {
        let component = deployment.component.0[0];
        self.made.push((component, true));
        Ok(Model {
            component,
            ..Model::default()
        })
    }

    fn successor(&mut self, deployment: &Deployment) -> Result<Model, MachineError> {
        unless(self.lacks, "start")?;
        let component = deployment.component.0[0];
        self.made.push((component, false));
        Ok(Model {
            component,
            restore: self.refuses,
            ..Model::default()
        })
    }

    fn snapshot(&mut self, _: &SnapshotName) -> Result<Stored, Failed> {
        let gone = || Failed::local("the snapshot is gone");
        let (schema, guest) = self.snapshot.clone().ok_or_else(gone)?;
        Ok(Stored {
            form: self.form,
            schema,
            guest,
        })
    }
}

/// What was seen, a line each.
#[derive(Default)]
pub struct Seen(pub Vec<String>);

impl Listener<Model> for Seen {
    fn called(&mut self, _: &EntryContext, call: &Call, said: &Applied) {
        let call = match call {
            Call::Init(_) => "init",
            Call::Commands(_) => "commands",
            Call::ConfChange(_) => "change",
            Call::StatusChange(_) => "leader",
        };
        self.0.push(format!("{call} {:?}", said.outcomes));
    }

    fn replaced(&mut self, deployment: &Deployment, machine: &Model) {
        assert_eq!(deployment.component.0[0], machine.component);
        self.0.push(format!("replaced by {}", machine.component));
    }

    fn saved(&mut self, _: &EntryContext, bytes: usize) {
        self.0.push(format!("saved {bytes}"));
    }

    fn restored(&mut self, point: &CanonicalPoint) {
        self.0.push(format!("restored {}", point.context.index));
    }

    fn goes_on_from(&mut self, point: Option<&CanonicalPoint>) {
        let index = point.map(|point| point.context.index.0);
        self.0.push(format!("goes on from {index:?}"));
    }

    fn no_snapshot(&mut self, _: &EntryContext, error: &MachineError) {
        self.0.push(format!("no snapshot: {error}"));
    }

    fn no_image(&mut self, _: &EntryContext, error: &MachineError) {
        self.0.push(format!("no image: {error}"));
    }

    fn not_resumed(&mut self, _: &EntryContext, _: &MachineError) {
        self.0.push("not resumed".into());
    }

    fn prepared(&mut self, _: &EntryContext, _: &Deployment) {
        self.0.push("prepared".into());
    }

    fn lacks(&mut self, _: &EntryContext, _: &Deployment, lack: &Lack) {
        self.0.push(match lack {
            Lack::Refused(refusal, error) => {
                let words = error.as_ref().and_then(MachineError::detail);
                format!("refused: {refusal} {words:?}")
            }
            Lack::Local(error) => format!("lacks: {error}"),
        });
    }

    fn decided(&mut self, _: &EntryContext, _: &Deployment, decision: Decision) {
        self.0.push(format!("decided {decision:?}"));
    }

    fn not_rebuilt(&mut self, _: &EntryContext, _: &MachineError) {
        self.0.push("not rebuilt".into());
    }

    fn waits_to_go_on(&mut self, _: &EntryContext, _: &MachineError) {
        self.0.push("waits to go on".into());
    }
}

/// A driver, its node, and who watches.
pub struct Stage {
    pub driver: Driver<Model>,
    pub node: Node,
    pub seen: Seen,
}

impl Stage {
    pub fn new(model: Model) -> Self {
        Self::of(Driver::new(model))
    }

    /// Founded with one component, brought up with another.
    pub fn exchangeable(founding: u8, current: u8) -> Self {
        let model = Model {
            component: current,
            ..Model::default()
        };
        let (founding, current) = (deployment(founding), deployment(current));
        Self::of(Driver::exchangeable(model, founding, current))
    }

    fn of(driver: Driver<Model>) -> Self {
        Self {
            driver,
            node: Node::default(),
            seen: Seen::default(),
        }
    }

    pub fn model(&mut self) -> &mut Model {
        self.driver.machine_mut()
    }

    pub fn drive(&mut self, work: Work) -> Result<Done, Failed> {
        let (node, seen) = (&mut self.node, &mut self.seen);
        self.driver.drive(work, node, seen).to_end()
    }

    /// Work that ends with something for the core.
    pub fn tell(&mut self, work: Work) -> Input {
        match self.drive(work) {
            Ok(Done::Tell(input)) => input,
            other => panic!("{other:?}"),
        }
    }

    pub fn seen(&mut self) -> Vec<String> {
        std::mem::take(&mut self.seen.0)
    }
}

pub fn at(index: u64) -> EntryContext {
    EntryContext {
        index: LogIndex(index),
        ..EntryContext::default()
    }
}

pub fn deployment(component: u8) -> Deployment {
    Deployment {
        component: ComponentId([component; 32]),
        profile: Bytes::new(),
        quota: Quota::default(),
        barriers: Default::default(),
    }
}

pub fn apply(index: u64, calls: Vec<Call>) -> Work {
    Work::Apply {
        context: at(index),
        entry: Bytes::from_static(b"entry"),
        calls,
    }
}

pub fn commands(commands: &[&'static str]) -> Call {
    Call::Commands(commands.iter().map(|text| Bytes::from(*text)).collect())
}

pub fn change() -> Call {
    Call::ConfChange(ConfChange {
        kind: ChangeKind::AddVoter,
        node: NodeId(1),
        data: Bytes::new(),
    })
}

pub fn leader() -> Call {
    Call::StatusChange(LeaderChanged {
        old: NodeId(0),
        new: NodeId(1),
        term: Term(1),
    })
}

pub fn restore(index: u64, runs: Option<u8>) -> Work {
    Work::Restore {
        context: at(index),
        snapshot: SnapshotName {
            index: LogIndex(index),
            term: Term(1),
            digest: [0; 32],
            size: 1,
        },
        deployment: runs.map(deployment),
    }
}
