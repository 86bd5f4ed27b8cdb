//! What a rehearsal says.

use serde::Serialize;

use crate::history::Origin;

/// What a rehearsal found.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// What follows from the findings.
    pub verdict: Verdict,
    /// Where the requests come from.
    pub origin: Origin,
    /// Calls of the log in the history, `init` and the first leader among them.
    pub events: usize,
    /// Commands among them.
    pub commands: usize,
    /// Commands that the machine answered with a reply.
    pub replies: usize,
    /// Commands it rejected.
    pub rejections: usize,
    /// Commands it failed on.
    pub faults: usize,
    /// The checks, in the order they were made.
    pub checks: Vec<CheckResult>,
    /// What the history cost.
    pub costs: Costs,
}

/// What follows from the findings of a rehearsal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing was found.
    Pass,
    /// Only what replicas survive, but an author should know.
    Warnings,
    /// The machine breaks its contract.
    Fail,
}

/// What is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Whether the requests reach anything.
    Coverage,
    /// Two replicas of one log, with other queries and rebuilds around them.
    Replicas,
    /// Replicas that were restored at barriers, and those that lived through them.
    CanonicalPoints,
    /// What a barrier changes: nothing may be kept outside `save`.
    Barriers,
    /// `save`, `restore`, `save`: the same bytes.
    RoundTrip,
    /// `save` twice: the same bytes, and the machine goes on as if it had not been asked.
    SaveIsReadOnly,
    /// Commands cut off by a limit leave no trace.
    Faults,
    /// A rejected command leaves no trace.
    Rejections,
    /// Commands together do what they do one by one.
    Batch,
    /// Queries leave no trace.
    Queries,
    /// Queries are answered from the state that the log has made.
    Answers,
    /// What the machine takes from the entry's time and chance.
    TimeAndChance,
    /// What grows under the same commands, repeated.
    Growth,
}

impl Check {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coverage => "coverage",
            Self::Replicas => "replicas",
            Self::CanonicalPoints => "canonical-points",
            Self::Barriers => "barriers",
            Self::RoundTrip => "round-trip",
            Self::SaveIsReadOnly => "save-is-read-only",
            Self::Faults => "faults",
            Self::Rejections => "rejections",
            Self::Batch => "batch",
            Self::Queries => "queries",
            Self::Answers => "answers",
            Self::TimeAndChance => "time-and-chance",
            Self::Growth => "growth",
        }
    }
}

/// What one check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckResult {
    /// Which.
    pub check: Check,
    /// What was compared, and how much of it.
    pub compared: String,
    /// What was found; nothing, if all is well.
    pub findings: Vec<Finding>,
}

impl CheckResult {
    pub(crate) fn new(check: Check, compared: impl Into<String>) -> Self {
        Self {
            check,
            compared: compared.into(),
            findings: Vec::new(),
        }
    }

    pub(crate) fn find(
        &mut self,
        severity: Severity,
        at: Option<Place>,
        reason: impl Into<String>,
    ) {
        self.push(severity, None, at, reason.into());
    }

    /// Finds something of a class.
    pub(crate) fn find_of(
        &mut self,
        class: Class,
        severity: Severity,
        at: Option<Place>,
        reason: impl Into<String>,
    ) {
        self.push(severity, Some(class), at, reason.into());
    }

    fn push(
        &mut self,
        severity: Severity,
        class: Option<Class>,
        at: Option<Place>,
        reason: String,
    ) {
        self.findings.push(Finding {
            severity,
            class,
            at,
            reason,
        });
    }

    /// Whether something of this class was found.
    pub(crate) fn has(&self, class: Class) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.class == Some(class))
    }

    /// The worst of what was found.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nobody but the author can see it.
    Note,
    /// Replicas agree all the same, but users may wonder.
    Warning,
    /// Against the contract: users lose something, or get wrong answers.
    Error,
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of defect it is, where that has a name.
    pub class: Option<Class>,
    /// The first request where it shows.
    pub at: Option<Place>,
    /// What happened, and what to do about it.
    pub reason: String,
}

/// The kinds of defects that have a name: what a machine depends on, or changes, that it should not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The machine answers or decides by what it keeps outside of its saved state: a static, a cache, an address. A barrier takes
    /// that away, on every replica.
    Unsaved,
    /// The machine answers or decides by the seeds that its instance started with: the order of a hash map, a generator seeded
    /// at the start. Every replica does the same, and queries show exactly that; a barrier gives other seeds.
    Seeded,
    /// `restore` does not read back what `save` wrote.
    RoundTrip,
    /// `save` changes the machine.
    SaveWrites,
    /// A query changes the machine. In a fork what it writes is thrown away.
    QueryWrites,
    /// The same calls use other fuel.
    Fuel,
}

impl Class {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsaved => "unsaved",
            Self::Seeded => "seeded",
            Self::RoundTrip => "round-trip",
            Self::SaveWrites => "save-writes",
            Self::QueryWrites => "query-writes",
            Self::Fuel => "fuel",
        }
    }
}

/// A request of the history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Place {
    /// Line of the file, or number of the generated request; 0 for what every group begins with.
    pub line: usize,
    /// How often the history was begun: 1 as it is written, more where a short one was repeated.
    pub round: usize,
    /// The request, escaped, its beginning.
    pub request: String,
}

/// `line 7`, or `line 7 of round 2`.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}", self.line)?;
        match self.round {
            1 => Ok(()),
            round => write!(f, " of round {round}"),
        }
    }
}

/// What a history cost.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Costs {
    /// Fuel of one command that did not fault.
    pub command_fuel: Quantiles,
    /// Bytes of memory that one command took.
    pub command_memory: Quantiles,
    /// Bytes of linear memory after the start.
    pub memory_at_start: u64,
    /// Bytes of linear memory after the history.
    pub memory_at_end: u64,
    /// Bytes of the snapshot after the history.
    pub snapshot_bytes: u64,
    /// Fuel of that `save`.
    pub save_fuel: u64,
    /// Bytes by which the snapshot grew with each command of the history, when it was repeated.
    pub snapshot_growth: f64,
    /// Bytes by which the memory grew with each command of the history, when it was repeated.
    pub memory_growth: f64,
}

/// A distribution.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Quantiles {
    /// Half are at most this.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// All are at most this.
    pub max: u64,
}

impl Quantiles {
    pub(crate) fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let Some(last) = values.len().checked_sub(1) else {
            return Self::default();
        };
        Self {
            p50: values[last / 2],
            p99: values[last * 99 / 100],
            max: values[last],
        }
    }
}

impl Report {
    /// The result of one check, if it was made.
    pub fn check(&self, check: Check) -> Option<&CheckResult> {
        self.checks.iter().find(|result| result.check == check)
    }
}
