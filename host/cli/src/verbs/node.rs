//! `skep node`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use skep::{NodeId, clock};
use skep_types::admin::{InviteNode, Invited, NodeView, OfNode, ReplaceNode, method};
use skep_types::record::{NodeRecord, NodeState};
use skep_types::status::Role;

use super::connect::Connection;
use super::{Form, Remote, output, private};

/// Between two looks at how far a node is.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the nodes of the cluster
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows one node, also one that was removed
    Status(One),
    /// Invites one node: prints a token, which is good for one node and for some time, and the line to run there
    Invite {
        /// For how many seconds the token is good
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        seconds: u32,
        /// Writes the token into this file, which must not be there, instead of showing it
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Removes a node for ever, dead or alive: its replicas leave their groups, then it leaves the cluster
    Remove(One),
    /// Puts no new replicas on a node from now on
    Cordon(One),
    /// Has all replicas of a node go to other nodes, leaders first; the node stays part of the cluster and gets no new ones
    Drain {
        #[command(flatten)]
        one: One,
        /// Waits until the node has no replica left
        #[arg(long)]
        wait: bool,
    },
    /// Has one node take the replicas of another, dead or alive, and then removes that one for ever
    Replace {
        /// Id of the node that goes
        old: u64,
        /// Id of the node that takes its replicas
        new: u64,
        /// Waits until the old node is removed
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Puts new replicas on a node again; also ends a drain, or a removal that is not done
    Uncordon(One),
}

#[derive(Debug, clap::Args)]
struct One {
    /// Id of the node
    node: u64,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (one, method) = match arguments.verb {
        Verb::List { remote } => return list(&remote).await,
        Verb::Invite {
            seconds,
            token_file,
            remote,
        } => return invite(seconds, token_file.as_deref(), &remote).await,
        Verb::Drain { one, wait } => return drain(one, wait).await,
        Verb::Replace {
            old,
            new,
            wait,
            remote,
        } => return replace(NodeId(old), NodeId(new), wait, &remote).await,
        Verb::Status(one) => (one, method::NODE_STATUS),
        Verb::Remove(one) => (one, method::NODE_REMOVE),
        Verb::Cordon(one) => (one, method::NODE_CORDON),
        Verb::Uncordon(one) => (one, method::NODE_UNCORDON),
    };
    let node = NodeId(one.node);
    let view: NodeView = one.remote.call(method, &OfNode { node }).await?;
    show(one.remote.form, &view)
}

async fn drain(one: One, wait: bool) -> anyhow::Result<()> {
    let asked = OfNode {
        node: NodeId(one.node),
    };
    let connection = Connection::open(&one.remote).await?;
    let mut view: NodeView = connection.call(method::NODE_DRAIN, &asked).await?;
    while wait && view.replicas > 0 {
        if view.node.state != NodeState::Draining {
            bail!(
                "node {} is {}: somebody else decided otherwise",
                asked.node,
                view.node.state
            );
        }
        clock::sleep(LOOK).await;
        view = connection.call(method::NODE_STATUS, &asked).await?;
    }
    show(one.remote.form, &view)
}

async fn replace(old: NodeId, new: NodeId, wait: bool, remote: &Remote) -> anyhow::Result<()> {
    let connection = Connection::open(remote).await?;
    let asked = ReplaceNode { node: old, by: new };
    let mut view: NodeView = connection.call(method::NODE_REPLACE, &asked).await?;
    while wait && view.node.state != NodeState::Removed {
        if view.node.state != NodeState::Removing {
            bail!(
                "node {old} is {}: somebody else decided otherwise",
                view.node.state
            );
        }
        clock::sleep(LOOK).await;
        view = connection
            .call(method::NODE_STATUS, &OfNode { node: old })
            .await?;
    }
    show(remote.form, &view)
}

async fn list(remote: &Remote) -> anyhow::Result<()> {
    let views: Vec<NodeView> = remote.call(method::NODE_LIST, &()).await?;
    output::print(remote.form, &views, |views| {
        let header = [
            "NODE",
            "NAME",
            "STATE",
            "ALIVE",
            "CATALOGUE",
            "REPLICAS",
            "LABELS",
            "CLIENT",
            "PEER",
        ];
        let rows: Vec<Vec<String>> = views.iter().map(row).collect();
        output::table(&header, &rows)
    })
}

async fn invite(seconds: u32, file: Option<&Path>, remote: &Remote) -> anyhow::Result<()> {
    // Before the invitation: where there is no file there is no token that nobody has.
    let mut file = match file {
        None => None,
        Some(path) => Some((path, private::create(path)?)),
    };
    let asked = InviteNode {
        seconds: Some(seconds),
    };
    let invited: Invited = remote.call(method::NODE_INVITE, &asked).await?;
    if let Some((path, file)) = &mut file {
        let written = writeln!(file, "{}", invited.token);
        written.with_context(|| format!("cannot write {}", path.display()))?;
        say!(
            "the token is in {}, good for one node and {seconds} seconds; the node joins at {}",
            path.display(),
            invited.join
        );
        return Ok(());
    }
    output::print(remote.form, &invited, |invited| {
        let Invited {
            token,
            seconds,
            join,
        } = invited;
        format!(
            "token {token}, good for one node and {seconds} seconds. On its machine, with addresses of its own:\n\
             SKEP_JOIN_TOKEN={token} skep serve --join {join} --data-dir DIR --peer HOST:PORT --client HOST:PORT --http HOST:PORT\n"
        )
    })
}

fn show(form: Form, view: &NodeView) -> anyhow::Result<()> {
    output::print(form, view, |view| {
        let NodeView { node, replicas, .. } = view;
        let next = match node.state {
            NodeState::Removing => {
                format!("\nit is removed when its {replicas} replicas have left their groups")
            }
            NodeState::Draining if *replicas > 0 => {
                "\nits replicas go to other nodes that may take them; see `skep node list`"
                    .to_owned()
            }
            NodeState::Draining => "\nit is empty".to_owned(),
            _ => String::new(),
        };
        let more = match replicas.saturating_sub(view.groups.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "node {} ({}), {}\nlabels {}\nalive {}\ncatalogue {}\nclient {}\nhttp {}\npeer {}\nreplicas {replicas}{}{more}{next}\n",
            node.id,
            node.name,
            node.state,
            labels(node),
            alive(view),
            role(view),
            node.client,
            node.http,
            node.peer,
            match view.groups.is_empty() {
                true => String::new(),
                false => format!(": {}", view.groups.join(", ")),
            },
        )
    })
}

fn row(view: &NodeView) -> Vec<String> {
    let node = &view.node;
    vec![
        node.id.to_string(),
        node.name.clone(),
        node.state.to_string(),
        alive(view).to_owned(),
        role(view).to_owned(),
        view.replicas.to_string(),
        labels(node),
        node.client.clone(),
        node.peer.clone(),
    ]
}

fn labels(node: &NodeRecord) -> String {
    let labels = node.labels.iter();
    let labels: Vec<_> = labels
        .map(|(label, value)| format!("{label}={value}"))
        .collect();
    output::or_dash((!labels.is_empty()).then(|| labels.join(",")))
}

fn alive(view: &NodeView) -> &'static str {
    match view.alive {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

fn role(view: &NodeView) -> &'static str {
    match view.role {
        Some(Role::Voter) => "votes",
        Some(Role::Joining | Role::Learner) => "learns",
        None => "-",
    }
}
