//! A plan in words: what is done and what may be lost, for whoever decides on it.

use super::{Gone, Plan, Started};

/// Groups that a refusal names.
const NAMED_MAX: usize = 16;

impl Plan {
    /// What is done and what may be lost.
    pub fn text(&self) -> String {
        let mut text = format!(
            "cluster {}: life {} ends ({}), life {} begins, with the nodes {}\n",
            self.cluster,
            self.incarnation.saturating_sub(1),
            self.identity,
            self.incarnation,
            list(self.survivors.keys()),
        );
        for (node, lost) in &self.lost {
            text += &format!(
                "given up for ever: node {node} ({}, {}). It comes back as a new node only\n",
                lost.name, lost.peer
            );
        }
        for start in &self.starts {
            text += &start.text();
        }
        for (id, name) in &self.kept {
            text += &format!(
                "group {id} {name}: has its majority, loses nothing; replicas on lost nodes leave it by themselves\n"
            );
        }
        for (id, gone) in &self.gone {
            text += &format!("group {id} {}: LOST. {}\n", gone.name, gone.of_no_use());
        }
        text
    }
}

impl Started {
    fn text(&self) -> String {
        let Self {
            group,
            name,
            from,
            committed,
            last,
            stay,
            ..
        } = self;
        let mut text = format!(
            "group {group} {name}: starts from node {from}. Known to be committed: up to entry {committed}; its log ends with entry {} of \
             term {}.\n",
            last.index, last.term
        );
        match last.index.saturating_sub(*committed) {
            0 => {}
            1 => {
                text += &format!(
                    "  entry {} was in doubt and becomes committed, though it may never have been acknowledged\n",
                    last.index
                );
            }
            _ => {
                text += &format!(
                    "  entries {} to {} were in doubt and become committed, though they may never have been acknowledged\n",
                    committed + 1,
                    last.index
                );
            }
        }
        text += &format!(
            "  MAY BE LOST: what was acknowledged behind entry {}. Only the lost nodes had it, and nobody can say whether there was any\n",
            last.index
        );
        let others: Vec<_> = stay.iter().filter(|node| *node != from).collect();
        text += &match others.is_empty() {
            true => format!("  members: node {from} alone; add others with `skep member add`\n"),
            false => format!(
                "  members: node {from}, which votes, and of the others {}, which vote as soon as they have caught up\n",
                list(others)
            ),
        };
        for (node, why) in &self.dropped {
            text += &format!("  the replica on node {node} leaves the group: {why}\n");
        }
        if self.suspended {
            text += &format!(
                "  replicas differed, and no majority said who is right: the state of node {from} counts from now on\n"
            );
        }
        text
    }
}

impl Gone {
    /// Why what is left of it is no start.
    pub(super) fn of_no_use(&self) -> String {
        if self.left.is_empty() {
            return "None of these nodes has a replica".to_owned();
        }
        let left = self.left.iter();
        let left: Vec<_> = left
            .map(|(node, why)| format!("node {node}: {why}"))
            .collect();
        left.join("; ")
    }
}

/// These, or that there are none.
pub(super) fn list<T: ToString>(of: impl IntoIterator<Item = T>) -> String {
    let of: Vec<_> = of.into_iter().map(|of| of.to_string()).collect();
    match of.is_empty() {
        true => "none".to_owned(),
        false => of.join(", "),
    }
}

/// The first of these names, and how many more there are.
pub(super) fn some<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let first = list(names.take(NAMED_MAX));
    match more {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
