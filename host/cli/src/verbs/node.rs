//! `skep node`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use skep::NodeId;
use skep_types::admin::{InviteNode, Invited, NodeView, OfNode, method};
use skep_types::record::NodeState;
use skep_types::status::Role;

use super::{Form, Remote, output, private};

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
    /// Puts new replicas on a node again; also ends a removal that is not done
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
        Verb::Status(one) => (one, method::NODE_STATUS),
        Verb::Remove(one) => (one, method::NODE_REMOVE),
        Verb::Cordon(one) => (one, method::NODE_CORDON),
        Verb::Uncordon(one) => (one, method::NODE_UNCORDON),
    };
    let node = NodeId(one.node);
    let view: NodeView = one.remote.call(method, &OfNode { node }).await?;
    show(one.remote.form, &view)
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
            _ => String::new(),
        };
        let more = match replicas.saturating_sub(view.groups.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "node {} ({}), {}\nalive {}\ncatalogue {}\nclient {}\nhttp {}\npeer {}\nreplicas {replicas}{}{more}{next}\n",
            node.id,
            node.name,
            node.state,
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
        node.client.clone(),
        node.peer.clone(),
    ]
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
