//! `skep replay`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::replay::{Archive, Cast, Digested, Happened, Past, ReplayError, What, digest, genesis};
use anyhow::Context;
use serde::Serialize;
use skep::MachineFactory;
use skep::{ComponentId, GroupId, LogIndex, MachineError, Outcome, StateMachine};
use skep_core::deployment::Deployment;
use skep_core::form::Form as SnapshotForm;
use skep_core::outcome::EntryContext;
use skep_machine::wasm::{Component, Engine, MachineLabel, WasmMachine};
use skep_rehearsal::escape;
use skep_server::catalog::machine::CatalogMachine;
use skep_server::catalog::{self, Deployed, GroupRecord};
use skep_types::shared::lock;

use super::failure::{Exit, Failure};
use super::test::on_own_thread;
use super::{Form, output};

/// Runs the log of a group again, from a stopped node's data directory, which is only read: from the newest snapshot that
/// is there, at or below the index, through the entries behind it. Prints the state's digest; with --print every command
/// and the machine's reply; with --compare the first index at which another component would have answered otherwise.
///
/// Exit codes: 0 done · 1 it cannot be done, or the two components differ in replies or state.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Data directory of a stopped node
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Name or id of the group; 0 is the cluster's catalogue
    #[arg(long)]
    group: String,
    /// Runs this .wasm file instead of the group's component, which is taken from the data directory
    #[arg(long, value_name = "FILE")]
    component: Option<PathBuf>,
    /// The last entry that is run; the last one known to be committed if absent
    #[arg(long, value_name = "INDEX")]
    at: Option<u64>,
    /// Without --at, also runs what the log has beyond that: after a clean stop usually the group's last commands
    #[arg(long, conflicts_with = "at")]
    uncommitted: bool,
    /// Prints each command and its outcome
    #[arg(long)]
    print: bool,
    /// Runs this .wasm file as well, and says where the two differ first
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Printed {
    group: u64,
    name: String,
    incarnation: u64,
    /// The first index that can be rebuilt.
    first: u64,
    /// The last index known to be committed.
    committed: u64,
    /// The last index in the log.
    last: u64,
    /// The index that was rebuilt.
    at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<Line>>,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Differences>,
}

/// One thing that happened, in text.
#[derive(Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    index: u64,
    term: u64,
    now: u64,
    /// Place in its entry.
    ordinal: usize,
    fuel: u64,
    /// Escaped; what is no command begins with `!`.
    request: String,
    /// Escaped.
    outcome: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct State {
    sha256: String,
    bytes: u64,
}

/// Where two components part.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Differences {
    /// The first reply that differs: what the one and the other answered.
    reply: Option<(Line, Line)>,
    /// The first index at which they used other fuel.
    fuel: Option<u64>,
    /// The first index behind which they save other bytes.
    state: Option<u64>,
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let form = arguments.form;
    let printed = on_own_thread(move || replay(&arguments))??;
    output::print(form, &printed, text)?;
    match printed.differences {
        Some(Differences {
            reply: None,
            state: None,
            ..
        })
        | None => Ok(()),
        Some(_) => {
            let message = "the two components differ";
            Err(Failure::new(
                skep_types::code::Code::ComponentsDiffer,
                message,
                Exit::Failed,
            )
            .into())
        }
    }
}

fn replay(arguments: &Arguments) -> anyhow::Result<Printed> {
    let archive = Archive::open(&arguments.data)
        .with_context(|| format!("cannot look into {}", arguments.data.display()))?;
    let machines = Machines::of(&archive, arguments)?;
    let past = archive.past(machines.group)?;
    let until = match (arguments.at, arguments.uncommitted) {
        (Some(at), _) => LogIndex(at),
        (None, true) => past.last(),
        (None, false) => past.committed(),
    };
    let one = Told::tell(&past, &machines.code, until)?;
    let differences = match &machines.other {
        None => None,
        Some(other) => Some(compare(&past, &machines.code, other, &one, until)?),
    };
    Ok(Printed {
        group: machines.group.0,
        name: machines.name.clone(),
        incarnation: past.incarnation().0,
        first: past.first()?.0,
        committed: past.committed().0,
        last: past.last().0,
        at: until.0,
        steps: arguments.print.then_some(one.lines),
        state: State {
            sha256: hex(&one.state.sha256),
            bytes: one.state.bytes,
        },
        differences,
    })
}

fn compare(
    past: &Past<'_>,
    code: &Code<'_>,
    other: &Code<'_>,
    one: &Told,
    until: LogIndex,
) -> anyhow::Result<Differences> {
    let two = Told::tell(past, other, until).context("with the component to compare")?;
    let pairs = || one.lines.iter().zip(&two.lines);
    let is_reply = |line: &Line| !line.request.starts_with("!barrier");
    let reply = pairs().find(|(one, two)| is_reply(one) && one.outcome != two.outcome);
    let fuel = pairs().find(|(one, two)| one.fuel != two.fuel);
    let mut state = None;
    if one.state != two.state {
        // They differ at the end: halve what is left until it is one entry.
        let (mut equal, mut differs) = (past.first()?.0, until.0);
        let parted = |at| -> anyhow::Result<bool> {
            let at = LogIndex(at);
            let one = Told::tell(past, code, at)?;
            Ok(one.state != Told::tell(past, other, at)?.state)
        };
        if parted(equal)? {
            differs = equal;
        }
        while differs - equal > 1 {
            let middle = equal + (differs - equal) / 2;
            if parted(middle)? {
                differs = middle;
            } else {
                equal = middle;
            }
        }
        state = Some(differs);
    }
    Ok(Differences {
        reply: reply.map(|(one, two)| (one.clone(), two.clone())),
        fuel: fuel.map(|(one, _)| one.index),
        state,
    })
}

/// The machines of one group.
struct Machines<'a> {
    group: GroupId,
    name: String,
    code: Code<'a>,
    other: Option<Code<'a>>,
}

/// What is run.
enum Code<'a> {
    /// At each place the component that the group ran there, or one file throughout.
    Components(Box<Components<'a>>),
    /// The catalogue is part of the host.
    Catalogue,
}

struct Components<'a> {
    archive: &'a Archive,
    record: Arc<GroupRecord>,
    engine: Engine,
    /// Run instead of what the log says.
    instead: Option<Arc<Component>>,
    compiled: Mutex<BTreeMap<ComponentId, Arc<Component>>>,
}

impl<'a> Machines<'a> {
    fn of(archive: &'a Archive, arguments: &Arguments) -> anyhow::Result<Self> {
        if arguments.group == catalog::GROUP.0.to_string() {
            anyhow::ensure!(
                arguments.component.is_none() && arguments.compare.is_none(),
                "the catalogue is part of skep; it runs no component"
            );
            return Ok(Self {
                group: catalog::GROUP,
                name: "catalogue".into(),
                code: Code::Catalogue,
                other: None,
            });
        }
        let record = archive.catalog().find(&arguments.group).with_context(|| {
            let known = archive.catalog().groups().map(|group| group.name.clone());
            let known = output::list(known);
            format!(
                "this node knows no group {}; it knows {known}",
                arguments.group
            )
        })?;
        let engine = Engine::new().map_err(Failure::of)?;
        let code = |instead: Option<&Path>| -> anyhow::Result<Code<'a>> {
            let instead = match instead {
                None => None,
                Some(path) => {
                    let shown = path.display();
                    let bytes =
                        std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
                    let component = Component::compile(&engine, &bytes)
                        .map_err(Failure::of)
                        .with_context(|| shown.to_string())?;
                    Some(Arc::new(component))
                }
            };
            Ok(Code::Components(Box::new(Components {
                archive,
                record: record.clone(),
                engine: engine.clone(),
                instead,
                compiled: Mutex::default(),
            })))
        };
        Ok(Self {
            group: record.id,
            name: record.name.clone(),
            code: code(arguments.component.as_deref())?,
            other: match &arguments.compare {
                None => None,
                Some(path) => Some(code(Some(path))?),
            },
        })
    }
}

impl Code<'_> {
    fn cast(&self) -> Cast<'_> {
        match self {
            Self::Catalogue => Cast::One(Box::new(CatalogMachine::new().0)),
            Self::Components(components) => Cast::Many {
                founding: components.record.founding().deployment(),
                factory: &**components,
            },
        }
    }
}

impl Components<'_> {
    fn component(&self, id: ComponentId) -> anyhow::Result<Arc<Component>> {
        if let Some(instead) = &self.instead {
            return Ok(instead.clone());
        }
        let mut compiled = lock(&self.compiled);
        if let Some(component) = compiled.get(&id) {
            return Ok(component.clone());
        }
        let bytes = self.archive.component(id)?;
        let component = Arc::new(Component::compile(&self.engine, &bytes)?);
        compiled.insert(id, component.clone());
        Ok(component)
    }
}

impl MachineFactory for Components<'_> {
    fn make(&self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, MachineError> {
        let local = MachineError::missing;
        let deployed = Deployed::of(deployment)
            .map_err(|error| local(format!("the log holds a profile that is none: {error}")))?;
        let component = self
            .component(deployed.component)
            .map_err(|error| local(format!("{error:#}")))?;
        let label = MachineLabel {
            group: self.record.id,
            name: self.record.name.clone(),
        };
        let genesis = genesis(&self.record);
        let machine = WasmMachine::new(component, deployed.profile, genesis, label)?;
        Ok(Box::new(machine))
    }
}

/// A past as one machine lived it.
struct Told {
    lines: Vec<Line>,
    state: Digested,
}

impl Told {
    fn tell(past: &Past<'_>, code: &Code<'_>, until: LogIndex) -> anyhow::Result<Self> {
        let mut lines = Vec::new();
        let mut last = EntryContext::default();
        let mut machine = past.replay(code.cast(), until, &mut |happened| {
            last = happened.context;
            lines.extend(lines_of(&happened));
        })?;
        let state = digest(&mut *machine, &last).map_err(|error| ReplayError::Machine {
            index: last.index,
            source: error.into(),
        })?;
        Ok(Self { lines, state })
    }
}

fn lines_of(happened: &Happened) -> Vec<Line> {
    let EntryContext {
        index, term, now, ..
    } = happened.context;
    let line = |ordinal, request, outcome| Line {
        index: index.0,
        term: term.0,
        now,
        ordinal,
        // An entry has one figure for all its commands.
        fuel: if ordinal == 0 { happened.fuel } else { 0 },
        request,
        outcome,
    };
    match &happened.what {
        What::Restored {
            form,
            bytes,
            component,
        } => {
            let image = if *form == SnapshotForm::Image {
                "an image of "
            } else {
                ""
            };
            let restored = format!("!restored {image}{bytes} bytes, written by {component}");
            vec![line(0, restored, String::new())]
        }
        What::Init { config, outcome } => {
            vec![line(0, format!("!init {}", escape(config)), show(outcome))]
        }
        What::Commands(commands) => commands
            .iter()
            .enumerate()
            .map(|(ordinal, (command, outcome))| {
                let mut request = escape(command);
                if request.starts_with('!') {
                    request.insert(0, '\\');
                }
                line(ordinal, request, show(outcome))
            })
            .collect(),
        What::Change { change, outcome } => {
            let kind = serde_json::to_value(change.kind).unwrap_or_default();
            let kind = kind.as_str().unwrap_or_default().to_owned();
            let request = format!("!member {kind} {} {}", change.node, escape(&change.data));
            vec![line(0, request.trim_end().to_owned(), show(outcome))]
        }
        What::Leader(event) => vec![line(0, format!("!leader {}", event.new), String::new())],
        What::Activated { component, outcome } => {
            vec![line(0, format!("!activate {component}"), show(outcome))]
        }
        What::Barrier {
            form,
            saved,
            as_on_disk,
        } => {
            let image = if *form == SnapshotForm::Image {
                "image, "
            } else {
                ""
            };
            let saved = match saved {
                Ok(saved) => format!(
                    "{image}sha256 {}, {} bytes",
                    hex(&saved.sha256),
                    saved.bytes
                ),
                Err(words) => format!("{image}no snapshot: {words}"),
            };
            let on_disk = match as_on_disk {
                Some(true) => ", as in the node's snapshot",
                Some(false) => ", NOT as in the node's snapshot",
                None => "",
            };
            vec![line(0, "!barrier".into(), format!("{saved}{on_disk}"))]
        }
    }
}

fn show(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reply(reply) => escape(reply),
        Outcome::Rejected { code, message } => {
            format!("!rejected {code} {}", escape(message.as_bytes()))
        }
        Outcome::Refused { code, message } => {
            format!("!refused {code} {}", escape(message.as_bytes()))
        }
        Outcome::Fault(fault) => format!("!fault {fault}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn text(printed: &Printed) -> String {
    let mut text = String::new();
    for line in printed.steps.iter().flatten() {
        text += &line_text(line);
    }
    let _ = writeln!(
        text,
        "group {} {}, incarnation {}: state at {} has sha256 {}, {} bytes",
        printed.group,
        printed.name,
        printed.incarnation,
        printed.at,
        printed.state.sha256,
        printed.state.bytes
    );
    let _ = writeln!(
        text,
        "retained: {} to {}, known to be committed up to {}",
        printed.first, printed.last, printed.committed
    );
    let Some(differences) = &printed.differences else {
        return text;
    };
    match &differences.reply {
        Some((one, two)) => {
            text += "the first other reply:\n";
            text += &line_text(one);
            text += &line_text(two);
        }
        None => text += "replies: equal\n",
    }
    let index = |index: Option<u64>| match index {
        Some(index) => format!("other from index {index} on"),
        None => "equal".into(),
    };
    let _ = writeln!(text, "fuel: {}", index(differences.fuel));
    let _ = writeln!(text, "state: {}", index(differences.state));
    text
}

fn line_text(line: &Line) -> String {
    let place = format!("{}.{}", line.index, line.ordinal);
    let mut text = format!("{place:<10} {}", line.request);
    if !line.outcome.is_empty() {
        text += " => ";
        text += &line.outcome;
    }
    text + "\n"
}
