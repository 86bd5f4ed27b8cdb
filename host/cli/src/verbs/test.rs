//! `skep test`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use skep::clock::Stopwatch;
use skep_machine::Descriptor;
use skep_machine::wasm::{APPLY_THREAD_STACK_BYTES, Component, Engine, Inspection, Profile};
use skep_rehearsal::{CheckResult, History, Report, Severity, Verdict, generate, rehearse};
use skep_types::code::Code;

use super::failure::{Exit, Failure};
use super::{Form, output};

/// A profile is some lines; anything larger is not one.
const PROFILE_BYTES_MAX: u64 = 64 << 10;
/// A history of the most requests, each of a megabyte, would be larger; nobody has written one.
const REQUESTS_BYTES_MAX: u64 = 256 << 20;

/// Takes a machine through what may happen to a replica, without a cluster: two replicas of one history with other noise
/// around them, a snapshot at every prefix, limits that cut commands off, batches, queries. Says what the machine would do
/// wrong, what it costs, and a verdict.
///
/// Exit codes: 0 it passes (warnings are no failure, but with --strict) · 1 it fails.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The machine: a .wasm file
    component: PathBuf,
    /// Requests, one a line: `put a 1` is a command, `?get a` a query, `!leader 2`
    /// a change of leader, `!member add-learner 4` one of membership, `!init …` what the group is created with; \n \t \\ \xHH
    /// are bytes. Without it, requests are guessed from what the machine says to wrong ones
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Limits of the group, as in `POST /v1/groups`: a JSON file such as {"command-fuel": 1000000}
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Warnings fail, too
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    form: Form,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Printed {
    component: Inspection,
    machine: Descriptor,
    compile_ms: u64,
    #[serde(flatten)]
    report: Report,
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (form, strict) = (arguments.form, arguments.strict);
    let printed = on_own_thread(move || test(&arguments))??;
    output::print(form, &printed, text)?;
    let message = match printed.report.verdict {
        Verdict::Fail => "the machine breaks its contract",
        Verdict::Warnings if strict => "there are warnings, and --strict was given",
        Verdict::Pass | Verdict::Warnings => return Ok(()),
    };
    Err(Failure::new(Code::RehearsalFailed, message, Exit::Failed).into())
}

fn test(arguments: &Arguments) -> anyhow::Result<Printed> {
    let bytes = read(&arguments.component, u64::MAX)?;
    let profile = match &arguments.profile {
        None => Profile::default(),
        Some(path) => serde_json::from_slice(&read(path, PROFILE_BYTES_MAX)?)
            .with_context(|| format!("{} is no profile", path.display()))?,
    };
    let written = match &arguments.requests {
        None => None,
        Some(path) => {
            let history = History::parse(&read(path, REQUESTS_BYTES_MAX)?);
            Some(history.with_context(|| path.display().to_string())?)
        }
    };
    let watch = Stopwatch::start();
    let component = Engine::new()
        .and_then(|engine| Component::compile(&engine, &bytes))
        .map_err(Failure::of)
        .with_context(|| arguments.component.display().to_string())?;
    let compile_ms = watch.elapsed().as_millis() as u64;
    let component = Arc::new(component);
    let history = match written {
        Some(history) => history,
        None => generate(&component, &profile)?,
    };
    Ok(Printed {
        component: component.inspection().clone(),
        machine: component.descriptor().clone(),
        compile_ms,
        report: rehearse(&component, &profile, &history)?,
    })
}

fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(cannot)?.len();
    anyhow::ensure!(
        size <= limit,
        "{} has {size} bytes, at most {limit} are read",
        path.display()
    );
    std::fs::read(path).with_context(cannot)
}

/// Runs what compiles a component on a stack as large as the compiler has in a node.
pub(super) fn on_own_thread<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let thread = std::thread::Builder::new()
        .name("skep-guest".into())
        .stack_size(APPLY_THREAD_STACK_BYTES)
        .spawn(run)
        .context("cannot start a thread for the machine")?;
    Ok(thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn text(printed: &Printed) -> String {
    let Printed {
        component,
        machine,
        compile_ms,
        report,
    } = printed;
    let costs = &report.costs;
    let mut text = format!(
        "machine    {} {}, schema {} (reads {} and later)\ncomponent  {}\nsize       {} bytes, {} functions, compiled in {compile_ms} ms\nimports    {}\nhistory    {} commands, {}: {} replies, {} rejections, {} faults\n\n",
        machine.name,
        machine.version,
        machine.schema,
        machine.oldest_schema,
        component.id,
        component.size,
        component.functions,
        output::list(&component.imports),
        report.commands,
        match report.origin {
            skep_rehearsal::Origin::Written => "as written",
            skep_rehearsal::Origin::Generated => "guessed",
        },
        report.replies,
        report.rejections,
        report.faults,
    );
    for check in &report.checks {
        text += &check_text(check);
    }
    let rows = [
        ("fuel of a command", costs.command_fuel),
        ("memory of a command", costs.command_memory),
    ]
    .map(|(what, of)| {
        let [p50, p99, max] = [of.p50, of.p99, of.max].map(|value| value.to_string());
        vec![what.to_owned(), p50, p99, max]
    });
    text += "\n";
    text += &output::table(&["COSTS", "P50", "P99", "MAX"], &rows);
    text += &format!(
        "memory {} bytes at the start, {} at the end · snapshot {} bytes, {} fuel to save\n\nverdict: {}\n",
        costs.memory_at_start,
        costs.memory_at_end,
        costs.snapshot_bytes,
        costs.save_fuel,
        match report.verdict {
            Verdict::Pass => "pass",
            Verdict::Warnings => "pass, with warnings",
            Verdict::Fail => "FAIL",
        }
    );
    text
}

fn check_text(check: &CheckResult) -> String {
    let mark = match check.severity() {
        None | Some(Severity::Note) => "ok  ",
        Some(Severity::Warning) => "warn",
        Some(Severity::Error) => "FAIL",
    };
    let mut text = format!("{mark}  {:<18} {}\n", check.check.name(), check.compared);
    for finding in &check.findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let place = match &finding.at {
            Some(place) if place.line > 0 => format!("{place}, `{}` ", place.request),
            Some(place) => format!("at the start, `{}` ", place.request),
            None => String::new(),
        };
        let class = (finding.class).map_or(String::new(), |class| format!("[{}] ", class.name()));
        text += &format!("        {severity}: {place}{class}{}\n", finding.reason);
    }
    text
}
