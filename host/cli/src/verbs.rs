//! The command line: one file for each verb. stdout is data, stderr is everything else.

mod cluster;
mod compile_child;
mod completions;
mod component;
mod config;
pub mod connect;
mod demo;
mod dev;
mod doctor;
pub mod failure;
mod group;
mod inspect;
mod member;
mod node;
mod output;
mod private;
mod propose;
mod query;
mod recover;
mod reload;
mod replay;
mod serve;
mod status;
mod test;

use crate::telemetry::Telemetry;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Where the first node of a cluster on this machine listens for clients.
const DEFAULT_AT: &str = "127.0.0.1:7401";

/// Hosts replicated state machines written in any language.
///
/// One `skep serve` process is a node; a node hosts replicas of many Raft groups; each group runs one machine, a
/// WebAssembly component that exports skep:machine.
#[derive(Debug, Parser)]
#[command(name = "skep", version, propagate_version = true, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// More log lines on stderr: -v for information, -vv for debugging (see also SKEP_LOG)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

const AFTER_HELP: &str = "\
Begin with:
  skep demo                        the whole of it on real data, with a node killed in between
  skep dev                         a cluster of three nodes on this machine
  skep propose kv 'put a 1'        a command to the group `kv` of it
  skep query kv 'get a'            and a question

Exit codes: 0 done · 1 failed, nothing was changed · 2 wrong usage · 3 unavailable, try again ·
            4 the outcome of a command is unknown · 5 the machine rejected or failed on the request";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs one node of a cluster until it is told to stop
    Serve(serve::Arguments),
    /// Runs a cluster of real nodes on this machine, with a group of a component
    Dev(dev::Arguments),
    /// Loads real data into three nodes, kills one, and checks every byte
    Demo(demo::Arguments),
    /// Founds a cluster of one node
    Cluster(cluster::Arguments),
    /// Creates, lists, shows, removes and steers groups
    Group(group::Arguments),
    /// Uploads, lists and removes components
    Component(component::Arguments),
    /// Changes who hosts a group
    Member(member::Arguments),
    /// Lists, invites, removes and cordons the nodes of the cluster
    Node(node::Arguments),
    /// Proposes a command to a group and prints the machine's reply
    Propose(propose::Arguments),
    /// Asks a group's machine without changing anything
    Query(query::Arguments),
    /// Shows a node and its cluster
    Status(status::Arguments),
    /// Looks for what is wrong with a cluster and this machine, and names the page that says what to do
    Doctor(doctor::Arguments),
    /// Shows what a component is, and whether it can be a machine
    Inspect(inspect::Arguments),
    /// Takes a machine through what may happen to a replica, and says what it would do wrong
    Test(test::Arguments),
    /// Runs the log of a stopped node's group again, and prints what its machine answered
    Replay(replay::Arguments),
    /// Goes on with what is left after the majority of the catalogue, or of groups, is lost for good
    Recover(recover::Arguments),
    /// Checks a configuration file
    Config(config::Arguments),
    /// Prints a completion script for a shell
    Completions(completions::Arguments),
    /// Compiles one component for a node, which starts this itself
    #[command(hide = true)]
    CompileChild(compile_child::Arguments),
}

/// Which node to talk to, and in which form to answer.
#[derive(Clone, Debug, Args)]
struct Remote {
    /// Client address of any node of the cluster; several separated by commas
    #[arg(long, env = "SKEP_AT", value_name = "HOST:PORT", default_value = DEFAULT_AT, value_delimiter = ',')]
    at: Vec<String>,
    /// How long to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    form: Form,
}

/// In which form to print.
#[derive(Clone, Copy, Debug, Args)]
struct Form {
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Cli {
    /// Whether this process is a node, and no client of one.
    pub fn is_node(&self) -> bool {
        matches!(self.verb, Verb::Serve(_))
    }
}

/// Runs the verb that wants a process without threads and log lines; the others are given back.
pub fn run_bare(cli: Cli) -> Result<std::process::ExitCode, Box<Cli>> {
    match cli.verb {
        Verb::CompileChild(arguments) => Ok(compile_child::run(&arguments)),
        _ => Err(Box::new(cli)),
    }
}

/// Runs one verb.
pub async fn run(cli: Cli, telemetry: &Telemetry) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Serve(arguments) => serve::run(arguments, telemetry).await,
        Verb::Dev(arguments) => dev::run(arguments).await,
        Verb::Demo(arguments) => demo::run(arguments).await,
        Verb::Cluster(arguments) => cluster::run(arguments).await,
        Verb::Group(arguments) => group::run(arguments).await,
        Verb::Component(arguments) => component::run(arguments).await,
        Verb::Member(arguments) => member::run(arguments).await,
        Verb::Node(arguments) => node::run(arguments).await,
        Verb::Propose(arguments) => propose::run(arguments).await,
        Verb::Query(arguments) => query::run(arguments).await,
        Verb::Status(arguments) => status::run(arguments).await,
        Verb::Doctor(arguments) => doctor::run(arguments).await,
        Verb::Inspect(arguments) => inspect::run(arguments),
        Verb::Test(arguments) => test::run(arguments),
        Verb::Replay(arguments) => replay::run(arguments),
        Verb::Recover(arguments) => recover::run(arguments).await,
        Verb::Config(arguments) => config::run(arguments),
        Verb::Completions(arguments) => completions::run(arguments),
        Verb::CompileChild(_) => unreachable!("`run_bare` is asked first"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usual_lines_are_understood() {
        for line in [
            "skep serve --config skep.toml",
            "skep serve --config skep.toml --insecure-plaintext",
            "skep dev",
            "skep dev machine.wasm --nodes 5 --base-port 9000 --dir /tmp/x",
            "skep demo --groups 8 --keys 70000 --keep",
            "skep demo /usr/share",
            "skep cluster init --config skep.toml",
            "skep group create orders",
            "skep group create orders --component m.wasm --members 1,2,3 --init x",
            "skep group list -o json --at 127.0.0.1:1",
            "skep group transfer orders 2",
            "skep group upgrade orders --component m.wasm --dry-run",
            "skep component put m.wasm",
            "skep component list",
            "skep component collect --older-than 0",
            "skep member add orders 4",
            "skep node list",
            "skep node status 4 -o json",
            "skep node invite --seconds 600 --token-file token",
            "skep node remove 4",
            "skep node cordon 4",
            "skep node uncordon 4",
            "skep serve --join 127.0.0.1:7401 --data-dir d --peer a:1 --client a:2 --http a:3",
            "skep serve --config skep.toml --join a:1,b:1 --join-token-file token",
            "skep propose orders put",
            "skep query orders get --stale",
            "skep status",
            "skep doctor",
            "skep doctor --config skep.toml -o json --at 127.0.0.1:1",
            "skep inspect m.wasm -o json",
            "skep inspect m.wasm --wit",
            "skep test m.wasm",
            "skep test m.wasm --requests r.txt --profile p.json --strict -o json",
            "skep replay --data /var/lib/skep --group orders",
            "skep replay --data d --group 1 --component m.wasm --at 40 --print -o json",
            "skep replay --data d --group 1 --compare n.wasm --uncommitted",
            "skep recover describe --data-dir d",
            "skep recover plan --description a --description b --data-dir d --lost 3,4 --out p --give-up-groups",
            "skep recover apply --plan p --data-dir d --data-dir e",
            "skep config check skep.toml",
            "skep completions bash",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "skep",
            "skep serve",
            "skep group",
            "skep propose orders",
            "skep dev --nodes 0",
            "skep recover plan --data-dir d",
            "skep recover apply --plan p",
            "skep frobnicate",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
