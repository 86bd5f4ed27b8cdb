//! `skep group`.

mod status;

use std::path::{Path, PathBuf};

use anyhow::Context;
use skep::{GroupId, NodeId, Rehearsal, Verdict};
use skep_core::deployment::Quota;
use skep_core::form::Barriers;
use skep_machine::wasm::Profile;
use skep_types::admin::{
    self, CreateGroup, Done, GroupInfo, LIST_MAX, MoveReplica, OfGroupAndNode, Page, Placed,
    QuotaChange, Rehearsed, SetReplicas, Upgraded, method,
};

use super::connect::Connection;
use super::output::{self, list, or_dash};
use super::{Form, Remote};
use status::{memory, text};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Creates a group, or many at once, and waits for the first leader
    Create(Create),
    /// Lists all groups
    List {
        /// Only those that have fewer replicas than they should on nodes that answer
        #[arg(long)]
        under_replicated: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Changes how many replicas a group has: others are made, or some go
    Set {
        #[command(flatten)]
        of: Of,
        /// So many
        #[arg(long, value_name = "N")]
        replicas: usize,
    },
    /// Moves a replica of a group from one node to another
    Move {
        #[command(flatten)]
        of: Of,
        /// Id of the node that gives it
        #[arg(long, value_name = "NODE")]
        from: u64,
        /// Id of the node that takes it
        #[arg(long, value_name = "NODE")]
        to: u64,
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
    /// Goes on with another component, profile, quota or form of barriers, while the group serves
    Upgrade(Upgrade),
    /// Gives up an upgrade that the group waits for; it goes on with what it ran
    AbortUpgrade {
        #[command(flatten)]
        of: Of,
    },
    /// Lets a group take commands again that was paused because its machine failed on many in a row
    Resume {
        #[command(flatten)]
        of: Of,
    },
    /// Decides for a suspended group whose state is right; the other replicas take it
    Trust {
        #[command(flatten)]
        of: Of,
        /// The node whose replica is right
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
struct Upgrade {
    /// Name or id of the group
    group: String,
    /// The new machine: `kv`, which is built in, a .wasm file, or the sha256 of a component that was uploaded; the one that
    /// runs if absent
    #[arg(long, value_name = "kv|FILE|SHA256")]
    component: Option<String>,
    /// Only try it beside the group, on the node that is asked: restore its snapshot, apply what was applied since, compare
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    remote: Remote,
}

/// What a group may use and takes; what is absent stays, or is the default of a new group.
#[derive(Debug, clap::Args)]
struct Limits {
    /// What the machine may use: a JSON file with the fields of the profile; absent fields have their defaults
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Commands that the group takes in a second; 0 is no limit
    #[arg(long, value_name = "N")]
    commands_per_second: Option<u32>,
    /// Bytes of commands that may wait to be put into the log; 0 leaves it to the nodes
    #[arg(long, value_name = "BYTES")]
    in_flight_bytes: Option<u64>,
    /// Bytes of commands and replies in a second, above which they wait; if 0, each node limits those longer than 64 KiB
    #[arg(long, value_name = "BYTES")]
    bytes_per_second: Option<u64>,
    /// What barriers leave of the machine that nobody asks for: what it saves (`saved`), an image of its memory whenever it can have one
    /// (`image`), or either, as sizes tell (`auto`)
    #[arg(long, value_name = "auto|saved|image")]
    barriers: Option<Barriers>,
}

impl Limits {
    fn profile(&self) -> anyhow::Result<Option<Profile>> {
        let Some(path) = &self.profile else {
            return Ok(None);
        };
        let name = || path.display().to_string();
        let text = std::fs::read(path).with_context(name)?;
        serde_json::from_slice(&text).with_context(name).map(Some)
    }

    fn quota(&self) -> QuotaChange {
        QuotaChange {
            commands_per_second: self.commands_per_second,
            in_flight_bytes: self.in_flight_bytes,
            bytes_per_second: self.bytes_per_second,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Its name: letters, digits, `-`, `_`, `.`; not digits alone
    name: String,
    /// Its id; chosen by the cluster if absent
    #[arg(long)]
    id: Option<u64>,
    /// So many groups at once, all or none, at most 1024: NAME-0001, NAME-0002 and so on
    #[arg(long, value_name = "N", conflicts_with = "id")]
    count: Option<usize>,
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
    limits: Limits,
    #[command(flatten)]
    remote: Remote,
}

/// All groups, a page at a time.
async fn all(connection: &Connection, under_replicated: bool) -> anyhow::Result<Vec<GroupInfo>> {
    let mut groups: Vec<GroupInfo> = Vec::new();
    loop {
        let page = Page {
            after: groups.last().map(|group| group.id),
            limit: None,
            under_replicated,
        };
        let more: Vec<GroupInfo> = connection.call(method::GROUP_LIST, &page).await?;
        let is_last = more.len() < LIST_MAX;
        groups.extend(more);
        if is_last {
            return Ok(groups);
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Create(create) => self::create(create).await,
        Verb::List {
            under_replicated,
            remote,
        } => {
            let groups = all(&Connection::open(&remote).await?, under_replicated).await?;
            output::print(remote.form, &groups, |groups| table(groups))
        }
        Verb::Status { of } => {
            let status: skep::GroupStatus = of.call(method::GROUP_STATUS).await?;
            output::print(of.remote.form, &status, text)
        }
        Verb::Remove { of } => show(of.remote.form, &of.call(method::GROUP_REMOVE).await?),
        Verb::Campaign { of } => of.call::<Done>(method::GROUP_CAMPAIGN).await.map(drop),
        Verb::Transfer { of, node } => {
            let body = OfGroupAndNode::new(of.group, NodeId(node));
            let done = of.remote.call::<Done>(method::GROUP_TRANSFER, &body);
            done.await.map(drop)
        }
        Verb::Set { of, replicas } => {
            let group = of.group;
            let asked = SetReplicas { group, replicas };
            let group = of.remote.call(method::GROUP_REPLICAS, &asked).await?;
            show(of.remote.form, &group)
        }
        Verb::Move { of, from, to } => {
            let (group, from, to) = (of.group, NodeId(from), NodeId(to));
            let asked = MoveReplica { group, from, to };
            show(
                of.remote.form,
                &of.remote.call(method::GROUP_MOVE, &asked).await?,
            )
        }
        Verb::Upgrade(upgrade) => self::upgrade(upgrade).await,
        Verb::AbortUpgrade { of } => {
            let placed = of.call(method::GROUP_ABORT_UPGRADE).await?;
            output::print(of.remote.form, &placed, |placed: &Placed| {
                format!("the upgrade is given up, decided at {}", placed.index)
            })
        }
        Verb::Resume { of } => {
            let placed = of.call(method::GROUP_RESUME).await?;
            output::print(of.remote.form, &placed, |placed: &Placed| {
                format!("takes commands from {} on", placed.index)
            })
        }
        Verb::Trust { of, node } => {
            let body = OfGroupAndNode::new(of.group, NodeId(node));
            let placed = of.remote.call(method::GROUP_TRUST, &body).await?;
            output::print(of.remote.form, &placed, |placed: &Placed| {
                format!("node {node} is trusted, decided at {}", placed.index)
            })
        }
        Verb::Snapshot { of } => {
            let placed = of.call(method::GROUP_SNAPSHOT).await?;
            output::print(of.remote.form, &placed, |placed: &Placed| {
                format!("snapshot at {} in term {}", placed.index, placed.term)
            })
        }
    }
}

async fn upgrade(upgrade: Upgrade) -> anyhow::Result<()> {
    let connection = Connection::open(&upgrade.remote).await?;
    let component = match upgrade.component {
        Some(component) => Some(uploaded(&connection, component).await?),
        None => None,
    };
    let request = admin::Upgrade {
        group: upgrade.group,
        component,
        profile: upgrade.limits.profile()?,
        quota: upgrade.limits.quota(),
        barriers: upgrade.limits.barriers,
        dry_run: upgrade.dry_run,
    };
    if request.dry_run {
        let rehearsed: Rehearsed = connection.call(method::GROUP_UPGRADE, &request).await?;
        return output::print(upgrade.remote.form, &rehearsed, rehearsal);
    }
    let upgraded: Upgraded = connection.call(method::GROUP_UPGRADE, &request).await?;
    output::print(upgrade.remote.form, &upgraded, |upgraded| {
        format!(
            "group {} runs {} {} ({}) from {} on",
            upgraded.group,
            upgraded.machine.name,
            upgraded.machine.version,
            upgraded.component,
            upgraded.index
        )
    })
}

fn rehearsal(rehearsed: &Rehearsed) -> String {
    let Rehearsal {
        verdict,
        snapshot,
        restored_bytes,
        saved_bytes,
        entries,
        whole,
        commands,
        differing,
        first_differing,
        faults,
        former_faults,
        fuel,
        former_fuel,
    } = &rehearsed.rehearsal;
    let verdict = match verdict {
        Verdict::Takes => "it takes the state and answers the same".to_owned(),
        Verdict::Differs => "it takes the state and answers otherwise".to_owned(),
        Verdict::Refuses {
            call,
            fault,
            detail,
        } => {
            let detail = detail.as_deref().map(|text| format!(" ({text})"));
            format!(
                "it would be refused: it failed in {call}: {fault}{}",
                detail.unwrap_or_default()
            )
        }
    };
    let first = first_differing.map(|index| format!(", the first at {index}"));
    let whole = if *whole {
        "all since"
    } else {
        "the first since"
    };
    format!(
        "verdict   {verdict}\nmachine   {} {} ({})\nnode      {}\nrestored  {restored_bytes} bytes of the snapshot at {snapshot}\n\
         saved     {saved_bytes} bytes\nreplayed  {entries} entries with {commands} commands, {whole}\n\
         outcomes  {differing} differ{}\nfaults    {faults}, formerly {former_faults}\nfuel      {fuel}, formerly {former_fuel}",
        rehearsed.machine.name,
        rehearsed.machine.version,
        rehearsed.component,
        rehearsed.node,
        first.unwrap_or_default(),
    )
}

/// The name of a component as the cluster knows it; a file is uploaded first.
async fn uploaded(connection: &Connection, component: String) -> anyhow::Result<String> {
    match Path::new(&component) {
        path if is_file(path) => Ok(connection.upload(&PathBuf::from(path)).await?.to_string()),
        _ => Ok(component),
    }
}

async fn create(create: Create) -> anyhow::Result<()> {
    let connection = Connection::open(&create.remote).await?;
    let component = uploaded(&connection, create.component).await?;
    let request = CreateGroup {
        name: Some(create.name),
        id: create.id.map(GroupId),
        count: create.count,
        component: Some(component),
        members: create
            .members
            .map(|nodes| nodes.into_iter().map(NodeId).collect()),
        replicas: create.replicas,
        init: create.init,
        profile: create.limits.profile()?.unwrap_or_default(),
        quota: create.limits.quota().of(Quota::default()),
        barriers: create.limits.barriers.unwrap_or_default(),
    };
    if create.count.is_some() {
        let groups: Vec<GroupInfo> = connection.call(method::GROUP_CREATE, &request).await?;
        groups.iter().for_each(say_problem);
        return output::print(create.remote.form, &groups, |groups| table(groups));
    }
    let group: GroupInfo = connection.call(method::GROUP_CREATE, &request).await?;
    say_problem(&group);
    show(create.remote.form, &group)
}

fn say_problem(group: &GroupInfo) {
    if let Some(problem) = &group.problem {
        say!(
            "the group {} exists, but {problem}; see `skep group status {}`",
            group.name,
            group.name
        );
    }
}

/// A file is told from a name by how it looks, so that a file that is not there is an error and not another name.
fn is_file(path: &Path) -> bool {
    path.extension().is_some() || path.components().count() > 1
}

impl Of {
    async fn call<T: serde::de::DeserializeOwned>(&self, method: &str) -> anyhow::Result<T> {
        let connection = Connection::open(&self.remote).await?;
        connection.call_of(method, &self.group).await
    }
}

pub(super) fn show(form: Form, group: &GroupInfo) -> anyhow::Result<()> {
    output::print(form, group, |group| table(std::slice::from_ref(group)))
}

pub(super) fn table(groups: &[GroupInfo]) -> String {
    let row = |group: &GroupInfo| {
        vec![
            group.id.to_string(),
            group.name.clone(),
            or_dash(group.leader),
            or_dash(group.term),
            list(&group.members),
            group.wanted.to_string(),
            or_dash(group.memory.map(memory)),
            group.component.to_string()[..12].to_owned(),
            group.problem.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    output::table(
        &[
            "ID",
            "NAME",
            "LEADER",
            "TERM",
            "MEMBERS",
            "WANTED",
            "MEMORY",
            "COMPONENT",
            "PROBLEM",
        ],
        &rows,
    )
}
