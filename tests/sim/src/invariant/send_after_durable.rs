//! Nothing is sent before the hard state and the entries it speaks for are durable (Raft paper, figure 2: "updated on
//! stable storage before responding to RPCs").

use raft::eraftpb::{Message, MessageType as Type};

use super::ledger::Image;

/// A replica sends a message while its disk holds `durable`.
pub fn check(durable: &Image, message: &Message, committed: u64) -> Result<(), String> {
    let (term, vote, _) = durable.hard;
    let kind = message.msg_type;
    let wrong = |what: String| Err(format!("{kind:?} of term {} {what}", message.term));
    if message.commit > committed && matches!(kind, Type::MsgAppend | Type::MsgHeartbeat) {
        return wrong(format!(
            "says that {} is committed; only {committed} is",
            message.commit
        ));
    }
    // A pre-vote asks about a term that nobody has entered.
    if matches!(
        kind,
        Type::MsgRequestPreVote | Type::MsgRequestPreVoteResponse
    ) {
        return Ok(());
    }
    if message.term > term {
        return wrong(format!("leaves while the durable term is {term}"));
    }
    if message.term < term {
        return Ok(());
    }
    match kind {
        Type::MsgRequestVote if vote != durable.replica => {
            wrong(format!("asks for votes; the durable vote is for {vote}"))
        }
        Type::MsgRequestVoteResponse if !message.reject && vote != message.to => wrong(format!(
            "grants {} its vote; the durable vote is for {vote}",
            message.to
        )),
        Type::MsgAppendResponse if !message.reject && message.index > durable.last() => {
            wrong(format!(
                "acknowledges entry {}; the durable log ends at {}",
                message.index,
                durable.last()
            ))
        }
        _ => Ok(()),
    }
}
