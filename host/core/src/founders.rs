//! How a cluster is founded: by all whom its list names, or not at all.
//!
//! A founder asks each other one on its list, again and again, and answers what it is asked. An answer says which store the
//! node has, whom its own list names, what it would found, and which cluster it belongs to, if it does. Nobody coordinates:
//! what there is to be founded, the *candidate*, follows from the stores that were heard, since the identity of a cluster is
//! their hash. A founder *agrees* to its candidate in each of its answers, and adopts it once all others agree to the same
//! one. Whoever has adopted shows it to all who ask, so that an interrupted founding is completed by whoever was in it.
//!
//! # Why there are no two clusters over one list
//!
//! An agreement is only worth what it says about the moment. A founder counts it for the *round* in which it asked; a new
//! round begins, without any agreement, whenever something else is heard of anybody, and with each start of the process. So
//! within a round its candidate does not change, and each agreement was given within the round.
//!
//! Suppose that `x` adopts A in its round `r`, and `y` adopts B in its round `q`, over one list. As `x` is on the list, it
//! agreed to B, within `q`; not after it adopted A, for then it agrees to nothing else, and not within `r`, for there its
//! candidate is A; so before `r` began. Hence `q` began before `r`. By the same words `r` began before `q`. That cannot be.
//!
//! It rests on one thing: that who agreed as `x` and who adopted as `x` is one directory. A directory that is wiped is
//! another one, with another store. So a founding of which every directory that adopted it is gone may be followed by another
//! one, and one of which any is left may not: it is in the way of every other founding over that list.
//!
//! No I/O, no clock and no randomness is in here, as everywhere in this crate; `skep-sim` runs it with lost and late answers,
//! crashes, and directories that are wiped and put back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use skep_types::founding::{ClusterIdentity, FORMER_MAX, FOUNDERS_MAX, Founding, Recovery};

use crate::id::NodeId;
use crate::planted::{self, Defect};

/// Ticks for which somebody who was never asked, and asks with another list, keeps this node from founding.
const DISSENT_TICKS: u32 = 10;

/// What one founder says of itself to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// Its store.
    pub store: [u8; 16],
    /// Whom its list names.
    pub list: BTreeSet<NodeId>,
    /// What it would found.
    pub agrees: Option<ClusterIdentity>,
    /// The cluster that it belongs to.
    pub founded: Option<Founding>,
}

impl Statement {
    /// What a node says that belongs to a cluster.
    pub fn founded(store: [u8; 16], founding: Founding) -> Self {
        Self {
            store,
            list: founding.founders.keys().copied().collect(),
            agrees: None,
            founded: Some(founding),
        }
    }
}

/// In which round something was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round(u64);

/// A node that may found a cluster.
#[derive(Debug)]
pub struct Founders {
    cluster: String,
    own: NodeId,
    store: [u8; 16],
    list: BTreeSet<NodeId>,
    round: u64,
    others: BTreeMap<NodeId, Other>,
    /// Whoever asked with another list, although this one does not name it: its list, and for how long it counts.
    dissent: BTreeMap<NodeId, (BTreeSet<NodeId>, u32)>,
    /// What was decided, and whether it is durable.
    adopts: Option<(Founding, bool)>,
}

/// What is known of another node of the list.
#[derive(Debug, Default)]
struct Other {
    /// What it said last.
    said: Option<Statement>,
    /// What it agreed to in this round.
    agrees: Option<ClusterIdentity>,
    /// Why it does not answer.
    silent: Option<String>,
}

impl Founders {
    /// The node `own`, whose store is new, and whose list names these; it is on its own list.
    pub fn new(
        cluster: impl Into<String>,
        own: NodeId,
        store: [u8; 16],
        mut list: BTreeSet<NodeId>,
    ) -> Self {
        list.insert(own);
        let others = list.iter().filter(|node| **node != own);
        Self {
            cluster: cluster.into(),
            own,
            store,
            others: others.map(|node| (*node, Other::default())).collect(),
            list,
            round: 0,
            dissent: BTreeMap::new(),
            adopts: None,
        }
    }

    /// Whom the list names, this node included.
    pub fn list(&self) -> &BTreeSet<NodeId> {
        &self.list
    }

    /// The present round, to be kept with each question and given back with its answer.
    pub fn round(&self) -> Round {
        Round(self.round)
    }

    /// Somebody asks, and this is its list; what it is to be told. It may count as an agreement.
    pub fn asked(&mut self, from: NodeId, list: &BTreeSet<NodeId>) -> Statement {
        let is_mine = self.list.contains(&from);
        if !is_mine && list.contains(&self.own) && self.dissent.len() < FOUNDERS_MAX {
            self.dissent.insert(from, (list.clone(), DISSENT_TICKS));
        }
        Statement {
            store: self.store,
            list: self.list.clone(),
            agrees: self.agreed(),
            founded: self.founded().cloned(),
        }
    }

    /// A node of the list answered what it was asked in this round. What is returned has to be made durable before anything else
    /// is done with it; [`adopted`](Self::adopted) is called then.
    pub fn heard(&mut self, from: NodeId, asked: Round, statement: Statement) -> Option<Founding> {
        if self.adopts.is_some() && !planted::has(Defect::AdopterAgreesAnew) {
            return None;
        }
        let now = asked.0 == self.round || planted::has(Defect::AgreementsOutlast);
        let other = self.others.get_mut(&from)?;
        other.silent = None;
        let same = other.said.as_ref().is_some_and(|said| {
            (said.store, &said.list, &said.founded)
                == (statement.store, &statement.list, &statement.founded)
        });
        if !same {
            self.round += 1;
            if !planted::has(Defect::AgreementsOutlast) {
                self.others
                    .values_mut()
                    .for_each(|other| other.agrees = None);
            }
        }
        let other = self.others.get_mut(&from)?;
        if same && now || planted::has(Defect::AgreementsOutlast) {
            other.agrees = statement.agrees;
        }
        other.said = Some(statement);
        // What was said before something else was heard may be of a directory that is no more.
        let shown = other
            .said
            .as_ref()
            .filter(|_| now)
            .and_then(|said| said.founded.as_ref());
        let mine = |founding: &&Founding| {
            founding.cluster == self.cluster
                && founding.founders.get(&self.own) == Some(&self.store)
        };
        let shown = shown.filter(|_| self.adopts.is_none());
        if let Some(founding) = shown.filter(mine).cloned() {
            self.adopts = Some((founding.clone(), false));
            return Some(founding);
        }
        self.decide()
    }

    /// What is to be adopted now, if anything is: for a node that has not been told anything, which may be the only one of its
    /// list.
    pub fn decide(&mut self) -> Option<Founding> {
        if self.adopts.is_some() {
            return None;
        }
        let candidate = self.candidate()?;
        let identity = Some(candidate.identity());
        let all_agree = self.others.values().all(|other| other.agrees == identity);
        if !all_agree && !planted::has(Defect::FoundsUnagreed) {
            return None;
        }
        self.adopts = Some((candidate.clone(), false));
        Some(candidate)
    }

    /// A node of the list did not answer.
    pub fn silent(&mut self, node: NodeId, why: impl Into<String>) {
        if let Some(other) = self.others.get_mut(&node) {
            other.silent = Some(why.into());
        }
    }

    /// Whether nothing was heard of the node lately.
    pub fn is_silent(&self, node: NodeId) -> bool {
        let other = self.others.get(&node);
        other.is_some_and(|other| other.said.is_none() || other.silent.is_some())
    }

    /// What was to be adopted is durable.
    pub fn adopted(&mut self) {
        if let Some((_, durable)) = &mut self.adopts {
            *durable = true;
        }
    }

    /// The cluster that this node belongs to, durably.
    pub fn founded(&self) -> Option<&Founding> {
        let (founding, durable) = self.adopts.as_ref()?;
        durable.then_some(founding)
    }

    /// Time passes. Whoever asked with another list and is not heard of any more stands in nobody's way.
    pub fn tick(&mut self) {
        self.dissent.retain(|_, (_, left)| {
            *left -= 1;
            *left > 0
        });
    }

    /// Why nothing is founded yet; in the order of the nodes.
    pub fn waits(&self) -> Vec<Wait> {
        let (ours, identity) = (&self.list, self.agreed());
        let others = self.others.iter().filter_map(|(node, other)| {
            let node = *node;
            let reason = match (&other.said, &other.silent) {
                (Some(said), silent) => self.stands_aside(node, said).or_else(|| {
                    let why = silent.clone();
                    why.map(Reason::Silent).or_else(|| match other.agrees {
                        agrees if agrees.is_some() && agrees == identity => None,
                        Some(_) => Some(Reason::OtherStores),
                        None => Some(Reason::Undecided),
                    })
                })?,
                (None, Some(why)) => Reason::Silent(why.clone()),
                (None, None) => Reason::Silent("it was not asked yet".to_owned()),
            };
            Some(Wait { node, reason })
        });
        let dissent = self.dissent.iter().map(|(node, (theirs, _))| Wait {
            node: *node,
            reason: Reason::OtherList {
                theirs: theirs.clone(),
                ours: ours.clone(),
            },
        });
        others.chain(dissent).collect()
    }

    /// Why nothing can be founded with this node.
    fn stands_aside(&self, node: NodeId, said: &Statement) -> Option<Reason> {
        if let Some(founding) = &said.founded {
            return Some(match founding.founders.contains_key(&self.own) {
                true => Reason::Replaced(founding.clone()),
                false => Reason::Elsewhere(founding.clone()),
            });
        }
        if said.list != self.list {
            return Some(Reason::OtherList {
                theirs: said.list.clone(),
                ours: self.list.clone(),
            });
        }
        let others = self.others.iter().filter(|(other, _)| **other != node);
        let others = others.filter_map(|(other, known)| Some((*other, known.said.as_ref()?.store)));
        let mut all = others.chain([(self.own, self.store)]);
        let twin = all.find(|(_, store)| *store == said.store)?.0;
        Some(Reason::SameStore(twin))
    }

    /// What this node would found: it has heard of all, they belong to no cluster, and their lists are this one.
    fn candidate(&self) -> Option<Founding> {
        if !self.dissent.is_empty() {
            return None;
        }
        let mut founders = BTreeMap::from([(self.own, self.store)]);
        for (node, other) in &self.others {
            let said = other.said.as_ref()?;
            if self.stands_aside(*node, said).is_some() {
                return None;
            }
            founders.insert(*node, said.store);
        }
        Some(Founding::new(self.cluster.clone(), founders))
    }

    /// What it agrees to; from a decision on to nothing else any more.
    fn agreed(&self) -> Option<ClusterIdentity> {
        match &self.adopts {
            Some((founding, _)) if !planted::has(Defect::AdopterAgreesAnew) => {
                Some(founding.identity())
            }
            _ => Some(self.candidate()?.identity()),
        }
    }
}

/// Whom a founder waits for, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wait {
    /// The node.
    pub node: NodeId,
    /// What is the matter with it.
    pub reason: Reason,
}

/// Why nothing is founded with a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It does not answer.
    Silent(String),
    /// It would found with others.
    OtherList {
        /// Whom its list names.
        theirs: BTreeSet<NodeId>,
        /// Whom the list here names.
        ours: BTreeSet<NodeId>,
    },
    /// It belongs to a cluster that was founded without this node.
    Elsewhere(Founding),
    /// It belongs to a cluster that was founded with another store of this node.
    Replaced(Founding),
    /// It has the same store as another one.
    SameStore(NodeId),
    /// It has heard of other stores than were heard of here.
    OtherStores,
    /// It has not heard of all others, or does not found for a reason of its own.
    Undecided,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node;
        match &self.reason {
            Reason::Silent(why) => write!(f, "node {node} ({why})"),
            Reason::OtherList { theirs, ours } => write!(
                f,
                "node {node}, whose list names the nodes {}, where the list here names {}; write the same \
                 [[cluster.nodes]] into the files of all founders",
                Nodes(theirs),
                Nodes(ours)
            ),
            Reason::Elsewhere(founding) => write!(
                f,
                "node {node}, which belongs to a cluster already ({}, founded by the nodes {}) and founds no other; add \
                 this node to that cluster as a new one, or correct [[cluster.nodes]]",
                founding.identity().short(),
                Nodes(&founding.founders.keys().copied().collect()),
            ),
            Reason::Replaced(founding) => write!(
                f,
                "node {node} of the cluster {}, which says: the node is known here with another store. Its data directory \
                 was wiped or replaced, or another process uses its id; it can come back with its former directory, or \
                 as a new node with another id",
                founding.identity().short(),
            ),
            Reason::SameStore(twin) => write!(
                f,
                "node {node}, which has the same store as node {twin}: one data directory is a copy of the other; \
                 delete the copy"
            ),
            Reason::OtherStores => write!(
                f,
                "node {node}, which has heard of another store than this node has; if that lasts, a node id is used twice"
            ),
            Reason::Undecided => write!(
                f,
                "node {node}, which waits for others; its own log and /readyz say for whom"
            ),
        }
    }
}

/// Ids in a sentence.
struct Nodes<'a>(&'a BTreeSet<NodeId>);

impl fmt::Display for Nodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, node) in self.0.iter().enumerate() {
            match at {
                0 => write!(f, "{node}")?,
                _ => write!(f, ", {node}")?,
            }
        }
        Ok(())
    }
}
