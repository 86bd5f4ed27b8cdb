//! `skep doctor`: what is wrong with this machine and with the cluster, and which page of the handbook says what to do.

mod cluster;
mod machine;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use skep_types::code::Code;

use super::connect::Connection;
use super::failure::Failure;
use super::{Remote, output};

/// Where the pages are.
const HANDBOOK: &str = "docs/operations.md";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Also look at this machine: at the configuration file and the data directory of its node
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    gravity: Gravity,
    /// What is the matter: a node, a group, a file.
    of: String,
    /// What is wrong with it.
    text: String,
    /// The section of the handbook that says what to do.
    page: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Gravity {
    /// Somebody has to act.
    Problem,
    /// It goes on, but bears less than it should.
    Warning,
}

impl fmt::Display for Gravity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
        })
    }
}

impl Finding {
    fn problem(of: impl ToString, text: impl Into<String>, page: &'static str) -> Self {
        let (gravity, of, text) = (Gravity::Problem, of.to_string(), text.into());
        Self {
            gravity,
            of,
            text,
            page,
        }
    }

    fn warning(of: impl ToString, text: impl Into<String>, page: &'static str) -> Self {
        let gravity = Gravity::Warning;
        Self {
            gravity,
            ..Self::problem(of, text, page)
        }
    }
}

/// All that was found.
#[derive(Serialize)]
struct Report {
    /// What was looked at, in words.
    looked_at: Vec<String>,
    findings: Vec<Finding>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { config, remote } = arguments;
    let (mut looked_at, mut findings) = (Vec::new(), Vec::new());
    if let Some(path) = &config {
        looked_at.push(format!("this machine, by {}", path.display()));
        findings.extend(machine::examine(path));
    }
    match Connection::open(&remote).await {
        Ok(connection) => {
            let seen = cluster::Seen::look(&connection, remote.timeout).await?;
            looked_at.push(seen.to_string());
            findings.extend(seen.findings());
        }
        Err(error) => findings.push(Finding::problem(
            remote.at.join(", "),
            format!("no node answers there: {error:#}"),
            "a-node-is-down",
        )),
    }
    findings.sort_by_key(|finding| finding.gravity);
    let problems = findings
        .iter()
        .filter(|finding| finding.gravity == Gravity::Problem)
        .count();
    let report = Report {
        looked_at,
        findings,
    };
    output::print(remote.form, &report, text)?;
    match problems {
        0 => Ok(()),
        found => {
            let message = format!("{found} problems were found");
            Err(Failure::new(Code::FoundProblems, message, Code::FoundProblems.exit()).into())
        }
    }
}

fn text(report: &Report) -> String {
    let looked_at = report.looked_at.iter();
    let looked_at: String = looked_at
        .map(|what| format!("looked at {what}\n"))
        .collect();
    let findings = report.findings.iter().map(|finding| {
        let Finding {
            gravity,
            of,
            text,
            page,
        } = finding;
        format!("{gravity}: {of}: {text}\n    {HANDBOOK}#{page}\n")
    });
    match report.findings.is_empty() {
        true => format!("{looked_at}all is well\n"),
        false => format!("{looked_at}{}", findings.collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sections that are named are there.
    pub(super) fn assert_page(finding: &Finding) {
        let handbook = include_str!("../../../../docs/operations.md");
        let headings = handbook.lines().filter_map(|line| line.strip_prefix("## "));
        let mut anchors = headings.map(|heading| heading.to_lowercase().replace(' ', "-"));
        assert!(anchors.any(|anchor| anchor == finding.page), "{finding:?}");
    }

    #[test]
    fn a_report_names_the_section() {
        let finding = Finding::problem("node 3", "it does not answer", "a-node-is-down");
        assert_page(&finding);
        let mut report = Report {
            looked_at: vec!["this machine".to_owned()],
            findings: vec![finding],
        };
        assert_eq!(
            text(&report),
            "looked at this machine\nproblem: node 3: it does not answer\n    docs/operations.md#a-node-is-down\n"
        );
        report.findings.clear();
        assert_eq!(text(&report), "looked at this machine\nall is well\n");
    }
}
