//! What the machine has heard of its group: leader and members.

use std::collections::BTreeMap;
use std::fmt;

use skep_guest::{ChangeKind, ConfChange, LeaderChanged, Rejection, Sink, Source};

use crate::code;

#[derive(Default)]
pub(crate) struct Membership {
    leader: u64,
    term: u64,
    leader_changes: u64,
    members: BTreeMap<u64, Member>,
}

struct Member {
    votes: bool,
    data: Vec<u8>,
}

impl Membership {
    pub(crate) fn leader_changed(&mut self, change: &LeaderChanged) {
        self.leader = change.new;
        self.term = change.term;
        self.leader_changes += 1;
    }

    pub(crate) fn conf_changed(&mut self, change: &ConfChange) {
        let votes = match change.kind {
            ChangeKind::AddVoter | ChangeKind::Promote => true,
            ChangeKind::AddLearner => false,
            ChangeKind::Remove => {
                self.members.remove(&change.node);
                return;
            }
        };
        let member = self.members.entry(change.node).or_insert(Member {
            votes,
            data: Vec::new(),
        });
        member.votes = votes;
        // A promotion that brings no data keeps what the learner came with.
        if change.kind != ChangeKind::Promote || !change.data.is_empty() {
            member.data.clone_from(&change.data);
        }
    }

    pub(crate) fn save(&self, to: &mut Sink<'_>) {
        to.put_u64(self.leader);
        to.put_u64(self.term);
        to.put_u64(self.leader_changes);
        to.put_u64(self.members.len() as u64);
        for (node, member) in &self.members {
            to.put_u64(*node);
            to.put_u8(u8::from(member.votes));
            to.put_bytes(&member.data);
        }
    }

    pub(crate) fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut membership = Membership {
            leader: from.take_u64()?,
            term: from.take_u64()?,
            leader_changes: from.take_u64()?,
            members: BTreeMap::new(),
        };
        for _ in 0..from.take_u64()? {
            let node = from.take_u64()?;
            let votes = match from.take_u8()? {
                0 => false,
                1 => true,
                other => {
                    let message = format!(
                        "the snapshot says {other} where a member is a learner (0) or a voter (1)"
                    );
                    return Err(Rejection::new(code::BAD_REQUEST, message));
                }
            };
            membership.members.insert(
                node,
                Member {
                    votes,
                    data: from.take_bytes()?,
                },
            );
        }
        Ok(membership)
    }
}

/// The lines of `stats` about the group.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "leader {}", self.leader)?;
        writeln!(f, "term {}", self.term)?;
        writeln!(f, "leader-changes {}", self.leader_changes)?;
        for (node, member) in &self.members {
            write!(
                f,
                "member {node} {}",
                if member.votes { "voter" } else { "learner" }
            )?;
            if !member.data.is_empty() {
                write!(f, " {}", PercentEncoded(&member.data))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Bytes as one word of printable ASCII.
struct PercentEncoded<'a>(&'a [u8]);

impl fmt::Display for PercentEncoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            match byte {
                b'!'..=b'~' if byte != b'%' => write!(f, "{}", char::from(byte))?,
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}
