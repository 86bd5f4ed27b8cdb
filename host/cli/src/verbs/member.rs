//! `skep member`.

use skep::NodeId;
use skep_types::admin::{GroupInfo, OfGroup, OfGroupAndNode, method};

use super::group::show;
use super::{Remote, output};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Adds a node to a group: as a learner first, then, when it has caught up, as a voter
    Add(Change),
    /// Removes a node from a group, and the replica from the node
    Remove(Change),
    /// Lists the members of a group
    List {
        /// Name or id of the group
        group: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, clap::Args)]
struct Change {
    /// Name or id of the group
    group: String,
    /// Id of the node
    node: u64,
    /// Bytes for the machine's `apply-conf-change`
    #[arg(long, default_value = "")]
    data: String,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (change, method) = match arguments.verb {
        Verb::Add(change) => (change, method::MEMBER_ADD),
        Verb::Remove(change) => (change, method::MEMBER_REMOVE),
        Verb::List { group, remote } => return list(group, &remote).await,
    };
    let body = OfGroupAndNode {
        group: change.group,
        node: NodeId(change.node),
        data: change.data,
    };
    show(
        change.remote.form,
        &change.remote.call(method, &body).await?,
    )
}

async fn list(group: String, remote: &Remote) -> anyhow::Result<()> {
    let group: GroupInfo = remote.call(method::GROUP_INFO, &OfGroup { group }).await?;
    output::print(remote.form, &group.members, |members| {
        members.iter().map(|node| format!("{node}\n")).collect()
    })
}
