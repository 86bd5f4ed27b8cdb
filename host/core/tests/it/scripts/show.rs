//! Messages, entries, records and answers as one line of text each, the same in every run.

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType};
use skep_core::effect::{Call, Effect, Persist, Work};
use skep_core::id::RequestId;
use skep_core::message::{Body, PeerMessage};
use skep_core::outcome::{ChangeKind, Outcome};
use skep_core::payload::{ChangeRecord, Kind, Payload};
use skep_core::proposal::{Change, Proposal, ProposalError, Response};
use skep_core::state::HostState;
use skep_core::status::{Health, Part, Status};

/// Commands longer than this are told by their length.
const COMMAND_SHOWN: usize = 24;

/// Read rounds and forwards carry numbers that nobody can tell apart; here they are named in the order they are seen.
#[derive(Default)]
pub struct Names {
    reads: Vec<Vec<u8>>,
    forwards: Vec<u64>,
    /// Entries hold bytes as they are, not the host's payloads.
    plain: bool,
}

impl Names {
    pub fn plain() -> Self {
        Self {
            plain: true,
            ..Self::default()
        }
    }

    pub fn effect(&mut self, effect: &Effect) -> String {
        match effect {
            Effect::Persist(record) => self.record(record),
            Effect::Send { message, .. } => format!("send {}", self.peer_message(message)),
            Effect::ReadLog { from, through, .. } => format!("read {from} to {through}"),
            Effect::SendSnapshot { message, .. } => {
                format!("send snapshot {}", self.peer_message(message))
            }
            Effect::Machine(work) => work_line(work),
            Effect::Reply { waiter, result } => format!("reply w{waiter}: {}", answer(result)),
            Effect::QueryFailed { waiter, error } => format!("query w{waiter} failed: {error:?}"),
            Effect::Leader(changed) => {
                format!(
                    "leader n{} -> n{} term={}",
                    changed.old, changed.new, changed.term
                )
            }
            Effect::Diverged {
                index,
                decided,
                here,
            } => format!("diverged at {index} decided={decided} here={here}"),
            Effect::GivenUp { index, commands } => {
                format!("{commands} commands of entry {index} are given up")
            }
            Effect::Distrusted { from, why } => {
                format!("n{from} is not believed: {}", why.code())
            }
            Effect::Removed => "removed".into(),
            Effect::Halt { reason } => format!("halt: {reason}"),
        }
    }

    pub fn record(&mut self, record: &Persist) -> String {
        let mut line = format!("persist #{} as r{}", record.number, record.replica);
        if let Some(hard_state) = &record.hard_state {
            line += &format!(" {}", state(hard_state));
        }
        if record.reset {
            line += " log replaced";
        }
        if let Some(name) = &record.snapshot {
            line += &format!(" snapshot=@{}", name.index);
        }
        if let Some((index, _)) = record.truncated {
            line += &format!(" truncated=@{index}");
        }
        line + &self.entries(&record.entries)
    }

    pub fn peer_message(&mut self, message: &PeerMessage) -> String {
        let ends = format!("r{}->r{}", message.from, message.to);
        match &message.body {
            Body::Raft(raft) => format!("{ends} {}", self.message(raft)),
            Body::Forward(forwards) => {
                let items: Vec<_> = forwards
                    .iter()
                    .map(|forward| {
                        format!(
                            "{} {}",
                            self.forward(forward.token),
                            proposal(&forward.proposal)
                        )
                    })
                    .collect();
                format!("{ends} Forward [{}]", items.join(", "))
            }
            Body::Answer(answers) => {
                let items: Vec<_> = answers
                    .iter()
                    .map(|one| format!("{}: {}", self.forward(one.token), answer(&one.result)))
                    .collect();
                format!("{ends} Answer [{}]", items.join(", "))
            }
            Body::Gone => format!("{ends} Gone"),
            Body::AskAttestations { after, .. } => format!("{ends} AskAttestations after={after}"),
            Body::AskStanding { .. } => format!("{ends} AskStanding"),
            Body::Standing(standing) => format!(
                "{ends} Standing term={} member={} removed={} matched={} well={}",
                standing.term, standing.member, standing.removed, standing.matched, standing.well
            ),
            Body::AskSnapshot { after } => format!("{ends} AskSnapshot after={after}"),
            Body::Readiness { index, readiness } => {
                format!("{ends} Readiness @{index} {readiness:?}")
            }
            Body::Attestations { said, .. } => {
                let barriers = words(said.iter().map(|said| format!("@{}", said.index)));
                format!("{ends} Attestations {barriers}")
            }
        }
    }

    /// A message of Raft, without its ends.
    pub fn message(&mut self, message: &Message) -> String {
        use MessageType as Type;
        let mut line = format!("{:?} term={}", message.msg_type, message.term);
        match message.msg_type {
            Type::MsgAppend => {
                line += &format!(
                    " prev={}/{} commit={}",
                    message.log_term, message.index, message.commit
                );
                line += &self.entries(&message.entries);
            }
            Type::MsgAppendResponse if message.reject => {
                line += &format!(
                    " reject index={} hint={}",
                    message.index, message.reject_hint
                );
            }
            Type::MsgAppendResponse => line += &format!(" index={}", message.index),
            Type::MsgHeartbeat | Type::MsgHeartbeatResponse => {
                if message.msg_type == Type::MsgHeartbeat {
                    line += &format!(" commit={}", message.commit);
                }
                if !message.context.is_empty() {
                    line += &format!(" read={}", self.read(&message.context));
                }
            }
            Type::MsgRequestVote | Type::MsgRequestPreVote => {
                line += &format!(" last={}/{}", message.log_term, message.index);
                if message.context.as_ref() == b"CampaignTransfer" {
                    line += " forced";
                }
            }
            Type::MsgRequestVoteResponse | Type::MsgRequestPreVoteResponse => {
                line += if message.reject {
                    " refused"
                } else {
                    " granted"
                };
            }
            Type::MsgReadIndex | Type::MsgReadIndexResp => {
                for entry in &message.entries {
                    line += &format!(" read={}", self.read(&entry.data));
                }
                if message.msg_type == Type::MsgReadIndexResp {
                    line += &format!(" index={}", message.index);
                }
            }
            Type::MsgSnapshot => {
                let metadata = message.get_snapshot().get_metadata();
                line += &format!(
                    " snapshot={}/{} {}",
                    metadata.term,
                    metadata.index,
                    configuration(metadata.get_conf_state())
                );
            }
            _ => {}
        }
        line
    }

    pub fn entries(&self, entries: &[Entry]) -> String {
        if entries.is_empty() {
            return String::new();
        }
        let items: Vec<_> = entries.iter().map(|entry| self.entry(entry)).collect();
        format!(" [{}]", items.join(", "))
    }

    pub fn entry(&self, entry: &Entry) -> String {
        let place = format!("{}/{}", entry.term, entry.index);
        let what = match entry.entry_type {
            EntryType::EntryNormal if entry.data.is_empty() => "empty".into(),
            EntryType::EntryNormal if self.plain => text(&entry.data),
            EntryType::EntryNormal => match Payload::decode(entry.data.clone()) {
                Ok(payload) => payload_line(payload),
                Err(_) => "unreadable".into(),
            },
            _ if self.plain => text(&entry.context),
            _ => match ChangeRecord::decode(entry.context.clone()) {
                Ok(record) => change_line(&record),
                Err(_) => "unreadable change".into(),
            },
        };
        format!("{place} {what}")
    }

    pub fn read(&mut self, context: &[u8]) -> String {
        if self.plain {
            return String::from_utf8_lossy(context).into_owned();
        }
        let place = self
            .reads
            .iter()
            .position(|read| read == context)
            .unwrap_or_else(|| {
                self.reads.push(context.to_vec());
                self.reads.len() - 1
            });
        char::from_u32('A' as u32 + place as u32 % 26)
            .unwrap_or('?')
            .to_string()
    }

    fn forward(&mut self, token: u64) -> String {
        let place = self
            .forwards
            .iter()
            .position(|other| *other == token)
            .unwrap_or_else(|| {
                self.forwards.push(token);
                self.forwards.len() - 1
            });
        format!("f{}", place + 1)
    }
}

pub fn state(hard_state: &HardState) -> String {
    format!(
        "term={} vote={} commit={}",
        hard_state.term, hard_state.vote, hard_state.commit
    )
}

pub fn configuration(conf: &ConfState) -> String {
    let list = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let (mut voters, mut learners) = (conf.voters.clone(), conf.learners.clone());
    voters.sort_unstable();
    learners.sort_unstable();
    format!("voters=({}) learners=({})", list(&voters), list(&learners))
}

pub fn text(bytes: &[u8]) -> String {
    if bytes.len() > COMMAND_SHOWN {
        return format!("<{} bytes>", bytes.len());
    }
    format!("{:?}", String::from_utf8_lossy(bytes))
}

pub fn answer(result: &Result<Response, ProposalError>) -> String {
    match result {
        Ok(response) => {
            let outcome = match &response.outcome {
                Outcome::Reply(bytes) => text(bytes),
                other => format!("{other:?}"),
            };
            format!("done @{} term={} {outcome}", response.index, response.term)
        }
        Err(error) => format!("{error:?}"),
    }
}

/// What a snapshot's host section says of its place and of the members there.
pub fn section(bytes: bytes::Bytes) -> String {
    match HostState::decode(bytes) {
        Ok((state, context)) => {
            format!(
                "@{} {}",
                context.index,
                configuration(&state.membership.conf_state())
            )
        }
        Err(error) => error.to_string(),
    }
}

pub fn status(status: &Status) -> String {
    let part = match status.part {
        Part::Uninitialized => "uninitialized",
        Part::Follower => "follower",
        Part::PreCandidate => "pre-candidate",
        Part::Candidate => "candidate",
        Part::Leader => "leader",
        Part::Stopped => "stopped",
    };
    let leader = status
        .leader
        .map_or("-".into(), |leader| format!("n{leader}"));
    let health = match &status.health {
        Health::Healthy => "",
        Health::Degraded { .. } => " degraded",
        Health::Quarantined { .. } => " quarantined",
        Health::Damaged { .. } => " damaged",
        Health::Suspended { .. } => " suspended",
        Health::Faulted { .. } => " faulted",
    };
    format!(
        "{part} term={} leader={leader} commit={} applied={} log={}..{} snapshot={}{health}",
        status.term, status.commit, status.applied, status.first, status.last, status.snapshot
    )
}

/// The members as a replica has applied them.
pub fn members(status: &Status) -> String {
    let members: Vec<_> = status
        .members
        .iter()
        .map(|member| format!("n{}=r{} {:?}", member.node, member.replica, member.role))
        .collect();
    format!("members {}", members.join(", "))
}

fn work_line(work: &Work) -> String {
    match work {
        Work::Apply { context, calls, .. } => {
            let calls: Vec<_> = calls.iter().map(call_line).collect();
            format!(
                "apply {}/{} {}",
                context.term,
                context.index,
                calls.join(", ")
            )
        }
        Work::Barrier { context, state, .. } => {
            format!(
                "snapshot {}/{} {}",
                context.term,
                context.index,
                section(state.clone())
            )
        }
        Work::Restore { context, .. } => format!("restore {}/{}", context.term, context.index),
        Work::Prepare { context, .. } => format!("prepare {}/{}", context.term, context.index),
        Work::Decide { context, decision } => {
            format!("decide {}/{} {decision:?}", context.term, context.index)
        }
        Work::Query { waiter, index, .. } => format!("query w{waiter} at {index}"),
    }
}

fn call_line(call: &Call) -> String {
    match call {
        Call::Init(bytes) => format!("init {}", text(bytes)),
        Call::Commands(commands) => words(commands.iter().map(|command| text(command))),
        Call::ConfChange(change) => format!("{} n{}", kind(change.kind), change.node),
        Call::StatusChange(changed) => {
            format!(
                "leader n{} -> n{} term={}",
                changed.old, changed.new, changed.term
            )
        }
    }
}

fn payload_line(payload: Payload) -> String {
    match payload.kind {
        Some(Kind::Commands(commands)) => words(commands.items.iter().map(|item| {
            if item.open {
                "open-session".into()
            } else {
                match item.request() {
                    Some(request) if request.is_anonymous() => text(&item.data),
                    Some(RequestId { session, sequence }) => {
                        format!("s{session}#{sequence} {}", text(&item.data))
                    }
                    None => "in a session of another form".into(),
                }
            }
        })),
        Some(Kind::Elected(elected)) => format!("elected n{}", elected.node),
        Some(Kind::Barrier(_)) => "barrier".into(),
        Some(Kind::Verdict(verdict)) => format!("verdict on @{}", verdict.index),
        Some(Kind::Pause(pause)) => if pause.on { "pause" } else { "resume" }.into(),
        Some(Kind::Activate(_)) => "activate".into(),
        Some(Kind::Confirm(confirm)) => format!("confirm @{}", confirm.index),
        Some(Kind::Abort(abort)) => format!("abort @{} for {}", abort.index, abort.code),
        Some(Kind::Impasse(impasse)) => {
            format!("impasse at command {} of {}", impasse.item, impasse.index)
        }
        None => "of a kind that is not known".into(),
    }
}

fn change_line(record: &ChangeRecord) -> String {
    let kind = record.change_kind().map_or("unknown-change", kind);
    format!("{kind} n{}=r{}", record.node, record.replica)
}

fn kind(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::AddVoter => "add-voter",
        ChangeKind::AddLearner => "add-learner",
        ChangeKind::Promote => "promote",
        ChangeKind::Remove => "remove",
    }
}

fn proposal(proposal: &Proposal) -> String {
    match proposal {
        Proposal::Command(command) => text(&command.data),
        Proposal::OpenSession => "open-session".into(),
        Proposal::Change(Change::Add { node, .. }) => format!("add n{node}"),
        Proposal::Change(Change::AddLearner { node, .. }) => format!("add-learner n{node}"),
        Proposal::Change(Change::Remove { node, .. }) => format!("remove n{node}"),
        Proposal::Change(Change::Promote { node }) => format!("promote n{node}"),
        Proposal::Change(Change::Demote { node }) => format!("demote n{node}"),
        Proposal::Barrier => "barrier".into(),
        Proposal::Activate(deployment) => format!("activate {}", deployment.component),
        Proposal::AbortActivation => "abort".into(),
        Proposal::Resume => "resume".into(),
        Proposal::Trust { node } => format!("trust n{node}"),
    }
}

/// Many items are told by the first, the last and their number.
fn words(items: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 8;
    let items: Vec<_> = items.collect();
    match items.as_slice() {
        [first, .., last] if items.len() > SHOWN => {
            format!("{} commands {first} .. {last}", items.len())
        }
        _ => items.join(" "),
    }
}
