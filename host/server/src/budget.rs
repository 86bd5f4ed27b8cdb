//! The one table of budgets: what a stranger, a client, a group or a peer can make a node hold, and what it is told beyond.
//!
//! The table in `docs/reference/limits.md` is written from it, and a test compares the two, each value with the constant or the
//! default that it stands for, and each place with the file. Whoever adds a bound adds a row.

use std::fmt;

use skep_types::code::Code;

use self::Beyond::Otherwise;
use self::Most::{Bytes, Count, Milliseconds, Words};

/// One budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Its name.
    pub name: &'static str,
    /// What it bounds, and whose.
    pub bounds: &'static str,
    /// How much that is.
    pub most: Most,
    /// The key of `skep.toml` that sets it, as `section.key`.
    pub key: Option<&'static str>,
    /// Where it is checked: a file from the top of the repository, and the constant or field that holds the value.
    pub at: (&'static str, &'static str),
    /// What happens beyond it.
    pub beyond: Beyond,
}

/// How much a budget allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Most {
    /// Bytes.
    Bytes(u64),
    /// So many.
    Count(u64),
    /// Time.
    Milliseconds(u64),
    /// What no single number says.
    Words(&'static str),
}

/// What happens beyond a budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beyond {
    /// The caller is refused, with a stable code and the next step.
    Refused {
        /// The code.
        code: Code,
        /// What to do.
        next: &'static str,
    },
    /// Something else, which nobody needs to act upon.
    Otherwise(&'static str),
}

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bytes(bytes) => {
                let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
                let unit = units
                    .iter()
                    .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
                match unit {
                    Some((unit, shift)) => write!(f, "{} {unit}", bytes >> shift),
                    None => write!(f, "{bytes} B"),
                }
            }
            Self::Count(count) => {
                let digits = count.to_string();
                // Four digits are read at a glance; more are grouped.
                let grouped = digits.len() > 4;
                for (at, digit) in digits.chars().enumerate() {
                    if grouped && at > 0 && (digits.len() - at) % 3 == 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{digit}")?;
                }
                Ok(())
            }
            Self::Milliseconds(ms) if ms >= 1000 && ms % 1000 == 0 => write!(f, "{} s", ms / 1000),
            Self::Milliseconds(ms) => write!(f, "{ms} ms"),
            Self::Words(words) => f.write_str(words),
        }
    }
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, next } => write!(f, "`{code}`: {next}"),
            Self::Otherwise(what) => f.write_str(what),
        }
    }
}

/// The table as Markdown.
pub fn markdown() -> String {
    let mut text =
        "| budget | bounds | most | checked | beyond it |\n|---|---|---|---|---|\n".to_owned();
    for budget in BUDGETS {
        let key = budget.key.map_or_else(String::new, |key| {
            let (section, key) = key.split_once('.').unwrap_or(("", key));
            format!("; `[{section}] {key}`")
        });
        let (file, symbol) = budget.at;
        text.push_str(&format!(
            "| {} | {} | {}{key} | `{symbol}`, `{file}` | {} |\n",
            budget.name, budget.bounds, budget.most, budget.beyond
        ));
    }
    text
}

const fn row(
    name: &'static str,
    bounds: &'static str,
    most: Most,
    at: (&'static str, &'static str),
    beyond: Beyond,
) -> Budget {
    Budget {
        name,
        bounds,
        most,
        key: None,
        at,
        beyond,
    }
}

impl Budget {
    const fn key(self, key: &'static str) -> Self {
        Self {
            key: Some(key),
            ..self
        }
    }
}

const fn refused(code: Code, next: &'static str) -> Beyond {
    Beyond::Refused { code, next }
}

const BUSY: Beyond = refused(Code::Busy, "wait and ask again");
const TOO_LARGE: Beyond = refused(Code::TooLarge, "send less at once");

/// Every budget.
#[rustfmt::skip]
pub const BUDGETS: &[Budget] = &[
    // Commands and queries.
    row("command", "one command or query", Bytes(1 << 20), ("host/server/src/config/sections.rs", "command_bytes"), TOO_LARGE).key("limits.command_bytes"),
    row("entry-bytes", "one entry", Bytes(1 << 20), ("host/core/src/config.rs", "entry_bytes"), Otherwise("the next entry takes the rest")),
    row("entry-commands", "commands of one entry", Count(4096), ("host/core/src/config.rs", "entry_commands"), Otherwise("the next entry takes the rest")),
    row("queued-proposals", "proposals that wait in a group", Words("64 MiB or 65,536"), ("host/core/src/config.rs", "queued_proposals"), BUSY),
    row("queued-queries", "queries that wait in a group", Count(65_536), ("host/core/src/config.rs", "queued_queries"), BUSY),
    row("long-bytes", "bytes in a second of a group's commands and replies, where they are longer than 64 KiB, and as many again for queries on each node; saved up is a quarter of a second's, held against it four seconds'", Words("4 MiB for each processor of the node, or the group's own quota, which counts all of them"), ("host/core/src/allowance.rs", "SHORT"), Otherwise("they wait")).key("limits.long_bytes_per_second"),
    row("uncommitted", "entries of a group that are proposed and not committed", Bytes(64 << 20), ("host/core/src/config.rs", "uncommitted_bytes"), Otherwise("proposals wait")),
    row("unapplied", "entries of a group that are committed and not applied", Bytes(64 << 20), ("host/core/src/config.rs", "unapplied_bytes"), Otherwise("proposals wait")),
    row("appends-in-flight", "append messages on their way to one follower", Words("256 of 1 MiB"), ("host/core/src/config.rs", "max_in_flight"), Otherwise("the next waits for an answer")),
    row("committed-at-once", "committed bytes in one `Ready`", Bytes(4 << 20), ("host/core/src/founding.rs", "max_committed_size_per_ready"), Otherwise("the next takes the rest")),
    row("records-on-the-way", "records of a replica on their way before it packs again", Count(2), ("host/core/src/packing.rs", "RECORDS_ON_THE_WAY"), Otherwise("commands wait and share an entry")),
    row("forwards-in-message", "forwards in one message", Count(1024), ("host/core/src/forwards.rs", "FORWARDS_IN_MESSAGE"), Otherwise("the next message takes the rest")),
    row("read-rounds", "read-index rounds in flight of a group", Count(4), ("host/core/src/reads.rs", "ROUNDS_MAX"), Otherwise("queries wait and share a round")),
    row("request-time", "a request that names no deadline of its own", Milliseconds(10_000), ("host/server/src/config/sections.rs", "request_timeout_ms"), refused(Code::OutcomeUnknown, "look whether it was done, or send it in a session")).key("limits.request_timeout_ms"),
    row("activation-time", "the wait of a group for the decision on an upgrade", Milliseconds(60_000), ("host/server/src/config/sections.rs", "activation_timeout_ms"), Otherwise("it goes on with what it ran")).key("limits.activation_timeout_ms"),
    // Groups.
    row("voters", "members of a group that vote; all members of a group of a client do", Count(63), ("host/core/src/config.rs", "VOTERS_MAX"), refused(Code::CatalogueFull, "remove a member first")),
    row("members", "members of a group, learners included: every node is a member of the catalogue", Count(256), ("host/core/src/config.rs", "MEMBERS_MAX"), refused(Code::ChangeRefused, "remove a node first")),
    row("promotion-lag", "entries behind the leader at which a learner is promoted", Count(64), ("host/core/src/changes.rs", "PROMOTION_LAG"), Otherwise("it stays a learner")),
    row("barrier", "log between two snapshots of a group: entries; bytes (4 times the snapshot, between these, or as many as a larger snapshot has); both up to twice that while snapshots take long; fuel to replay; rebuilds of the machine", Words("8192; 4 to 64 MiB, or to 256 MiB; 20 × 10⁹; 4"), ("host/core/src/config.rs", "barrier_log_bytes_max"), Otherwise("the leader proposes a barrier")).key("raft.snapshot_entries"),
    row("barrier-form", "when a snapshot that nobody asked for is an image: bytes of the last saved one from which on it is, or memory of at most twice these; unless the memory is above four times these and this bound", Words("4 MiB; 64 MiB"), ("host/core/src/config.rs", "barrier_image_bytes"), Otherwise("the machine is saved and rebuilt")),
    row("log-memory", "entries of a group in memory once they are processed", Bytes(32 << 20), ("host/core/src/config.rs", "log_memory_bytes"), Otherwise("older ones are in the files only")),
    row("log-kept", "log kept behind a snapshot in any case", Bytes(8 << 20), ("host/core/src/config.rs", "log_kept_bytes"), Otherwise("a member that needs more is served from what is retained, or sent a snapshot")),
    row("log-retained", "log of a group kept on disk behind its snapshot for members that catch up", Bytes(1 << 30), ("host/server/src/config/sections.rs", "log_retained_bytes"), Otherwise("a member that needs more is sent a snapshot")).key("limits.log_retained_bytes"),
    row("catch-up-share", "percent of what is usual that is taken of clients at the least while a member is behind and does not come nearer", Words("25 %"), ("host/server/src/config/sections.rs", "catch_up_share_percent"), Otherwise("commands wait")).key("limits.catch_up_share_percent"),
    row("catch-up-time", "time for which a member may be behind without coming nearer", Milliseconds(30_000), ("host/server/src/config/sections.rs", "catch_up_timeout_ms"), Otherwise("it is left behind for a while")).key("limits.catch_up_timeout_ms"),
    row("catch-up-snapshots", "snapshots that arrive at a member that needs yet another", Count(3), ("host/core/src/catch_up.rs", "SNAPSHOTS_MAX"), Otherwise("it is left behind for a while")),
    row("log-read", "log read back at once", Bytes(4 << 20), ("host/core/src/read_back.rs", "READ_BYTES"), Otherwise("another read takes the rest")),
    row("log-reads", "reads of the log of a group on their way", Count(4), ("host/core/src/read_back.rs", "READS_MAX"), Otherwise("Raft asks again")),
    row("log-read-kept", "log read back that is kept", Bytes(8 << 20), ("host/core/src/read_back.rs", "KEPT_BYTES"), Otherwise("the oldest is read again if need be")),
    row("read-back-in-flight", "append messages in flight to a member that is served from the files", Count(16), ("host/core/src/read_back.rs", "IN_FLIGHT"), Otherwise("the rest waits for its answer")),
    row("sessions", "sessions of a group", Count(4096), ("host/core/src/sessions.rs", "SESSIONS_MAX"), Otherwise("one is forgotten, an unused one first; its commands are `session-expired`")),
    row("sessions-untried", "sessions of a group that never had a command and are not forgotten first", Count(1024), ("host/core/src/sessions.rs", "UNTRIED_MAX"), Otherwise("the oldest of them goes when there are too many sessions")),
    row("sessions-at-once", "sessions that a group opens at once", Count(1024), ("host/types/src/proposal.rs", "SESSIONS_AT_ONCE"), refused(Code::TooManySessions, "go on in one that is open, or try again")),
    row("sessions-rate", "sessions that a group opens in a second, after that", Count(128), ("host/types/src/proposal.rs", "SESSIONS_PER_SECOND"), refused(Code::TooManySessions, "go on in one that is open, or try again")),
    row("session-window", "commands of a session that are remembered", Count(2048), ("host/core/src/sessions.rs", "WINDOW_MAX"), Otherwise("the oldest is closed: `sequence-closed`")),
    row("session-commands", "the same, of all sessions of a group", Count(1 << 18), ("host/core/src/sessions.rs", "COMMANDS_MAX"), Otherwise("the session that has most closes its oldest: `sequence-closed`")),
    row("session-reply", "longest reply kept for a session", Bytes(64 << 10), ("host/core/src/sessions.rs", "KEPT_REPLY_BYTES_MAX"), Otherwise("a repeated command is told that it was applied: `answer-expired`")),
    row("session-bytes", "answers kept for all sessions of a group, each counted as its reply and 128 bytes", Bytes(32 << 20), ("host/core/src/sessions.rs", "KEPT_BYTES_MAX"), Otherwise("the session that keeps most loses its oldest: `answer-expired`")),
    row("member-data", "data of one member of a group", Bytes(64 << 10), ("host/core/src/state.rs", "MEMBER_DATA_BYTES_MAX"), TOO_LARGE),
    row("profile", "a machine's limits, as they are written down", Bytes(64 << 10), ("host/types/src/deployment.rs", "PROFILE_BYTES_MAX"), TOO_LARGE),
    row("catalogue-groups", "groups of a cluster", Count(65_536), ("host/server/src/catalog.rs", "GROUPS_MAX"), refused(Code::CatalogueFull, "remove groups that are not needed")),
    row("groups", "groups of a cluster, as a node lets them be created", Count(16_384), ("host/server/src/cluster/groups.rs", "check_new_groups"), refused(Code::OutOfBudget, "delete groups, or raise the key")).key("limits.groups"),
    row("groups-at-once", "groups that one request creates", Count(1024), ("host/types/src/admin.rs", "GROUPS_AT_ONCE"), refused(Code::InvalidRequest, "create them by several requests")),
    row("init-total", "bytes of the configurations of all groups' machines", Bytes(64 << 20), ("host/server/src/cluster/groups.rs", "check_new_groups"), refused(Code::OutOfBudget, "delete groups, or raise the key")).key("limits.init_total_bytes"),
    row("catalogue-bytes", "bytes of the catalogue, about", Bytes(256 << 20), ("host/server/src/cluster/groups.rs", "check_new_groups"), refused(Code::OutOfBudget, "delete groups, or raise the key")).key("limits.catalogue_bytes"),
    row("catalogue-components", "components of a cluster", Count(4096), ("host/server/src/catalog.rs", "COMPONENTS_MAX"), refused(Code::CatalogueFull, "`skep component collect`")),
    row("catalogue-nodes", "nodes of a cluster", Count(256), ("host/server/src/catalog.rs", "NODES_MAX"), refused(Code::CatalogueFull, "a cluster has no more")),
    row("catalogue-removed", "removed nodes that a cluster remembers", Count(1024), ("host/server/src/catalog.rs", "REMOVED_MAX"), Otherwise("the one with the lowest id is forgotten, and is told that it is not known")),
    row("node-labels", "labels of a node; bytes of each and of its value", Words("16; 64"), ("host/server/src/catalog/nodes.rs", "LABELS_MAX"), refused(Code::InvalidRequest, "say less")),
    row("placement-changes", "changes of members under way at once so that groups keep their number of replicas; leaders moved at once", Words("16; 4, from a node that goes 16"), ("host/server/src/cluster/placement.rs", "CHANGES_AT_ONCE"), Otherwise("the others wait for the next look")),
    row("invitations", "invitations of nodes that are open", Count(256), ("host/server/src/catalog/invitations.rs", "INVITATIONS_MAX"), refused(Code::CatalogueFull, "use some, or wait until they expire")),
    row("invitation-time", "seconds for which an invitation is good", Words("30 days; an hour if nobody says"), ("host/server/src/catalog/invitations.rs", "INVITATION_SECONDS_MAX"), refused(Code::InvalidRequest, "ask for less")),
    row("configured-nodes", "nodes that a cluster starts with", Count(64), ("host/server/src/config/check.rs", "NODE_LIMIT"), refused(Code::InvalidConfig, "list fewer, and have the others join")),
    row("init", "configuration of a group's machine", Bytes(64 << 10), ("host/server/src/catalog.rs", "INIT_MAX"), refused(Code::InvalidRequest, "send it as a command instead")),
    // The log and snapshots.
    row("log-segment", "one file of the log; zeros written ahead; spare files", Words("64 MiB; 1 MiB; 2"), ("host/log/src/log.rs", "LogOptions"), Otherwise("the next file begins")),
    row("log-record", "one record of the log", Bytes(256 << 20), ("host/log/src/frame.rs", "MAX_BODY"), Otherwise("it is not written; the replica halts")),
    row("log-round", "one round of the log's writer", Bytes(8 << 20), ("host/log/src/writer.rs", "ROUND_BYTES"), Otherwise("the next round takes the rest")),
    row("log-queue", "records that wait for the log", Bytes(64 << 20), ("host/log/src/writer.rs", "QUEUE_BYTES"), Otherwise("shards wait")),
    row("log-garbage", "dead log before collection copies; a group copied at once", Words("192 MiB; 256 KiB"), ("host/log/src/options.rs", "garbage_bytes"), Otherwise("groups are copied, or asked for a snapshot")),
    row("snapshot-state", "the host's section of a snapshot", Bytes(256 << 20), ("host/log/src/snapshot/file.rs", "MAX_STATE"), Otherwise("there is no snapshot")),
    row("snapshot-file", "a snapshot taken from a peer", Bytes(16 << 30), ("host/node/src/disk/store.rs", "SNAPSHOT_BYTES_MAX"), Otherwise("it is refused, and the sender says so")),
    row("peers-pinned", "stores remembered of peers", Count(4096), ("host/log/src/pins.rs", "MAX_PEERS"), Otherwise("the peer is refused")),
    row("lives-told", "starts that a store remembers and tells others of", Count(128), ("host/types/src/past.rs", "LIVES_TOLD"), Otherwise("the place in its log alone is compared")),
    // Shards and machines.
    row("shards", "shards of a node, which `[raft] shards` sets", Count(256), ("host/node/src/node_config.rs", "SHARDS_MAX"), refused(Code::InvalidConfig, "use fewer")),
    row("shard-round", "requests, and appends, of one round of a shard", Count(4096), ("host/node/src/shards/mailbox.rs", "ROUND_MAX"), Otherwise("the next round takes the rest")),
    row("shard-appends", "appends that wait for a shard", Bytes(64 << 20), ("host/node/src/shards/mailbox.rs", "NORMAL_BYTES_MAX"), Otherwise("more are dropped and counted; Raft sends them again")),
    row("shard-urgent", "urgent messages that wait for a shard", Bytes(256 << 20), ("host/node/src/shards/mailbox.rs", "HIGH_BYTES_MAX"), Otherwise("more are dropped and counted")),
    row("shard-request-bytes", "bytes of requests of a shard without an answer yet", Bytes(256 << 20), ("host/node/src/shards/mailbox.rs", "REQUEST_BYTES_MAX"), BUSY),
    row("shard-requests", "requests of a shard without an answer yet", Count(256 << 10), ("host/node/src/shards/mailbox.rs", "REQUESTS_MAX"), BUSY),
    row("machine-threads", "threads of machines", Count(512), ("host/node/src/pool.rs", "THREADS_MAX"), Otherwise("machines wait for a thread")),
    row("machine-stall", "all threads of machines stuck, before there is one more", Milliseconds(5), ("host/node/src/pool.rs", "STALL"), Otherwise("the pool grows")),
    row("machine-slice", "fuel of a guest's call before others may run", Count(1_000_000), ("host/drive/src/state_machine.rs", "SLICE"), Otherwise("the call goes on in the same turn or a later one")),
    row("machine-turn-cost", "fuel (or nanoseconds) of one machine or reader in a turn", Count(2_000_000), ("host/node/src/pool/run_queue.rs", "TURN_COST"), Otherwise("the turn ends with the slice, or the native call, that it is in")),
    row("barrier-results", "results that wait for a barrier's file", Bytes(64 << 20), ("host/node/src/machines/worker/results.rs", "HELD_BYTES_MAX"), Otherwise("the machine waits")),
    row("reader-queue", "queries that wait for one reader", Count(16_384), ("host/node/src/machines/queries.rs", "QUEUE_MAX"), BUSY),
    row("reader-idle", "ticks without a query that a reader is kept for", Count(600), ("host/node/src/machines/queries.rs", "IDLE_TICKS"), Otherwise("it is released, and begins anew from a snapshot")),
    row("reader-lag-bytes", "calls from before a barrier kept for a reader", Bytes(64 << 20), ("host/machine/src/wasm/run/journal.rs", "LAG_BYTES_MAX"), Otherwise("the reader begins anew from a snapshot")),
    row("reader-lag-fuel", "the same in fuel", Count(4_000_000_000), ("host/machine/src/wasm/run/journal.rs", "LAG_FUEL_MAX"), Otherwise("the reader begins anew from a snapshot")),
    row("checkpoint", "blocks of 64 KiB of a machine's memory that are copied, as it writes to them, so that it can go back to its newest checkpoint after a fault; a quarter of the memory, if that is more", Count(384), ("host/machine/src/wasm/run/checkpoint.rs", "CHECKPOINT_BLOCKS"), Otherwise("there is no checkpoint for a while, and a fault has the machine built from its last barrier")),
    row("checkpoints", "the same of all machines of a node", Words("an eighth of machines-memory, and of half of machines-mappings"), ("host/machine/src/wasm/engine/budget.rs", "COPIES_SHARE"), Otherwise("the same, for the machine that writes")),
    row("checkpoint-fuel", "fuel of a machine between two checkpoints, or a hundred times what the last one has cost, if that is more", Count(20_000_000), ("host/machine/src/wasm/run/checkpoint.rs", "CHECKPOINT_FUEL"), Otherwise("the next one is taken")),
    row("guest", "a guest: fuel, memory, tables, reply, snapshot, log lines", Words("see `wit/README.md`"), ("host/types/src/profile.rs", "Profile"), Otherwise("an outcome, or a failed save")),
    row("profile-ceilings", "what the profile of a group may ask for: one key for each setting", Words("`Profile::CEILING`"), ("host/types/src/profile.rs", "CEILING"), refused(Code::AboveCeiling, "ask for less, or raise the key")).key("limits.profile_command_fuel"),
    row("machines-memory", "linear memory of all machines of a node, passed by as many as start at once", Words("three quarters of what the system has"), ("host/machine/src/wasm/engine/budget.rs", "machines_memory_bytes"), refused(Code::OutOfBudget, "delete groups, or raise the key")).key("limits.machines_memory_bytes"),
    row("machines-addresses", "addresses of all machines of a node, likewise", Words("three quarters of what the system has"), ("host/machine/src/wasm/engine/budget.rs", "machines_address_bytes"), refused(Code::OutOfBudget, "delete groups, or raise the key")).key("limits.machines_address_bytes"),
    row("machines-mappings", "mappings of all machines of a node, likewise", Words("three quarters of what the system has"), ("host/machine/src/wasm/engine/budget.rs", "machines_mappings"), refused(Code::OutOfBudget, "delete groups, or raise the key")).key("limits.machines_mappings"),
    row("guest-stack", "a guest's counted stack, of all modules of a component and the components in it together", Bytes(2 << 20), ("host/machine/src/wasm/code/depth/cost.rs", "STACK_LIMIT"), Otherwise("the outcome `unreachable`")),
    row("guest-native-stack", "a guest's native stack", Bytes(8 << 20), ("host/machine/src/wasm/engine/layout.rs", "MAX_WASM_STACK"), Otherwise("a guard page ends the call")),
    row("guest-replies", "replies of one entry", Bytes(64 << 20), ("host/machine/src/wasm/run/call.rs", "MAX_ENTRY_REPLY_BYTES"), Otherwise("the outcome is a fault")),
    row("guest-handles", "handles alive in a guest", Count(1024), ("host/machine/src/wasm/code/started.rs", "MAX_HANDLES"), Otherwise("the outcome is a fault")),
    row("guest-random", "random bytes in one call", Bytes(16 << 20), ("host/machine/src/wasm/world/random.rs", "MAX_RANDOM_BYTES"), Otherwise("the outcome is a fault")),
    // Components.
    row("component", "bytes of a component", Bytes(32 << 20), ("host/server/src/config/sections.rs", "component_bytes"), TOO_LARGE).key("limits.component_bytes"),
    row("component-functions", "functions of a component", Count(65_536), ("host/machine/src/wasm/code/inspect.rs", "MAX_FUNCTIONS"), refused(Code::TooLarge, "build a smaller one")),
    row("component-memories", "linear memories of a component that is uploaded, all its instances together", Count(16), ("host/server/src/config/sections.rs", "component_memories"), refused(Code::TooLarge, "build it of fewer modules, or raise the key")).key("limits.component_memories"),
    row("component-targets", "targets of all `br_table`s of a component; of one function 65,536", Count(1 << 18), ("host/machine/src/wasm/code/complexity.rs", "MAX_TARGETS"), refused(Code::CompileTooCostly, "split what jumps so much")),
    row("component-merges", "blocks of a function times its locals", Count(1 << 22), ("host/machine/src/wasm/code/complexity.rs", "MAX_MERGES"), refused(Code::CompileTooCostly, "split the function")),
    row("compile-time", "one compilation, of which there is one at a time on a node, in a process of its own", Milliseconds(120_000), ("host/server/src/config/sections.rs", "compile_timeout_ms"), refused(Code::CompileLate, "ask again later, or raise the key")).key("limits.compile_timeout_ms"),
    row("compile-memory", "memory of that process beside its program: an eighth, and 64 times the component, up to the whole", Bytes(1 << 30), ("host/server/src/config/sections.rs", "compile_memory_bytes"), refused(Code::CompileTooCostly, "make the largest function smaller, or raise the key")).key("limits.compile_memory_bytes"),
    row("components-total", "bytes of all components of a cluster, and of those on a node", Bytes(4 << 30), ("host/server/src/cluster/groups.rs", "check_new_component"), refused(Code::OutOfBudget, "`skep component collect`, or raise the key")).key("limits.components_total_bytes"),
    row("uploads", "uploads under way", Count(16), ("host/server/src/components.rs", "UPLOADS_MAX"), BUSY),
    row("upload-idle", "an upload without progress (10 s where others wait for its place)", Milliseconds(60_000), ("host/server/src/components.rs", "ABANDONED"), Otherwise("it is given up")),
    row("upload-bytes", "bytes of uploads under way on a node", Bytes(256 << 20), ("host/server/src/components.rs", "uploads_bytes"), refused(Code::OutOfBudget, "wait until others have ended, or raise the key")).key("limits.uploads_bytes"),
    row("artefact", "a compiled artefact read back", Bytes(512 << 20), ("host/machine/src/wasm/code/cache.rs", "MAX_ARTEFACT_BYTES"), Otherwise("it is compiled anew")),
    row("dry-run-entries", "entries kept for a dry run, of a group on a node", Count(128), ("host/node/src/machines/worker/recent.rs", "ENTRIES_MAX"), Otherwise("the dry run applies those from the start")),
    row("dry-run-bytes", "their bytes", Bytes(256 << 10), ("host/node/src/machines/worker/recent.rs", "BYTES_MAX"), Otherwise("the dry run applies those from the start")),
    row("rehearsal-steps", "steps of `skep test`", Count(10_000), ("host/rehearsal/src/history.rs", "MAX_HISTORY"), Otherwise("the report says so")),
    row("rehearsal-calls", "calls of one of its checks, about", Count(200_000), ("host/rehearsal/src/checks.rs", "CALLS_MAX"), Otherwise("the report says so")),
    // Peers.
    row("snapshots-received", "snapshots received at once", Count(4), ("host/node/src/shards/router.rs", "RECEIVING_MAX"), Otherwise("the sender tries again")),
    row("batch", "a batch between nodes", Bytes(8 << 20), ("host/node/src/shards/outbox.rs", "BATCH_BYTES_MAX"), Otherwise("the next batch takes the rest")),
    row("peer-frame", "a frame between nodes (aimed at 16 MiB)", Bytes(64 << 20), ("host/wire/src/lib.rs", "MAX_FRAME"), Otherwise("the connection ends")),
    row("first-frame", "the first frame of a connection", Bytes(4 << 10), ("host/wire/src/lib.rs", "MAX_HELLO"), Otherwise("the connection ends")),
    row("lane-queues", "bytes queued to one node: high; normal", Words("8; 64 MiB"), ("host/node/src/transport/tcp.rs", "TcpLimits"), Otherwise("more are dropped, counted and reported")),
    row("snapshot-rate", "bytes of snapshots sent in a second", Bytes(100 << 20), ("host/node/src/transport/tcp.rs", "snapshot_rate"), Otherwise("they wait")),
    row("snapshots-sent", "snapshots sent at once", Count(4), ("host/node/src/transport/tcp.rs", "snapshots_at_once"), Otherwise("others wait")),
    row("snapshots-waiting", "snapshots that are sent or wait for it", Count(64), ("host/node/src/transport/tcp.rs", "low_queue"), Otherwise("more are reported as failed")),
    row("peer-connections", "connections of other nodes", Words("8 for each node: for those of the configuration and 16 at the least; where descriptors allow it, for 256"), ("host/server/src/descriptors.rs", "EACH_PEER"), Otherwise("more are refused and counted")),
    row("peer-introductions", "connections to the port for nodes that have not said who they are", Count(64), ("host/node/src/transport/accept.rs", "INTRODUCTIONS"), Otherwise("the oldest is closed")),
    row("peer-frame-time", "a frame between nodes that was begun and does not go on", Milliseconds(30_000), ("host/node/src/transport/connection.rs", "FRAME_TIMEOUT"), Otherwise("the connection ends")),
    row("peer-requests", "requests of one node in flight, on behalf of its clients", Count(1024), ("host/node/src/transport/requests.rs", "IN_FLIGHT"), Otherwise("nothing more is read until some are answered")),
    row("peer-request-bytes", "their bytes", Bytes(32 << 20), ("host/node/src/transport/requests.rs", "IN_FLIGHT_BYTES"), Otherwise("nothing more is read until some are answered")),
    row("peer-silence", "time in which a node that owes answers says nothing", Milliseconds(1500), ("host/client/src/link.rs", "SILENT_AFTER"), Otherwise("others are asked first")),
    row("peer-inquiry", "between two questions for the catalogue because of nodes that are not known", Milliseconds(1000), ("host/server/src/cluster/roster.rs", "INQUIRY_PAUSE"), Otherwise("the last answer holds")),
    // Connections.
    row("descriptors", "files and sockets that a process must be allowed to have open, in a cluster of up to 16 nodes; 8 more for each further one", Count(512), ("host/server/src/descriptors.rs", "FLOOR"), refused(Code::TooFewDescriptors, "`ulimit -n 4096`, or LimitNOFILE= of the unit")),
    row("own-descriptors", "those that connections never get: for the log, snapshots and components", Words("192, or a quarter of all"), ("host/server/src/descriptors.rs", "OWN"), Otherwise("a node takes fewer connections than its configuration says, and logs it")),
    row("http-connections", "HTTP connections of a node", Count(1024), ("host/server/src/config/sections.rs", "connections"), refused(Code::Busy, "try again: who asks nothing makes room")).key("http.connections"),
    row("http-per-address", "of them from one address of another machine (a /64 of IPv6 is one)", Count(128), ("host/server/src/config/sections.rs", "per_address"), refused(Code::Busy, "use the connections that are open")).key("http.per_address"),
    row("http-head", "bytes of the head of a request", Bytes(64 << 10), ("host/server/src/api/server.rs", "HEAD_BYTES"), Otherwise("431, and the connection ends")),
    row("http-head-time", "the head of a request", Milliseconds(10_000), ("host/server/src/config/sections.rs", "header_ms"), Otherwise("the connection ends")).key("http.header_ms"),
    row("http-body-time", "the body of a request", Milliseconds(60_000), ("host/server/src/config/sections.rs", "body_ms"), refused(Code::BodyLate, "send it faster, or raise the key")).key("http.body_ms"),
    row("http-idle", "an HTTP connection without a request", Milliseconds(120_000), ("host/server/src/config/sections.rs", "idle_ms"), Otherwise("the connection ends")).key("http.idle_ms"),
    row("http-bodies", "bodies of a node's requests that are read, or whose requests are not answered yet, if they are longer than 64 KiB", Bytes(256 << 20), ("host/server/src/api/doors.rs", "BODIES_BYTES"), BUSY),
    row("http-components", "components that a node sends", Bytes(128 << 20), ("host/server/src/api/doors.rs", "COMPONENTS_BYTES"), BUSY),
    row("client-per-address", "connections of the client protocol from one address of another machine (a /64 of IPv6 is one)", Count(256), ("host/server/src/config/sections.rs", "client_per_address"), refused(Code::Busy, "use the connections that are open")).key("limits.client_per_address"),
    row("client-idle", "a client connection without a request in flight", Milliseconds(600_000), ("host/server/src/config/sections.rs", "client_idle_ms"), Otherwise("the connection ends, and is dialled again")).key("limits.client_idle_ms"),
    row("client-frame-time", "a frame of a client, once it has begun", Milliseconds(30_000), ("host/server/src/config/sections.rs", "frame_ms"), Otherwise("the connection ends")).key("limits.frame_ms"),
    row("client-half-frames", "frames of clients that have not come whole, of a node", Bytes(256 << 20), ("host/server/src/api/doors.rs", "CLIENT_FRAMES_BYTES"), Otherwise("the connection that wants more ends")),
    // Clients.
    row("client-connections", "connections of the client protocol", Count(1024), ("host/server/src/config/sections.rs", "client_connections"), refused(Code::Busy, "ask another node")).key("limits.client_connections"),
    row("client-requests", "requests in flight on one client connection", Count(1024), ("host/server/src/config/sections.rs", "requests_per_connection"), Otherwise("nothing more is read until some are answered")).key("limits.requests_per_connection"),
    row("client-bytes", "their bytes", Bytes(32 << 20), ("host/server/src/api/client_port.rs", "IN_FLIGHT_BYTES"), Otherwise("nothing more is read until some are answered")),
    row("client-frame", "a frame of a client", Bytes(16 << 20), ("host/wire/src/lib.rs", "MAX_CLIENT_FRAME"), Otherwise("the connection ends; a larger answer becomes `too-large`")),
    row("list", "groups in one answer; `?after=ID` tells the next", Count(1024), ("host/types/src/admin.rs", "LIST_MAX"), Otherwise("the client asks for the next page")),
    row("admin-body", "a JSON body of administration", Bytes(1 << 20), ("host/server/src/api/http.rs", "ADMIN_BYTES_MAX"), TOO_LARGE),
    row("crate-in-flight", "requests in flight of one `skep-client` (at most 16,384)", Bytes(256 << 20), ("host/client/src/client.rs", "MAX_IN_FLIGHT"), Otherwise("more wait in the client")),
    row("crate-session", "requests in flight of one of its sessions", Count(1024), ("host/client/src/session.rs", "WINDOW"), Otherwise("more wait in the client")),
    // The disk.
    row("disk-reserve", "bytes of the disk that uploads, new groups, their snapshots and kept machine code leave free; commands of clients leave a quarter", Bytes(256 << 20), ("host/node/src/disk/room.rs", "reserve"), refused(Code::OutOfBudget, "delete groups or components, or make room")).key("limits.disk_reserve_bytes"),
    row("disk-file", "a file that a node gives up when it starts on a full disk", Bytes(32 << 20), ("host/node/src/disk/room.rs", "FILE_BYTES"), Otherwise("it starts, and can be told to delete")),
    // The process.
    row("log-lines", "log lines that wait to be written", Bytes(4 << 20), ("host/server/src/log_lines.rs", "QUEUE_BYTES"), Otherwise("more are dropped and counted")),
    row("log-line", "one log line", Bytes(64 << 10), ("host/server/src/log_lines.rs", "LINE_BYTES"), Otherwise("the rest of it is cut off")),
    row("allocator", "what the allocator keeps at the end of an arena, of which there is one for each processor (glibc)", Bytes(2 << 20), ("host/cli/src/allocator.rs", "KEPT"), Otherwise("it is given back")),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use crate::config::{HttpSection, LimitsSection, RaftSection};

    use super::*;

    fn top() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("the crate lies in the repository")
            .to_owned()
    }

    #[test]
    fn each_budget_is_where_it_says_and_as_large() {
        let mut names = BTreeSet::new();
        for budget in BUDGETS {
            let name = budget.name;
            assert!(names.insert(name), "`{name}` stands twice in the table");
            let (file, symbol) = budget.at;
            let text = std::fs::read_to_string(top().join(file))
                .unwrap_or_else(|error| panic!("`{name}` is checked in {file}: {error}"));
            assert!(text.contains(symbol), "`{name}`: no `{symbol}` in {file}");
            let held = match budget.most {
                Bytes(value) | Count(value) | Milliseconds(value) => value,
                Words(_) => continue,
            };
            match constant(&text, symbol) {
                Some(constant) => assert_eq!(constant, held, "`{name}`: `{symbol}` in {file}"),
                None => assert!(budget.key.is_some(), "`{name}`: nothing to compare it with"),
            }
        }
    }

    #[test]
    fn each_key_has_the_default_that_the_table_shows() {
        let sections = toml::Table::from_iter([
            ("http".to_owned(), section(&HttpSection::default())),
            ("limits".to_owned(), section(&LimitsSection::default())),
            ("raft".to_owned(), section(&RaftSection::default())),
        ]);
        for budget in BUDGETS {
            let Some((section, key)) = budget.key.and_then(|key| key.split_once('.')) else {
                continue;
            };
            let value = sections
                .get(section)
                .and_then(|section| section.get(key))
                .unwrap_or_else(|| panic!("`{}`: there is no key {section}.{key}", budget.name));
            if let Bytes(held) | Count(held) | Milliseconds(held) = budget.most {
                assert_eq!(value.as_integer(), Some(held as i64), "{}", budget.name);
            }
        }
    }

    fn section(value: &impl serde::Serialize) -> toml::Value {
        toml::Value::try_from(value).expect("a section is a table")
    }

    /// The value of `const SYMBOL: … = …;`, or of the first field `SYMBOL: …,` that has one.
    fn constant(text: &str, symbol: &str) -> Option<u64> {
        if let Some((_, rest)) = text.split_once(&format!("const {symbol}:")) {
            let (_, rest) = rest.split_once('=')?;
            return value(rest.split_once(';')?.0);
        }
        let field = format!(" {symbol}: ");
        text.split(&field)
            .skip(1)
            .find_map(|rest| value(rest.split_once(',')?.0))
    }

    /// A number, a shift of one, or a duration of one.
    fn value(text: &str) -> Option<u64> {
        let value = text.trim().replace('_', "");
        let value = match value.split_once("Duration::fromsecs(") {
            Some((_, seconds)) => {
                return Some(number(seconds.trim_end_matches(')'))? * 1000);
            }
            None => value.replace("Duration::frommillis(", "").replace(')', ""),
        };
        match value.split_once("<<") {
            Some((one, shift)) => Some(number(one)? << number(shift)?),
            None => number(&value),
        }
    }

    fn number(text: &str) -> Option<u64> {
        text.trim().parse().ok()
    }

    #[test]
    fn amounts_are_told_as_people_do() {
        for (most, text) in [
            (Bytes(16 << 30), "16 GiB"),
            (Bytes(64 << 10), "64 KiB"),
            (Bytes(1000), "1000 B"),
            (Count(1024), "1024"),
            (Count(65_536), "65,536"),
            (Count(4_000_000_000), "4,000,000,000"),
            (Milliseconds(120_000), "120 s"),
            (Milliseconds(5), "5 ms"),
            (Words("2 or 3"), "2 or 3"),
        ] {
            assert_eq!(most.to_string(), text);
        }
    }

    #[test]
    fn constants_are_read_from_source() {
        let text = "const A: u64 = 16 << 20;\npub const B: usize = 65_536;\nconst C: Duration = Duration::from_millis(5);\nconst D: Duration = Duration::from_secs(2);\nstruct S {\n    field: usize,\n}\nS {\n    field: 1 << 4,\n}";
        let read = |symbol| constant(text, symbol);
        assert_eq!(
            [read("A"), read("B"), read("C"), read("D"), read("E")],
            [Some(16 << 20), Some(65_536), Some(5), Some(2000), None]
        );
        assert_eq!([read("field"), read("eld")], [Some(16), None]);
    }
}
