//! The network: lanes that lose, delay and repeat, and cuts between nodes.

use std::collections::BTreeSet;

use bytes::Bytes;
use skep_core::message::{Body, PeerMessage, SnapshotName};

use super::World;
use super::event::{Event, Mend};
use crate::scenario::SECOND;

/// Messages of long ago that are kept, to arrive again.
const STALE: usize = 64;

impl World {
    pub(super) fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    pub(super) fn delay(&mut self) -> u64 {
        self.random.around(self.scenario.delay)
    }

    pub(super) fn send(&mut self, from: u64, from_boot: u64, to: u64, message: PeerMessage) {
        self.trace.line(self.now, || {
            format!("{from} → {to}: {}", describe(&message))
        });
        let lost = self.is_cut(from, to) || self.random.per_mille(self.scenario.loss);
        let Some(receiver) = self.nodes.get(&to).filter(|node| !lost && node.is_up()) else {
            let unreachable = Event::Unreachable {
                node: from,
                boot: from_boot,
                group: message.group,
                to,
            };
            if self.random.one_in(2) {
                let delay = self.delay();
                self.after(delay, unreachable);
            }
            return;
        };
        let boot = Some(receiver.boots);
        // The transport gives each message at most once, in order within a lane. Only Raft's own are safe to repeat, and
        // a connection that was replaced may still hold some.
        let repeatable = matches!(message.body, Body::Raft(_));
        if repeatable && self.random.one_in(200) {
            if self.stale.len() == STALE {
                let at = self.random.below(STALE as u64) as usize;
                self.stale.swap_remove(at);
            }
            self.stale.push((from, to, message.clone()));
        }
        if repeatable && !self.healing && self.random.per_mille(self.scenario.duplicates) {
            let late = self.random.around(SECOND);
            let copy = Event::Deliver {
                from,
                to,
                boot,
                message: message.clone(),
            };
            self.after(late, copy);
        }
        let delay = self.delay();
        let lane = (from, to, message.body.priority());
        let at = (self.now + delay).max(self.lanes.get(&lane).map_or(0, |last| last + 1));
        self.lanes.insert(lane, at);
        let deliver = Event::Deliver {
            from,
            to,
            boot,
            message,
        };
        self.at(at, deliver);
    }

    /// A snapshot on its way; its sender hears how that went.
    pub(super) fn send_snapshot(
        &mut self,
        from: u64,
        from_boot: u64,
        to: u64,
        message: PeerMessage,
        name: SnapshotName,
        file: Bytes,
    ) {
        let lost = self.random.per_mille(self.scenario.loss) || self.is_cut(from, to);
        let delay = self.delay() * 3;
        if lost {
            let lost = Event::SnapshotSent {
                node: from,
                boot: from_boot,
                group: message.group,
                to,
                arrived: false,
            };
            self.after(delay, lost);
            return;
        }
        let snapshot = |message, reported| Event::Snapshot {
            from,
            from_boot,
            to,
            message,
            name: name.clone(),
            file: file.clone(),
            reported,
        };
        // What a connection that was given up had received may be taken for whole later.
        if self.random.one_in(4) {
            let late = delay + self.random.around(SECOND);
            self.after(late, snapshot(message.clone(), false));
        }
        self.after(delay, snapshot(message, true));
    }

    /// Both ways between these nodes and all others.
    pub(super) fn pairs_of(&self, side: &BTreeSet<u64>) -> Vec<(u64, u64)> {
        let all = || self.nodes.keys().copied();
        all()
            .flat_map(|from| all().map(move |to| (from, to)))
            .filter(|(from, to)| side.contains(from) != side.contains(to))
            .collect()
    }

    pub(super) fn cut(&mut self, pairs: Vec<(u64, u64)>, lasts: u64) {
        for pair in &pairs {
            *self.cuts.entry(*pair).or_default() += 1;
        }
        self.after(lasts, Event::Mend(Mend::Cut(pairs)));
    }
}

/// A message in one line.
fn describe(message: &PeerMessage) -> String {
    let head = format!(
        "group {} ({}) {}→{}",
        message.group, message.incarnation, message.from, message.to
    );
    match &message.body {
        Body::Raft(raft) => format!(
            "{head} {:?} term {} log {}/{} +{} commit {}{}",
            raft.msg_type,
            raft.term,
            raft.index,
            raft.log_term,
            raft.entries.len(),
            raft.commit,
            if raft.reject { " reject" } else { "" }
        ),
        Body::Forward(forwards) => format!("{head} forwards {}", forwards.len()),
        Body::Answer(answers) => format!("{head} answers {}", answers.len()),
        Body::Gone => format!("{head} gone"),
        Body::AskAttestations { after, .. } => format!("{head} asks of barriers after {after}"),
        Body::Attestations { said, .. } => format!("{head} speaks of {} barriers", said.len()),
        Body::AskSnapshot { after } => format!("{head} asks for a snapshot after {after}"),
        Body::Readiness { index, readiness } => {
            format!("{head} is {readiness:?} for the activation at {index}")
        }
        Body::AskStanding { .. } => format!("{head} asks how it stands"),
        Body::Standing(standing) => format!("{head} {standing:?}"),
    }
}
