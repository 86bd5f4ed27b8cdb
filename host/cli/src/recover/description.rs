//! What one data directory has, for whoever plans a recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use skep_core::id::{GroupId, Incarnation, NodeId, ReplicaId};
use skep_core::recovery::Survey;
use skep_core::state::{Membership, Role};
use skep_log::{Identity, LogPosition, RecoveredGroup, StoreId};
use skep_server::catalog::{Catalog, GROUP, NodeRecord};
use skep_store::recovery;
use skep_types::founding::ClusterIdentity;

use super::Refusal;
use crate::replay::Archive;

/// Version of [`Description`] in JSON.
const FORMAT: u32 = 1;

/// What a directory has.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Description {
    /// Version of this form.
    pub format: u32,
    /// Whose directory it is.
    pub node: NodeId,
    /// The id of its store.
    pub store: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Identity of the cluster's life that it belongs to.
    pub identity: String,
    /// Which life that is.
    pub incarnation: u64,
    /// The identities of the lives before.
    pub former: Vec<String>,
    /// What its log says of all replicas, in short.
    pub position: String,
    /// The replicas, by group and life.
    pub replicas: Vec<Replica>,
    /// What the node's log says of the cluster, to its end.
    pub catalogue: Option<Known>,
}

/// An entry of a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// Its term. The first in the order of how much a log has.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// Where one replica stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Replica {
    /// Its group.
    pub group: GroupId,
    /// The life of the group.
    pub incarnation: Incarnation,
    /// Its raft id.
    pub replica: ReplicaId,
    /// The highest term that it has seen.
    pub term: u64,
    /// Entries up to here are known to be committed.
    pub committed: u64,
    /// The last entry that it has.
    pub last: Place,
    /// The nodes that vote by what is known to be committed.
    pub voters: BTreeSet<NodeId>,
    /// The members at the end of its log.
    pub members: BTreeMap<NodeId, Member>,
    /// Its group stopped because replicas differ.
    pub suspended: bool,
    /// Why it is of no use.
    pub trouble: Option<String>,
}

/// A member of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its raft id.
    pub replica: ReplicaId,
    /// Whether it votes.
    pub votes: bool,
}

/// What a node knows of its cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Known {
    /// All nodes.
    pub nodes: Vec<NodeRecord>,
    /// All groups.
    pub groups: Vec<KnownGroup>,
}

/// A group of the catalogue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KnownGroup {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Its life.
    pub incarnation: Incarnation,
    /// The nodes that host it.
    pub members: BTreeSet<NodeId>,
}

impl Description {
    /// Looks at the data directory of a stopped node; reads all of its log and its snapshots.
    ///
    /// # Errors
    ///
    /// [`anyhow::Error`] if the directory cannot be read, is damaged, is in use, or belongs to no cluster.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let mut archive = Archive::look(dir)?;
        let learned = archive.learn_catalog();
        let catalogue = learned.is_ok().then(|| Known::of(archive.catalog()));
        let mut replicas: Vec<_> = archive
            .replicas()
            .map(|group| Replica::of(&archive, group))
            .collect();
        if let Err(error) = learned {
            let catalogues = replicas.iter_mut().filter(|of| of.group == GROUP);
            for replica in catalogues.filter(|of| of.trouble.is_none()) {
                replica.trouble = Some(format!("the catalogue cannot be rebuilt: {error}"));
            }
        }
        let Identity {
            cluster,
            node,
            store,
            founding,
            ..
        } = archive.identity().clone();
        let founding = founding.ok_or_else(|| Refusal::Unfounded(dir.to_owned()))?;
        Ok(Self {
            format: FORMAT,
            node: NodeId(node),
            store: store.to_string(),
            cluster,
            identity: founding.identity().to_string(),
            incarnation: founding.incarnation,
            former: founding.former().iter().map(ToString::to_string).collect(),
            position: ClusterIdentity(archive.position()).to_string(),
            replicas,
            catalogue,
        })
    }

    /// Reads what [`serde`] has written.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unreadable`].
    pub fn read(content: &[u8]) -> Result<Self, Refusal> {
        let read: Self = serde_json::from_slice(content)
            .map_err(|error| Refusal::Unreadable(error.to_string()))?;
        let known = read.format == FORMAT
            && StoreId::parse(&read.store).is_some()
            && ClusterIdentity::parse(&read.identity).is_some()
            && ClusterIdentity::parse(&read.position).is_some();
        match known {
            true => Ok(read),
            false => Err(Refusal::Unreadable(format!(
                "it has not format {FORMAT}; use one release of skep for all steps"
            ))),
        }
    }
}

impl Replica {
    fn of(archive: &Archive, group: &RecoveredGroup) -> Self {
        let LogPosition { index, term } = recovery::end(group);
        let mut replica = Self {
            group: GroupId(group.key.group),
            incarnation: Incarnation(group.key.incarnation),
            replica: ReplicaId(group.replica),
            term: group.hard_state.term.max(term),
            committed: group.hard_state.commit,
            last: Place { term, index },
            voters: BTreeSet::new(),
            members: BTreeMap::new(),
            suspended: false,
            trouble: None,
        };
        match archive.survey(group) {
            Ok(survey) => replica.fill(&survey),
            Err(error) => replica.trouble = Some(error.to_string()),
        }
        replica
    }

    fn fill(&mut self, survey: &Survey) {
        let members = |membership: &Membership| -> BTreeMap<NodeId, Member> {
            let member = |(replica, member): (&ReplicaId, &skep_core::state::MemberState)| {
                let votes = member.role == Role::Voter;
                let replica = *replica;
                (member.node, Member { replica, votes })
            };
            membership.members().iter().map(member).collect()
        };
        let committed = members(&survey.committed);
        let voters = committed.iter().filter(|(_, member)| member.votes);
        self.voters = voters.map(|(node, _)| *node).collect();
        self.members = members(&survey.members);
        self.committed = survey.commit.0;
        self.suspended = survey.is_suspended();
        if survey.is_contradicted {
            let wrong =
                "a majority of its group called its state wrong, and it has taken no other since";
            self.trouble = Some(wrong.to_owned());
        }
    }
}

impl Known {
    fn of(catalog: &Catalog) -> Self {
        Self {
            nodes: catalog.nodes().map(|node| (**node).clone()).collect(),
            groups: catalog
                .groups()
                .map(|group| KnownGroup {
                    id: group.id,
                    name: group.name.clone(),
                    incarnation: group.incarnation,
                    members: group.members.clone(),
                })
                .collect(),
        }
    }
}
