//! What each hostile guest must come to: one row for each file of `tests/guests`.

use skep_client::GuestFault;
use skep_client::GuestFault::{
    Arithmetic, BadCall, Exit, ForbiddenImport, Limit, Malformed, MemoryOutOfBounds, OutOfFuel,
    OutOfMemory, ReplyTooLarge, Trap, Unreachable,
};
use skep_machine::wasm::Profile;

use End::{Refused, Runs, Stillborn, Unstartable};
use Expect::{Fault, Rejected, Reply, Some};
use Step::{Becomes, Command, Gains, Leader, Members, NoSnapshot, Query, Snapshot, Together};

/// One guest and its end.
pub struct Attack {
    /// The file.
    pub guest: &'static str,
    /// What it comes to.
    pub end: End,
}

/// What a guest comes to.
pub enum End {
    /// It never becomes a component of the cluster: the code of the answer to its upload, and words from it.
    Refused(&'static str, &'static str),
    /// It says what it is, and cannot be started for a group: words from what the node says.
    Unstartable(&'static str),
    /// Its `init` fails, so that its group is faulted from the beginning: words from what the node says.
    Stillborn(&'static str),
    /// Its group works, whatever it does.
    Runs(&'static [Step]),
}

/// Something that is done to a group. Honest commands surround each.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A command alone.
    Command(&'static str, Expect),
    /// The command between honest ones in one entry, or as near to that as a client comes.
    Together(&'static str, Expect),
    /// A query.
    Query(&'static str, Expect),
    /// A barrier at which every replica takes its snapshot.
    Snapshot,
    /// A barrier at which none can: the group says that it is degraded.
    NoSnapshot,
    /// The last step made the counter so much higher.
    Gains(u64),
    /// The last step made the counter this.
    Becomes(u64),
    /// A change of members, answered so.
    Members(Expect),
    /// Another leader.
    Leader,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// This text.
    Reply(&'static str),
    /// Some reply, the same everywhere.
    Some,
    /// A rejection with this code.
    Rejected(u32),
    /// This fault.
    Fault(GuestFault),
}

/// Small enough for every attack to reach its limit within milliseconds, large enough for an honest guest in Rust.
pub fn profile() -> Profile {
    Profile {
        command_fuel: 16_000_000,
        query_fuel: 10_000_000,
        snapshot_fuel: 10_000_000,
        memory_bytes: 12 << 20,
        reply_bytes: 64 << 10,
        snapshot_bytes: 1 << 20,
        ..Profile::default()
    }
}

const fn attack(guest: &'static str, end: End) -> Attack {
    Attack { guest, end }
}

/// An attack by the command `x`, which fails so: alone, and amid honest commands.
macro_rules! on_x {
    ($guest:literal, $fault:expr) => {
        attack(
            $guest,
            Runs(&[
                Command("x", Fault($fault)),
                Together("x", Fault($fault)),
                Snapshot,
            ]),
        )
    };
}

const INVALID: &str = "invalid-component";

/// Every guest, in the order of their names.
pub const ATTACKS: &[Attack] = &[
    on_x!("apply_hoards", OutOfMemory),
    on_x!("apply_loops", OutOfFuel),
    on_x!("apply_recurses", Unreachable),
    on_x!("apply_traps", Unreachable),
    attack(
        "batch_endless",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("nonsense", Rejected(400)),
        ]),
    ),
    attack(
        "batch_hoards",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("ping", Reply("pong")),
        ]),
    ),
    attack(
        "batch_loops",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("ping", Reply("pong")),
        ]),
    ),
    attack(
        "batch_recurses",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("ping", Reply("pong")),
        ]),
    ),
    attack(
        "batch_too_few",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("nonsense", Rejected(400)),
        ]),
    ),
    attack(
        "batch_too_many",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("nonsense", Rejected(400)),
        ]),
    ),
    attack(
        "batch_traps",
        Runs(&[
            Together("ping", Reply("pong")),
            Snapshot,
            Together("ping", Reply("pong")),
        ]),
    ),
    on_x!("blocks_on_nothing", Malformed),
    on_x!("calls_another_type", BadCall),
    attack(
        "calls_its_child",
        Runs(&[
            Command("x", Fault(Trap)),
            Together("x", Fault(Trap)),
            Query("x", Fault(Trap)),
            Snapshot,
            Command("x", Fault(Trap)),
        ]),
    ),
    on_x!("calls_null", BadCall),
    on_x!("calls_past_table", BadCall),
    attack(
        "clockwork",
        Runs(&[
            Command("tick", Some),
            Command("sleep 3600", Reply("awake")),
            Query("tick", Some),
            Command("tick", Some),
            Snapshot,
            Command("tick", Some),
        ]),
    ),
    attack(
        "conf_change_hoards",
        Runs(&[Members(Fault(OutOfMemory)), Snapshot]),
    ),
    attack(
        "conf_change_loops",
        Runs(&[Members(Fault(OutOfFuel)), Snapshot]),
    ),
    attack(
        "conf_change_recurses",
        Runs(&[Members(Fault(Unreachable)), Snapshot]),
    ),
    attack(
        "conf_change_traps",
        Runs(&[Members(Fault(Unreachable)), Snapshot]),
    ),
    on_x!("copies_memory", OutOfFuel),
    attack("custom_section", Refused("too-large", "at most")),
    attack("describe_backwards", Refused(INVALID, "schema")),
    attack("describe_escapes", Refused(INVALID, "control characters")),
    attack("describe_giant", Refused(INVALID, "reply-too-large")),
    attack("describe_hoards", Refused(INVALID, "out-of-memory")),
    attack("describe_lies", Runs(&[Snapshot, Snapshot])),
    attack("describe_loops", Refused(INVALID, "out-of-fuel")),
    attack("describe_not_text", Refused(INVALID, "malformed")),
    attack("describe_recurses", Refused(INVALID, "unreachable")),
    attack("describe_traps", Refused(INVALID, "unreachable")),
    attack(
        "dials",
        Runs(&[
            Command("dial", Reply("permission denied")),
            Command("listen", Reply("permission denied")),
            Command("send", Reply("permission denied")),
            Command("resolve", Reply("permission denied")),
            Snapshot,
        ]),
    ),
    on_x!("divides", Arithmetic),
    attack(
        "entropy_endless",
        Runs(&[Command("x", Fault(OutOfFuel)), Snapshot]),
    ),
    on_x!("entropy_flood", Limit),
    attack(
        "exits",
        Runs(&[
            Command("exit", Fault(Exit)),
            Together("exit-well", Fault(Exit)),
            Command("abort", Fault(Unreachable)),
            Query("exit", Fault(Exit)),
            Snapshot,
        ]),
    ),
    on_x!("fills_memory", OutOfFuel),
    attack("function_bomb", Refused("too-large", "functions")),
    attack(
        "function_giant",
        Runs(&[Command("x", Rejected(400)), Snapshot]),
    ),
    attack(
        "giant_reply",
        Runs(&[
            Command("giant", Fault(OutOfMemory)),
            Together("giant 4000000", Fault(ReplyTooLarge)),
            Command("giant-rejection 4000000", Fault(ReplyTooLarge)),
            Query("giant 4000000", Fault(ReplyTooLarge)),
            Snapshot,
        ]),
    ),
    on_x!("grows_table", Unreachable),
    attack(
        "grows_table_again",
        Runs(&[
            Command("x", Some),
            Command("x", Some),
            Snapshot,
            Command("x", Some),
        ]),
    ),
    on_x!("handles_endless", Limit),
    attack(
        "hash_order",
        Runs(&[
            Command("order", Some),
            Command("order", Some),
            Query("order", Some),
            Command("order", Some),
            Snapshot,
            Command("order", Some),
            Snapshot,
            Command("order", Some),
        ]),
    ),
    attack(
        "hoards",
        Runs(&[
            Command("hoard", Fault(OutOfMemory)),
            Command("hoard 4", Reply("4")),
            Together("hoard 100", Fault(OutOfMemory)),
            Snapshot,
            Command("hoard 4", Reply("8")),
        ]),
    ),
    attack("imports_function", Refused("foreign-import", "run")),
    attack("imports_http", Refused("foreign-import", "wasi:http")),
    attack(
        "imports_keyvalue",
        Refused("foreign-import", "wasi:keyvalue"),
    ),
    attack("imports_other_type", Refused(INVALID, "get-random-u64")),
    attack("imports_other_wasi", Refused("foreign-import", "WASI 0.2")),
    attack("imports_unknown", Refused("foreign-import", "acme:shop")),
    attack(
        "imports_unknown_function",
        Refused(INVALID, "get-real-random"),
    ),
    attack("init_hoards", Stillborn("OutOfMemory")),
    attack("init_loops", Stillborn("OutOfFuel")),
    attack("init_recurses", Stillborn("Unreachable")),
    attack("init_traps", Stillborn("Unreachable")),
    attack(
        "instances_of_instances",
        Refused("too-large", "more than 100000 instances"),
    ),
    attack(
        "log_endless",
        Runs(&[Command("x", Fault(OutOfFuel)), Snapshot]),
    ),
    on_x!("log_giant", Limit),
    on_x!("log_no_such_level", Malformed),
    on_x!("log_not_text", Malformed),
    attack(
        "loops",
        Runs(&[
            Command("loop", Fault(OutOfFuel)),
            Together("loop", Fault(OutOfFuel)),
            Query("loop", Fault(OutOfFuel)),
            Snapshot,
        ]),
    ),
    attack("memories_bomb", Refused(INVALID, "memory")),
    on_x!("memories_reserve", MemoryOutOfBounds),
    attack("memory_bomb", Refused(INVALID, "memory")),
    attack(
        "nan_floods",
        Runs(&[
            Command("flood", Some),
            Command("flood", Some),
            Snapshot,
            Command("flood", Some),
        ]),
    ),
    attack(
        "nested_components",
        Refused("too-large", "more than 16 deep"),
    ),
    attack("nested_instances", Refused(INVALID, "instances")),
    attack(
        "noisy",
        Runs(&[
            Command("noise 100", Reply("quiet")),
            Command("noise-line 100000", Reply("quiet")),
            Snapshot,
        ]),
    ),
    attack(
        "opens_files",
        Runs(&[
            Command("read", Reply("entity not found")),
            Command("write", Reply("entity not found")),
            Command("list", Reply("entity not found")),
            Snapshot,
        ]),
    ),
    on_x!("overflows", Arithmetic),
    attack(
        "post_return_loops",
        Runs(&[
            Command("x", Fault(OutOfFuel)),
            Together("x", Reply("pong")),
            Command("x", Fault(OutOfFuel)),
            Snapshot,
        ]),
    ),
    attack(
        "post_return_traps",
        Runs(&[
            Command("x", Fault(Unreachable)),
            Together("x", Reply("pong")),
            Command("x", Fault(Unreachable)),
            Snapshot,
        ]),
    ),
    attack(
        "probes_memory",
        Runs(&[
            Command("leak", Reply("leaked")),
            Command("probe", Some),
            Query("probe", Some),
            Command("leak", Reply("leaked")),
            Snapshot,
            Command("probe", Some),
        ]),
    ),
    attack(
        "query_hoards",
        Runs(&[
            Query("x", Fault(OutOfMemory)),
            Query("ping", Reply("pong")),
            Snapshot,
            Query("x", Fault(OutOfMemory)),
        ]),
    ),
    attack(
        "query_loops",
        Runs(&[
            Query("x", Fault(OutOfFuel)),
            Query("ping", Reply("pong")),
            Snapshot,
            Query("x", Fault(OutOfFuel)),
        ]),
    ),
    attack(
        "query_malformed",
        Runs(&[Query("x", Fault(Malformed)), Snapshot]),
    ),
    attack(
        "query_recurses",
        Runs(&[
            Query("x", Fault(Unreachable)),
            Query("ping", Reply("pong")),
            Snapshot,
            Query("x", Fault(Unreachable)),
        ]),
    ),
    attack(
        "query_traps",
        Runs(&[
            Query("x", Fault(Unreachable)),
            Query("ping", Reply("pong")),
            Snapshot,
            Query("x", Fault(Unreachable)),
        ]),
    ),
    attack(
        "query_writes",
        Runs(&[
            Query("x", Reply("pong")),
            Query("x", Reply("pong")),
            Snapshot,
        ]),
    ),
    on_x!("reads_past_memory", MemoryOutOfBounds),
    attack(
        "realloc_calls_the_host",
        Runs(&[
            Command("x and more", Rejected(400)),
            Command("x and much more", Fault(ForbiddenImport)),
            Together("x and much more", Fault(ForbiddenImport)),
            Snapshot,
        ]),
    ),
    attack(
        "realloc_lies",
        Runs(&[
            Command("x and more", Rejected(400)),
            Command("x and much more", Fault(Malformed)),
            Together("x and much more", Fault(Malformed)),
            Snapshot,
        ]),
    ),
    attack(
        "realloc_loops",
        Runs(&[
            Command("x and more", Rejected(400)),
            Command("x and much more", Fault(OutOfFuel)),
            Together("x and much more", Fault(OutOfFuel)),
            Snapshot,
        ]),
    ),
    attack(
        "realloc_recurses",
        Runs(&[
            Command("x and more", Rejected(400)),
            Command("x and much more", Fault(Unreachable)),
            Together("x and much more", Fault(Unreachable)),
            Snapshot,
        ]),
    ),
    attack(
        "realloc_traps",
        Runs(&[
            Command("x and more", Rejected(400)),
            Command("x and much more", Fault(Unreachable)),
            Together("x and much more", Fault(Unreachable)),
            Snapshot,
        ]),
    ),
    attack(
        "recurses",
        Runs(&[
            Command("recurse", Fault(Unreachable)),
            Together("recurse-frames", Fault(MemoryOutOfBounds)),
            Query("recurse", Fault(Unreachable)),
            Query("recurse-frames", Fault(MemoryOutOfBounds)),
            Snapshot,
        ]),
    ),
    attack(
        "recurses_across_modules",
        Runs(&[
            Command("x", Fault(Unreachable)),
            Together("x", Fault(Unreachable)),
            Query("x", Fault(Unreachable)),
            Snapshot,
            Command("x", Fault(Unreachable)),
        ]),
    ),
    attack(
        "rejects_after_writing",
        Runs(&[Command("x", Rejected(7)), Gains(1000), Snapshot]),
    ),
    on_x!("reply_no_such_case", Malformed),
    on_x!("reply_not_text", Malformed),
    on_x!("reply_nowhere", Malformed),
    on_x!("reply_of_the_whole_memory", ReplyTooLarge),
    on_x!("reply_past_memory", Malformed),
    on_x!("reply_unaligned", Malformed),
    attack("restore_hoards", Runs(&[NoSnapshot, NoSnapshot])),
    attack("restore_keeps_its_source", Runs(&[NoSnapshot, NoSnapshot])),
    attack(
        "restore_lies",
        Runs(&[Snapshot, Gains(1000), Snapshot, Gains(1000)]),
    ),
    attack("restore_loops", Runs(&[NoSnapshot, NoSnapshot])),
    attack("restore_malformed", Runs(&[NoSnapshot, NoSnapshot])),
    attack("restore_reads_all", Runs(&[Snapshot, Snapshot])),
    attack("restore_recurses", Runs(&[NoSnapshot, NoSnapshot])),
    attack("restore_refuses", Runs(&[NoSnapshot, NoSnapshot])),
    attack("restore_traps", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_bytewise", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_changes_the_state", Runs(&[Snapshot, Snapshot])),
    attack(
        "save_differs",
        Runs(&[Snapshot, Snapshot, Command("ping", Reply("pong")), Snapshot]),
    ),
    attack("save_drops_twice", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_empty_chunks", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_endless", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_enters_itself", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_giant_chunk", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_hoards", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_keeps_its_sink", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_loops", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_malformed", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_recurses", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_refuses", Runs(&[NoSnapshot, NoSnapshot])),
    attack("save_traps", Runs(&[NoSnapshot, NoSnapshot])),
    attack(
        "save_writes_nothing",
        Runs(&[
            Command("ping", Reply("pong")),
            Snapshot,
            Becomes(0),
            Snapshot,
            Becomes(0),
        ]),
    ),
    on_x!("sink_outside_save", Malformed),
    attack("start_hoards", Refused(INVALID, "out-of-memory")),
    attack("start_loops", Refused(INVALID, "out-of-fuel")),
    attack("start_loops_in_its_group", Unstartable("out-of-fuel")),
    attack("start_recurses", Refused(INVALID, "unreachable")),
    attack("start_traps", Refused(INVALID, "unreachable")),
    attack("status_change_hoards", Runs(&[Leader, Snapshot, Leader])),
    attack("status_change_loops", Runs(&[Leader, Snapshot, Leader])),
    attack("status_change_recurses", Runs(&[Leader, Snapshot, Leader])),
    attack("status_change_traps", Runs(&[Leader, Snapshot, Leader])),
    attack("table_bomb", Refused(INVALID, "table")),
    on_x!("tail_calls", OutOfFuel),
    attack(
        "traps",
        Runs(&[
            Command("trap", Fault(Unreachable)),
            Together("panic", Fault(Unreachable)),
            Command("oob", Fault(MemoryOutOfBounds)),
            Query("trap", Fault(Unreachable)),
            Command("trap-save", Reply("armed")),
            NoSnapshot,
            Command("trap-restore", Reply("armed")),
            NoSnapshot,
            Command("trap-status", Reply("armed")),
            Leader,
            Command("trap-conf", Reply("armed")),
            Members(Fault(Unreachable)),
            Command("disarm", Reply("disarmed")),
            Snapshot,
        ]),
    ),
    attack(
        "traps_describe",
        Refused(INVALID, "could not say what it is"),
    ),
    attack("truncated", Refused("component-truncated", "in the middle")),
    on_x!("waits_for_ever", ForbiddenImport),
    on_x!("writes_past_memory", MemoryOutOfBounds),
];
