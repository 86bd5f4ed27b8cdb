//! `skep group`.

use std::path::{Path, PathBuf};

use skep::api::admin::{CreateGroup, Done, GroupInfo, OfGroup, OfGroupAndNode, Placed, method};
use skep::{GroupId, NodeId};

use super::connect::Connection;
use super::output::{self, list, or_dash};
use super::{Form, Remote};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Creates a group and waits for its first leader
    Create(Create),
    /// Lists all groups
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows the replica of a group on the node asked, or on a member if it has none
    Status {
        #[command(flatten)]
        of: Of,
    },
    /// Removes a group with all its data, on every node
    Remove {
        #[command(flatten)]
        of: Of,
    },
    /// Makes the replica on the node asked stand for election
    Campaign {
        #[command(flatten)]
        of: Of,
    },
    /// Hands leadership to another member
    Transfer {
        #[command(flatten)]
        of: Of,
        /// The node that is to lead
        node: u64,
    },
    /// Makes every replica take a snapshot now
    Snapshot {
        #[command(flatten)]
        of: Of,
    },
}

#[derive(Debug, clap::Args)]
struct Of {
    /// Name or id of the group
    group: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Its name: letters, digits, `-`, `_`, `.`; not digits alone
    name: String,
    /// Its id; chosen by the cluster if absent
    #[arg(long)]
    id: Option<u64>,
    /// Its machine: `kv`, which is built in, a .wasm file, or the sha256 of a component that was uploaded
    #[arg(long, default_value = "kv", value_name = "kv|FILE|SHA256")]
    component: String,
    /// The nodes that are to host it, as in 1,2,3
    #[arg(long, value_delimiter = ',', conflicts_with = "replicas")]
    members: Option<Vec<u64>>,
    /// On how many nodes it is to be hosted, chosen by the cluster; 3 if absent
    #[arg(long)]
    replicas: Option<usize>,
    /// Configuration for the machine's `init`
    #[arg(long)]
    init: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Create(create) => self::create(create).await,
        Verb::List { remote } => {
            let groups: Vec<GroupInfo> = Connection::open(&remote)
                .await?
                .call(method::GROUP_LIST, &())
                .await?;
            output::print(remote.form, &groups, |groups| table(groups))
        }
        Verb::Status { of } => {
            let status: skep::GroupStatus = of.call(method::GROUP_STATUS).await?;
            output::print(of.remote.form, &status, text)
        }
        Verb::Remove { of } => {
            let group: GroupInfo = of.call(method::GROUP_REMOVE).await?;
            show(of.remote.form, &group)
        }
        Verb::Campaign { of } => of.call::<Done>(method::GROUP_CAMPAIGN).await.map(drop),
        Verb::Transfer { of, node } => {
            let body = OfGroupAndNode {
                group: of.group,
                node: NodeId(node),
                data: String::new(),
            };
            let connection = Connection::open(&of.remote).await?;
            connection
                .call::<Done>(method::GROUP_TRANSFER, &body)
                .await
                .map(drop)
        }
        Verb::Snapshot { of } => {
            let placed: Placed = of.call(method::GROUP_SNAPSHOT).await?;
            output::print(of.remote.form, &placed, |placed| {
                format!("snapshot at {} in term {}", placed.index, placed.term)
            })
        }
    }
}

async fn create(create: Create) -> anyhow::Result<()> {
    let connection = Connection::open(&create.remote).await?;
    let component = match Path::new(&create.component) {
        path if is_file(path) => connection.upload(&PathBuf::from(path)).await?.to_string(),
        _ => create.component,
    };
    let request = CreateGroup {
        name: Some(create.name),
        id: create.id.map(GroupId),
        component: Some(component),
        members: create
            .members
            .map(|nodes| nodes.into_iter().map(NodeId).collect()),
        replicas: create.replicas,
        init: create.init,
        profile: Default::default(),
    };
    let group: GroupInfo = connection.call(method::GROUP_CREATE, &request).await?;
    if let Some(problem) = &group.problem {
        eprintln!(
            "the group exists, but {problem}; see `skep group status {}`",
            group.name
        );
    }
    show(create.remote.form, &group)
}

/// A file is told from a name by how it looks, so that a file that is not there is an error and not another name.
fn is_file(path: &Path) -> bool {
    path.extension().is_some() || path.components().count() > 1
}

impl Of {
    async fn call<T: serde::de::DeserializeOwned>(&self, method: &str) -> anyhow::Result<T> {
        let connection = Connection::open(&self.remote).await?;
        connection
            .call(
                method,
                &OfGroup {
                    group: self.group.clone(),
                },
            )
            .await
    }
}

pub(super) fn show(form: Form, group: &GroupInfo) -> anyhow::Result<()> {
    output::print(form, group, |group| table(std::slice::from_ref(group)))
}

pub(super) fn table(groups: &[GroupInfo]) -> String {
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            vec![
                group.id.to_string(),
                group.name.clone(),
                or_dash(group.leader),
                or_dash(group.term),
                list(&group.members),
                group.component.to_string()[..12].to_owned(),
                group.problem.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::table(
        &[
            "ID",
            "NAME",
            "LEADER",
            "TERM",
            "MEMBERS",
            "COMPONENT",
            "PROBLEM",
        ],
        &rows,
    )
}

fn text(status: &skep::GroupStatus) -> String {
    let replica = &status.replica;
    let mut text = format!(
        "group     {} ({})\nnode      {}\npart      {}\nterm      {}\nleader    {}\ncommit    {}\napplied   {}\nlog       {} to {}\n\
         snapshot  {}\nmachine   {} {}\n",
        replica.group,
        status.name,
        replica.node,
        word(&replica.part),
        replica.term,
        or_dash(replica.leader),
        replica.commit,
        replica.applied,
        replica.first,
        replica.last,
        replica.snapshot,
        status.machine.name,
        status.machine.version,
    );
    if let Some(reason) = &status.halted {
        text.push_str(&format!("halted    {reason}\n"));
    }
    let rows: Vec<Vec<String>> = replica
        .members
        .iter()
        .map(|member| {
            let active = member
                .active
                .map(|active| if active { "yes" } else { "no" });
            vec![
                member.node.to_string(),
                word(&member.role),
                or_dash(member.matched),
                or_dash(active),
            ]
        })
        .collect();
    text + &output::table(&["MEMBER", "ROLE", "MATCHED", "ACTIVE"], &rows)
}

/// The name a value has in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}
