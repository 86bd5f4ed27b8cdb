//! What is to be done in each surviving directory. It follows from the descriptions, so whoever makes it anew makes the same.

mod telling;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_core::id::{GroupId, Incarnation, NodeId};
use skep_log::{GroupKey, LogPosition, StoreId};
use skep_server::catalog::command::{Command, Recover};
use skep_server::catalog::{self, NodeState};
use skep_store::recovery::{Orders, Start};
use skep_types::founding::{ClusterIdentity, FOUNDERS_MAX, Founding, Recovery};

use super::Refusal;
use super::description::{Description, Known, KnownGroup, Place, Replica};
use telling::{list, some};

/// Version of [`Plan`] in JSON.
const FORMAT: u32 = 1;

/// A forced recovery.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// Version of this form.
    pub format: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Identity of the life of the cluster that ends.
    pub identity: String,
    /// The identities that it had before that.
    pub former: Vec<String>,
    /// Which life begins.
    pub incarnation: u64,
    /// The nodes that are left.
    pub survivors: BTreeMap<NodeId, Survivor>,
    /// The nodes that are given up.
    pub lost: BTreeMap<NodeId, Lost>,
    /// The groups that start from one replica, the catalogue first.
    pub starts: Vec<Started>,
    /// The groups that have their majority, and go on as they are.
    pub kept: BTreeMap<GroupId, String>,
    /// The groups of which no usable replica is left: they are gone.
    pub gone: BTreeMap<GroupId, Gone>,
}

/// A directory that is left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Survivor {
    /// The id of its store.
    pub store: String,
    /// What its log said when it was described.
    pub position: String,
}

/// A node that is given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lost {
    /// Its name.
    pub name: String,
    /// Where it was reached by other nodes.
    pub peer: String,
}

/// A group that starts from one replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Started {
    /// Its id.
    pub group: GroupId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its name.
    pub name: String,
    /// The node whose replica it starts from.
    pub from: NodeId,
    /// Entries up to here were known to be committed somewhere.
    pub committed: u64,
    /// Where the log of that replica ends. Nothing later is known.
    pub last: Place,
    /// The term that begins.
    pub term: u64,
    /// The nodes whose replicas remain, that one among them.
    pub stay: BTreeSet<NodeId>,
    /// The nodes whose replicas are left and of no use, and why: they leave the group.
    pub dropped: BTreeMap<NodeId, String>,
    /// Replicas differed without a majority, and the group takes over the state of that one.
    pub suspended: bool,
}

/// A group that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Gone {
    /// Its name.
    pub name: String,
    /// What is left of it, by node, and why that is of no use.
    pub left: BTreeMap<NodeId, String>,
}

/// What an operator says beside the descriptions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// The nodes that are lost for good.
    pub lost: BTreeSet<NodeId>,
    /// Groups of which nothing is left may go.
    pub give_up_groups: bool,
}

/// A plan, and the digest that proves it whole.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Sealed {
    sha256: String,
    plan: Plan,
}

impl Plan {
    /// Decides what is to be done.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: it would do harm, or too little is known.
    pub fn make(descriptions: &[Description], wish: &Wish) -> Result<Self, Refusal> {
        let mut nodes = BTreeMap::new();
        for description in descriptions {
            if nodes.insert(description.node, description).is_some() {
                return Err(Refusal::Twice(description.node));
            }
        }
        let first = descriptions.first().ok_or(Refusal::Nothing)?;
        let is_other = |of: &&&Description| of.identity != first.identity;
        if let Some(other) = nodes.values().find(is_other) {
            return Err(Refusal::Apart(first.node, other.node));
        }
        let left = Left { nodes: &nodes };
        let catalogue = KnownGroup {
            id: catalog::GROUP,
            name: "catalogue".to_owned(),
            incarnation: Incarnation::default(),
            members: BTreeSet::new(),
        };
        let (start, is_kept) = left.look(&catalogue);
        let start = start.map_err(|gone| Refusal::NoCatalogue(gone.of_no_use()))?;
        let known = nodes.get(&start.from).and_then(|of| of.catalogue.as_ref());
        let known = known.ok_or_else(|| {
            Refusal::NoCatalogue(format!("that of node {} cannot be read", start.from))
        })?;
        let lost = lost(&nodes, known, wish)?;
        let mut plan = Self {
            format: FORMAT,
            cluster: first.cluster.clone(),
            identity: first.identity.clone(),
            former: first.former.clone(),
            incarnation: first.incarnation.saturating_add(1),
            survivors: nodes
                .iter()
                .map(|(node, of)| (*node, Survivor::of(of)))
                .collect(),
            lost,
            starts: vec![start],
            kept: BTreeMap::new(),
            gone: BTreeMap::new(),
        };
        for group in &known.groups {
            match left.look(group) {
                (_, true) => {
                    plan.kept.insert(group.id, group.name.clone());
                }
                (Ok(start), _) => plan.starts.push(start),
                (Err(gone), _) => {
                    plan.gone.insert(group.id, gone);
                }
            }
        }
        if is_kept && plan.starts.len() == 1 && plan.gone.is_empty() {
            return Err(Refusal::NotNeeded);
        }
        if !plan.gone.is_empty() && !wish.give_up_groups {
            return Err(Refusal::GroupsGone(some(
                plan.gone.values().map(|of| &of.name),
            )));
        }
        Ok(plan)
    }

    /// The plan as a file.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unwritable`].
    pub fn write(&self) -> Result<Vec<u8>, Refusal> {
        let sealed = Sealed {
            sha256: ClusterIdentity(self.digest()?).to_string(),
            plan: self.clone(),
        };
        let unwritable = |error: serde_json::Error| Refusal::Unwritable(error.to_string());
        let mut text = serde_json::to_vec_pretty(&sealed).map_err(unwritable)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads what [`write`](Self::write) has written.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unreadable`]; [`Refusal::Tampered`].
    pub fn read(content: &[u8]) -> Result<Self, Refusal> {
        let unreadable = |error: serde_json::Error| Refusal::Unreadable(error.to_string());
        let Sealed { sha256, plan } = serde_json::from_slice(content).map_err(unreadable)?;
        if plan.format != FORMAT {
            let why = format!("it has not format {FORMAT}; use one release of skep for all steps");
            return Err(Refusal::Unreadable(why));
        }
        match ClusterIdentity::parse(&sha256) {
            Some(digest) if digest.0 == plan.digest()? => Ok(plan),
            _ => Err(Refusal::Tampered),
        }
    }

    /// What tells it from every other plan.
    fn digest(&self) -> Result<[u8; 32], Refusal> {
        let text = serde_json::to_vec(self);
        let text = text.map_err(|error| Refusal::Unwritable(error.to_string()))?;
        Ok(Sha256::digest(text).into())
    }

    /// Who asks the lost nodes whether they are alive: the survivor that the catalogue starts from.
    pub fn asker(&self) -> (NodeId, [u8; 16]) {
        let from = self
            .starts
            .first()
            .map(|start| start.from)
            .unwrap_or_default();
        let store = self.survivors.get(&from);
        let store = store.and_then(|of| StoreId::parse(&of.store));
        (from, store.map(|store| store.0).unwrap_or_default())
    }

    /// The life of the cluster that begins.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unreadable`] if an id is none.
    pub fn founding(&self) -> Result<Founding, Refusal> {
        let strange = || Refusal::Unreadable("an identity or a store in it is none".to_owned());
        let former = self.former.iter().map(|of| ClusterIdentity::parse(of));
        let former = former.collect::<Option<Vec<_>>>().ok_or_else(strange)?;
        // Who is behind so many is known by the catalogue.
        let survivors = self.survivors.iter().take(FOUNDERS_MAX);
        let stores = survivors.map(|(node, of)| Some((*node, StoreId::parse(&of.store)?.0)));
        Ok(Founding {
            cluster: self.cluster.clone(),
            incarnation: self.incarnation,
            founders: stores.collect::<Option<_>>().ok_or_else(strange)?,
            recovery: Some(Recovery::after(
                self.former_life()?,
                &former,
                self.digest()?,
            )),
        })
    }

    fn former_life(&self) -> Result<ClusterIdentity, Refusal> {
        let strange = || Refusal::Unreadable("the identity in it is none".to_owned());
        ClusterIdentity::parse(&self.identity).ok_or_else(strange)
    }

    /// What is to be done in the directory of a node with this store.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotPlanned`]; [`Refusal::Unreadable`] if an id is none.
    pub fn orders(&self, node: NodeId, store: StoreId) -> Result<Orders, Refusal> {
        let survivor = self.survivors.get(&node);
        let survivor = survivor.filter(|of| of.store == store.to_string());
        let survivor = survivor.ok_or(Refusal::NotPlanned(node))?;
        let position = ClusterIdentity::parse(&survivor.position);
        let position = position.ok_or_else(|| {
            Refusal::Unreadable("the position of a survivor in it is none".to_owned())
        })?;
        let command = serde_json::to_vec(&Command::Recover(self.recover()))
            .map_err(|error| Refusal::Unwritable(error.to_string()))?;
        let starts = self.starts.iter().filter(|start| start.from == node);
        Ok(Orders {
            former: self.former_life()?,
            founding: self.founding()?,
            position: position.0,
            starts: starts
                .map(|start| Start {
                    key: GroupKey {
                        group: start.group.0,
                        incarnation: start.incarnation.0,
                    },
                    last: LogPosition {
                        index: start.last.index,
                        term: start.last.term,
                    },
                    term: start.term,
                    stay: start.stay.clone(),
                    commands: match start.group {
                        catalog::GROUP => vec![command.clone().into()],
                        _ => Vec::new(),
                    },
                })
                .collect(),
        })
    }

    /// What the catalogue is told.
    fn recover(&self) -> Recover {
        let groups = self.starts.iter().filter(|of| of.group != catalog::GROUP);
        Recover {
            lost: self.lost.keys().copied().collect(),
            members: groups.map(|of| (of.group, of.stay.clone())).collect(),
            gone: self.gone.keys().copied().collect(),
        }
    }
}

impl Survivor {
    fn of(description: &Description) -> Self {
        Self {
            store: description.store.clone(),
            position: description.position.clone(),
        }
    }
}

/// The directories that are left.
struct Left<'a> {
    nodes: &'a BTreeMap<NodeId, &'a Description>,
}

impl Left<'_> {
    /// From where a group would start, or why from nowhere; and whether it need not, because it has its majority.
    fn look(&self, group: &KnownGroup) -> (Result<Started, Gone>, bool) {
        let of = |replica: &&Replica| {
            (replica.group, replica.incarnation) == (group.id, group.incarnation)
                || group.id == catalog::GROUP && replica.group == group.id
        };
        let (mut usable, mut left) = (BTreeMap::new(), BTreeMap::new());
        let mut highest = 0;
        for (node, description) in self.nodes {
            for replica in description.replicas.iter().filter(of) {
                highest = highest.max(replica.term).max(replica.last.term);
                match replica.trouble(*node) {
                    None => {
                        usable.insert(*node, replica);
                    }
                    Some(trouble) => {
                        left.insert(*node, trouble);
                    }
                }
            }
        }
        // Of equal ones the one with the lowest id, so that the plan is the same whoever makes it.
        let best = usable.iter().rev().max_by_key(|(_, replica)| replica.last);
        let Some((from, best)) = best else {
            let name = group.name.clone();
            return (Err(Gone { name, left }), false);
        };
        let mut stay = BTreeSet::new();
        for (node, replica) in &usable {
            let member = best.members.get(node);
            match member.is_some_and(|member| member.replica == replica.replica) {
                true => {
                    stay.insert(*node);
                }
                false => {
                    let gone = "it is no member any more by the log that is chosen";
                    left.insert(*node, gone.to_owned());
                }
            }
        }
        let votes = best.members.iter().filter(|(_, member)| member.votes);
        let voters: BTreeSet<_> = votes.map(|(node, _)| *node).collect();
        let is_kept = [&best.voters, &voters].iter().all(|voters| {
            let here = voters.iter().filter(|voter| stay.contains(voter)).count();
            2 * here > voters.len()
        });
        let committed = usable.values().map(|replica| replica.committed).max();
        let start = Started {
            group: group.id,
            incarnation: best.incarnation,
            name: group.name.clone(),
            from: *from,
            committed: committed.unwrap_or_default().min(best.last.index),
            last: best.last,
            term: highest + 1,
            stay,
            dropped: left,
            suspended: best.suspended,
        };
        (Ok(start), is_kept)
    }
}

impl Replica {
    /// Why a replica of a node cannot be the start of its group.
    fn trouble(&self, node: NodeId) -> Option<String> {
        let is_member = self
            .members
            .get(&node)
            .is_some_and(|of| of.replica == self.replica);
        match &self.trouble {
            Some(trouble) => Some(trouble.clone()),
            None if is_member => None,
            None => Some("it is no member any more by its own log".to_owned()),
        }
    }
}

/// The nodes that are missing, if they are those that the operator gives up.
fn lost(
    nodes: &BTreeMap<NodeId, &Description>,
    known: &Known,
    wish: &Wish,
) -> Result<BTreeMap<NodeId, Lost>, Refusal> {
    let named: BTreeMap<_, _> = known.nodes.iter().map(|node| (node.id, node)).collect();
    let is_known = |(node, of): &(&NodeId, &&Description)| {
        named.get(node).is_some_and(|known| known.store == of.store)
    };
    if let Some((stranger, _)) = nodes.iter().find(|of| !is_known(of)) {
        return Err(Refusal::Stranger(*stranger));
    }
    let missing = named.iter().filter(|(node, _)| !nodes.contains_key(node));
    let missing: BTreeMap<_, _> = missing
        .map(|(node, known)| {
            let (name, peer) = (known.name.clone(), known.peer.clone());
            (*node, Lost { name, peer })
        })
        .collect();
    // Whoever was on the way out may be gone already; nobody has to know that.
    let leaving = |node: &&NodeId| named[*node].state == NodeState::Removing;
    let forgotten = missing.keys().filter(|node| !wish.lost.contains(node));
    let mut forgotten = forgotten.filter(|node| !leaving(node));
    let is_missing = |node: &NodeId| missing.contains_key(node);
    if forgotten.next().is_some() || !wish.lost.iter().all(is_missing) {
        return Err(Refusal::NotTheLost {
            missing: list(missing.keys()),
            said: list(&wish.lost),
        });
    }
    Ok(missing)
}

#[cfg(test)]
mod tests;
