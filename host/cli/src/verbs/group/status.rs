//! What `skep group status` shows.

use skep_core::status::{AwaitedDecision, CatchingUp, HeldBack, Status};
use skep_machine::state_machine::Memory;

use crate::verbs::output::{self, list, or_dash};

/// How much memory the machine has, and may have.
pub(super) fn memory(memory: Memory) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!("{}/{} MiB", mib(memory.used_bytes), mib(memory.limit_bytes))
}

/// What the group takes of its clients.
fn quota(replica: &Status) -> String {
    let quota = replica.quota;
    let limits = [
        (quota.commands_per_second.into(), "commands/s"),
        (quota.bytes_per_second, "bytes/s"),
        (quota.in_flight_bytes, "bytes in flight"),
    ];
    let waits = replica.quota_waits;
    let waited = (waits != 0).then(|| format!("commands waited for their bytes in {waits} ticks"));
    let words: Vec<String> = limits
        .iter()
        .filter(|(limit, _)| *limit != 0)
        .map(|(limit, what)| format!("{limit} {what}"))
        .chain(waited)
        .collect();
    or_dash((!words.is_empty()).then(|| words.join(", ")))
}

pub(super) fn text(status: &skep::GroupStatus) -> String {
    let replica = &status.replica;
    let mut text = format!(
        "group     {} ({})\nnode      {}\npart      {}\nterm      {}\nleader    {}\ncommit    {}\napplied   {}\nlog       {} to {}\n\
         snapshot  {}\nmachine   {} {}\n",
        replica.group,
        status.name,
        replica.node,
        word(&replica.part),
        replica.term,
        or_dash(replica.leader),
        replica.commit,
        replica.applied,
        replica.first,
        replica.last,
        replica.snapshot,
        status.machine.name,
        status.machine.version,
    );
    text.push_str(&format!(
        "memory    {}\nquota     {}\n",
        or_dash(status.memory.map(memory)),
        quota(replica)
    ));
    if let Some(trouble) = &status.trouble {
        text.push_str(&format!("problem   {trouble}\n"));
    }
    if !replica.held_back.is_empty() {
        text.push_str(&format!("held back {}\n", held_back(replica)));
    }
    if let Some(awaited) = &replica.activation {
        text.push_str(&format!("upgrade   {}\n", waits(awaited)));
    }
    let rows: Vec<Vec<String>> = replica
        .members
        .iter()
        .map(|member| {
            let active = member
                .active
                .map(|active| if active { "yes" } else { "no" });
            vec![
                member.node.to_string(),
                word(&member.role),
                or_dash(member.matched),
                or_dash(active),
                or_dash(member.catching_up.as_ref().map(catching_up)),
            ]
        })
        .collect();
    let head = ["MEMBER", "ROLE", "MATCHED", "ACTIVE", "CATCHING UP"];
    text + &output::table(&head, &rows)
}

/// What holds back what clients ask.
fn held_back(replica: &Status) -> String {
    let words = replica.held_back.iter().map(|held| match held {
        HeldBack::CatchUp => format!("catch-up (to {} %)", replica.catch_up.share_percent),
        held => word(held),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn catching_up(how: &CatchingUp) -> String {
    match how {
        CatchingUp::Snapshot => "a snapshot is on its way".to_owned(),
        CatchingUp::Log { lacks } => format!("lacks {} KiB of log", lacks >> 10),
        CatchingUp::LeftBehind => {
            "left behind; tried again later, or when less is written".to_owned()
        }
    }
}

fn waits(awaited: &AwaitedDecision) -> String {
    let AwaitedDecision {
        index,
        component,
        ticks,
        ..
    } = awaited;
    let what = format!("for {ticks} ticks it has waited at {index} to go on with {component}");
    match awaited.is_confirmed {
        Some(_) => {
            format!("{what}: that is decided, and this node cannot do it yet; see its log lines")
        }
        None if awaited.waits_for.is_empty() => {
            format!("{what}; the leader knows for whom; see `skep group abort-upgrade`")
        }
        None => {
            let nodes = list(&awaited.waits_for);
            format!("{what}; nodes that are not ready: {nodes}; see `skep group abort-upgrade`")
        }
    }
}

/// The name a value has in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_says_what_holds_the_group_back() {
        let mut status = json!({
            "name": "bees", "component": "00".repeat(32), "halted": null,
            "machine": {"name": "kv", "version": "1", "schema": 1, "oldest_schema": 1},
            "group": 4, "incarnation": 1, "node": 1, "replica": 1, "part": "leader", "term": 2, "leader": 1, "commit": 9,
            "applied": 9, "first": 1, "last": 9, "snapshot": 0, "members": [], "health": {"state": "healthy"}, "verified": 0,
            "paused": false, "deployed": null, "activation": null, "sessions": 0, "session_bytes": 0, "queued": 0,
            "quota": {}, "quota_waits": 0,
        });
        let shown = |status: &serde_json::Value| {
            text(&serde_json::from_value(status.clone()).expect("a status"))
        };
        assert!(!shown(&status).contains("held back"));
        status["catch_up"] = json!({"share_percent": 40, "waits": 3, "left_behind": 0});
        status["held_back"] = json!(["suspects", "catch-up", "query-bytes"]);
        let held = "held back suspects, catch-up (to 40 %), query-bytes\n";
        assert!(shown(&status).contains(held), "{}", shown(&status));
    }
}
