//! Foundings over lists and directories of any kind, with words that are late, lost, twice and out of order: never two clusters
//! over one list, and each who founds nothing says why. Its disks and its crashes half-way are those of `skep-sim`.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::founders::{Founders, Founding, Reason, Round, Statement, Wait};
use skep_core::id::NodeId;

use crate::rng::Rng;

/// Seeds of one run of the test; a failure prints its seed.
const SEEDS: u64 = 5_000;
/// Steps in which nothing is lost any more: enough for each to ask each other one some tens of times.
const QUIET_STEPS: u64 = 600;
/// Words on their way at once, at the most.
const ON_THE_WAY: usize = 16;

/// How often each accident was there, over all seeds.
#[derive(Default, Debug)]
struct Tally {
    other_lists: u64,
    elsewhere: u64,
    half_founded: u64,
    copied: u64,
    renamed: u64,
    wiped: u64,
    killed: u64,
    founded: u64,
    refused: u64,
    /// Reasons that somebody gave in the end.
    reasons: BTreeMap<&'static str, u64>,
}

/// A node: what its file and its directory say, and the process.
struct Node {
    cluster: &'static str,
    list: BTreeSet<NodeId>,
    store: [u8; 16],
    founded: Option<Founding>,
    /// It is none of the founding that its directory is of, which was there before.
    elsewhere: bool,
    process: Option<Founders>,
    life: u64,
}

/// A word on its way to a node, which keeps what it asked in.
#[derive(Clone)]
struct Word {
    from: NodeId,
    to: NodeId,
    /// The life that asked, and its round.
    asked: (u64, Round),
    what: What,
}

#[derive(Clone)]
enum What {
    Asks(BTreeSet<NodeId>),
    Says(Statement),
}

struct World {
    rng: Rng,
    nodes: BTreeMap<NodeId, Node>,
    words: Vec<Word>,
    stores: u64,
    lives: u64,
    tally: Tally,
    /// What all were about to found before the run, and some of them noted.
    interrupted: Option<Founding>,
    /// No list differs, and no directory is anything but empty or interrupted.
    sound: bool,
}

impl World {
    fn draw(seed: u64) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            nodes: BTreeMap::new(),
            words: Vec::new(),
            stores: 0,
            lives: 0,
            tally: Tally::default(),
            interrupted: None,
            sound: true,
        };
        let ids: BTreeSet<NodeId> = (1..=1 + world.rng.below(5)).map(NodeId).collect();
        for id in &ids {
            let node = Node {
                cluster: "bees",
                list: ids.clone(),
                store: world.store(),
                founded: None,
                elsewhere: false,
                process: None,
                life: 0,
            };
            world.nodes.insert(*id, node);
        }
        world.interrupt();
        for id in ids {
            world.spoil(id);
        }
        world
    }

    fn store(&mut self) -> [u8; 16] {
        self.stores += 1;
        let mut store = [0; 16];
        store[..8].copy_from_slice(&self.stores.to_be_bytes());
        store
    }

    /// In some worlds all were about to found, and some of them noted it.
    fn interrupt(&mut self) {
        if !self.rng.one_in(5) {
            return;
        }
        let stores = self.nodes.iter().map(|(id, node)| (*id, node.store));
        let founding = Founding::new("bees", stores.collect());
        for node in self.nodes.values_mut() {
            if self.rng.one_in(2) {
                node.founded = Some(founding.clone());
                self.tally.half_founded += 1;
            }
        }
        self.interrupted = Some(founding);
    }

    /// What may be wrong with a node from the start.
    fn spoil(&mut self, id: NodeId) {
        let (others, store) = (self.nodes.len() as u64 + 2, self.store());
        let other = NodeId(1 + self.rng.below(others));
        let drawn = self.rng.below(30);
        let twin = self.nodes.get(&other).filter(|node| node.founded.is_none());
        let twin = twin.map(|node| node.store);
        let node = self.nodes.get_mut(&id).expect("it is there");
        match drawn {
            // One more or one fewer on its list, which names itself always.
            0 | 1 if other != id => {
                if !node.list.remove(&other) {
                    node.list.insert(other);
                }
                self.tally.other_lists += 1;
            }
            // It comes from another cluster, which may have the same ids.
            2 => {
                let name = if self.rng.one_in(2) { "bees" } else { "wasps" };
                let founders = BTreeMap::from([(id, node.store), (other, store)]);
                node.founded = Some(Founding::new(name, founders));
                node.elsewhere = true;
                self.tally.elsewhere += 1;
            }
            // Its directory is a copy of another's.
            3 => match twin.filter(|_| other != id && node.founded.is_none()) {
                Some(twin) => {
                    node.store = twin;
                    self.tally.copied += 1;
                }
                None => return,
            },
            4 => {
                node.cluster = "wasps";
                self.tally.renamed += 1;
            }
            _ => return,
        }
        self.sound = false;
    }

    fn any(&mut self) -> NodeId {
        let at = self.rng.below(self.nodes.len() as u64) as usize;
        *self.nodes.keys().nth(at).expect("so many nodes")
    }

    fn step(&mut self) {
        let id = self.any();
        match self.rng.below(100) {
            0..30 => self.ask(id),
            30..80 => self.deliver(),
            80..86 => drop(self.take()),
            86..90 => {
                if let Some(word) = self.take() {
                    self.words.extend([word.clone(), word]);
                }
            }
            90..97 => self.start(id),
            97 => self.kill(id),
            98 if self.rng.one_in(4) => self.wipe(id),
            _ => {
                if let Some(founders) = &mut self.nodes.get_mut(&id).expect("it is there").process {
                    founders.tick();
                }
            }
        }
    }

    fn ask(&mut self, from: NodeId) {
        let node = self.nodes.get_mut(&from).expect("it is there");
        let Some(founders) = &mut node.process else {
            return;
        };
        let others = node.list.iter().filter(|to| **to != from);
        let others: Vec<NodeId> = others.copied().collect();
        let (asked, list, cluster) = (
            (node.life, founders.round()),
            node.list.clone(),
            node.cluster,
        );
        if others.is_empty() || self.words.len() >= ON_THE_WAY {
            return;
        }
        let to = others[self.rng.below(others.len() as u64) as usize];
        // A handshake names the cluster; whoever has another name, or does not run, answers nothing.
        let silent = match self.nodes.get(&to) {
            Some(other) if other.cluster != cluster => Some("it is of another cluster"),
            Some(other) if other.life > 0 => None,
            _ => Some("connection refused"),
        };
        let node = self.nodes.get_mut(&from).expect("it is there");
        match (silent, &mut node.process) {
            (Some(why), Some(founders)) => founders.silent(to, why),
            _ => self.words.push(Word {
                from,
                to,
                asked,
                what: What::Asks(list),
            }),
        }
    }

    /// Mostly the newest; now and then any, which may be of a time long gone.
    fn take(&mut self) -> Option<Word> {
        let newest = self.words.len().checked_sub(1)?;
        let at = match self.rng.one_in(8) {
            true => self.rng.below(newest as u64 + 1) as usize,
            false => newest,
        };
        Some(self.words.remove(at))
    }

    fn deliver(&mut self) {
        let Some(word) = self.take() else { return };
        let Some(node) = self.nodes.get_mut(&word.to).filter(|node| node.life > 0) else {
            return;
        };
        match word.what {
            What::Asks(list) => {
                let said = match (&mut node.process, &node.founded) {
                    (Some(founders), _) => founders.asked(word.from, &list),
                    (None, Some(founding)) => Statement::founded(node.store, founding.clone()),
                    (None, None) => return,
                };
                self.words.push(Word {
                    from: word.to,
                    to: word.from,
                    asked: word.asked,
                    what: What::Says(said),
                });
            }
            What::Says(said) => {
                // A connection ends with the process that dialled it.
                if let Some(founders) = &mut node.process
                    && node.life == word.asked.0
                    && let Some(founding) = founders.heard(word.from, word.asked.1, said)
                {
                    self.adopts(word.to, founding);
                }
            }
        }
    }

    fn adopts(&mut self, id: NodeId, founding: Founding) {
        let members: BTreeSet<NodeId> = founding.founders.keys().copied().collect();
        let node = self.nodes.get_mut(&id).expect("it is there");
        assert_eq!(founding.founders[&id], node.store, "node {id} is not in it");
        node.founded = Some(founding);
        node.process = None;
        self.tally.founded += 1;
        if node.founded != self.interrupted {
            for other in &members {
                let other = &self.nodes[other];
                assert!(!other.elsewhere, "a node of another cluster founds");
                assert_eq!(other.list, members, "a node with another list founds");
            }
        }
    }

    fn start(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        if node.life > 0 {
            return;
        }
        self.lives += 1;
        node.life = self.lives;
        if node.founded.is_some() {
            return;
        }
        let mut founders = Founders::new(node.cluster, id, node.store, node.list.clone());
        let alone = founders.decide();
        node.process = Some(founders);
        if let Some(founding) = alone {
            self.adopts(id, founding);
        }
    }

    fn kill(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        (node.process, node.life) = (None, 0);
        self.tally.killed += 1;
    }

    fn wipe(&mut self, id: NodeId) {
        self.kill(id);
        let store = self.store();
        let node = self.nodes.get_mut(&id).expect("it is there");
        (node.store, node.founded, node.elsewhere) = (store, None, false);
        self.tally.wiped += 1;
    }

    /// No two clusters are of one list, nor share a founder. What was founded elsewhere is another matter: its ids are its own. And
    /// whoever was in a founding, had not noted it, and has another list by now, is free to found with those.
    fn check(&self) {
        let noted = self.nodes.values().filter(|node| !node.elsewhere);
        let noted: BTreeSet<&Founding> = noted.filter_map(|node| node.founded.as_ref()).collect();
        let is_interrupted = |founding: &Founding| self.interrupted.as_ref() == Some(founding);
        for one in &noted {
            let clashes = |other: &&&Founding| {
                let mut ids = other.founders.keys();
                let may_share = is_interrupted(one) || is_interrupted(other);
                other != &one
                    && match may_share {
                        true => ids.eq(one.founders.keys()),
                        false => ids.any(|id| one.founders.contains_key(id)),
                    }
            };
            let two = noted.iter().find(clashes);
            assert!(two.is_none(), "two clusters: {one:?} and {two:?}");
        }
    }

    /// Nothing is lost any more: whoever can be in a cluster is in it, and everybody else names somebody and a reason.
    fn settle(&mut self) {
        self.words.clear();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        ids.iter().for_each(|id| self.start(*id));
        for _ in 0..QUIET_STEPS {
            let id = self.any();
            self.ask(id);
            // The question, and the answer.
            (0..2).for_each(|_| self.deliver());
            self.check();
        }
        let waiting: BTreeMap<NodeId, Vec<Wait>> = self
            .nodes
            .iter()
            .filter_map(|(id, node)| Some((*id, node.process.as_ref()?.waits())))
            .collect();
        let mut noted = self.nodes.values().filter_map(|node| node.founded.as_ref());
        let someone_is_out = noted.any(|founding| {
            let is_in =
                |(id, node): (&NodeId, &Node)| founding.founders.get(id) == Some(&node.store);
            !self.nodes.iter().all(is_in)
        });
        assert!(
            waiting.is_empty() || someone_is_out || !self.sound,
            "nothing is wrong, and somebody waits: {waiting:?}"
        );
        for (id, waits) in &waiting {
            assert!(!waits.is_empty(), "node {id} waits for nobody");
            for wait in waits {
                let text = wait.to_string();
                let behind = text.strip_prefix(&format!("node {}", wait.node));
                let says_why = behind.is_some_and(|why| why.trim().len() > 10);
                assert!(says_why, "node {id}: {text}");
                *self.tally.reasons.entry(name(&wait.reason)).or_default() += 1;
            }
            assert!(
                leads_to_a_reason(*id, &waiting),
                "node {id} is sent from one to the other: {waiting:?}"
            );
            self.tally.refused += 1;
        }
    }
}

/// Whether whoever reads what a node says, and what those say whom it names, comes to something that can be done.
fn leads_to_a_reason(id: NodeId, waiting: &BTreeMap<NodeId, Vec<Wait>>) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![id]);
    while let Some(id) = next.pop() {
        for wait in waiting.get(&id).into_iter().flatten() {
            match wait.reason {
                Reason::Undecided | Reason::OtherStores if seen.insert(wait.node) => {
                    next.push(wait.node);
                }
                Reason::Undecided | Reason::OtherStores => {}
                _ => return true,
            }
        }
    }
    false
}

fn name(reason: &Reason) -> &'static str {
    match reason {
        Reason::Silent(_) => "silent",
        Reason::OtherList { .. } => "other list",
        Reason::Elsewhere(_) => "elsewhere",
        Reason::Replaced(_) => "replaced",
        Reason::SameStore(_) => "same store",
        Reason::OtherStores => "other stores",
        Reason::Undecided => "undecided",
    }
}

// P-74
#[test]
fn never_two_clusters_over_one_list_and_a_sentence_for_each_who_waits() {
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::draw(seed);
            for _ in 0..world.rng.below(300) {
                world.step();
                world.check();
            }
            world.settle();
            world.tally
        });
        let Ok(run) = run else {
            panic!("seed {seed}, see above");
        };
        tally.add(run);
    }
    let happened = [
        tally.other_lists,
        tally.elsewhere,
        tally.half_founded,
        tally.copied,
        tally.renamed,
        tally.wiped,
        tally.killed,
        tally.founded,
        tally.refused,
    ];
    assert!(happened.iter().all(|count| *count > 100), "{tally:?}");
    for reason in [
        "silent",
        "other list",
        "elsewhere",
        "replaced",
        "same store",
        "undecided",
    ] {
        assert!(
            tally.reasons.get(reason) > Some(&100),
            "{reason}: {tally:?}"
        );
    }
    println!("{tally:?}");
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.other_lists += other.other_lists;
        self.elsewhere += other.elsewhere;
        self.half_founded += other.half_founded;
        self.copied += other.copied;
        self.renamed += other.renamed;
        self.wiped += other.wiped;
        self.killed += other.killed;
        self.founded += other.founded;
        self.refused += other.refused;
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
    }
}
