//! Every way in which Skep says no: one stable code each, and what follows from it.
//!
//! An error has a code, and whoever decides something by an error (a client that tries again, an HTTP status, an exit code)
//! decides by that. The name of a code is what stands on the wire, in HTTP answers, in logs and on terminals; the number never
//! changes and is never given to another. The reference in `docs/reference/failures.md` is printed from this file.

use std::fmt;

use serde::Serialize;

/// How `skep` ends after a request that was answered with a code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// It failed, and nothing was changed.
    Failed = 1,
    /// Not now: the same may succeed later.
    Unavailable = 3,
    /// Nobody knows whether it was done, or it was and there is no answer.
    Unknown = 4,
    /// The machine answered, with a no.
    Rejected = 5,
}

/// What is certain about a request that was answered with a code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It was not done, and would not be if it were sent again.
    Refused,
    /// It was not done, and may be if it is sent again.
    Retry,
    /// It may have been done, or may yet be. Sent again under the same request id, it is not done twice.
    Unknown,
}

use Exit::{Failed, Unavailable};
use Fate::{Refused, Retry, Unknown};

/// What follows from one code.
struct Row {
    name: &'static str,
    status: u16,
    exit: Exit,
    fate: Fate,
    sentence: &'static str,
}

macro_rules! codes {
    ($($code:ident = $number:literal, $name:literal, $status:literal, $exit:expr, $fate:expr, $sentence:literal;)*) => {
        /// A stable code of an error.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!("`", $name, "`: ", $sentence)] $code = $number,)*
        }

        impl Code {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            fn row(self) -> Row {
                match self {
                    $(Self::$code => Row { name: $name, status: $status, exit: $exit, fate: $fate, sentence: $sentence },)*
                }
            }

            /// The code of a name.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$code),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    // What a group says of a request.
    NoLeader = 1, "no-leader", 503, Unavailable, Retry, "the group has no leader now";
    NotLeader = 2, "not-leader", 503, Unavailable, Retry, "this replica does not lead the group; the leader is named where it is known";
    Busy = 3, "busy", 429, Unavailable, Retry, "too much is in flight here; slow down";
    TooLarge = 4, "too-large", 413, Failed, Refused, "the request, the component or the answer is above a limit";
    Superseded = 5, "superseded", 503, Unavailable, Retry, "an entry of another leader took the place of the command in the log";
    SessionExpired = 6, "session-expired", 409, Failed, Refused, "the group does not know the session any more; an earlier try may have been applied";
    TooManySessions = 7, "too-many-sessions", 429, Unavailable, Retry, "the group opened as many sessions lately as it opens; go on in an open one";
    AnswerExpired = 8, "answer-expired", 409, Exit::Unknown, Refused, "an earlier try of the command was applied, and its answer is not kept";
    SequenceClosed = 9, "sequence-closed", 409, Failed, Refused, "the session takes no command of this number any more; an earlier try may have been applied";
    ChangeInProgress = 10, "change-in-progress", 409, Unavailable, Retry, "another change of the group's members is in flight";
    ChangeRefused = 11, "change-refused", 400, Failed, Refused, "the change of members makes no sense, or would endanger the group";
    GroupPaused = 12, "group-paused", 409, Failed, Refused, "the machine failed on many commands in a row; see `skep group resume`";
    OutOfMemory = 13, "out-of-memory", 507, Failed, Refused, "the machine lately had no room for such a command; make room, or raise `memory-bytes`";
    NotNeeded = 14, "not-needed", 409, Failed, Refused, "there is nothing to decide for this group";
    GroupFaulted = 15, "group-faulted", 503, Unavailable, Refused, "this replica has failed or is halted; ask another one";
    Stopped = 16, "stopped", 503, Unavailable, Refused, "the node or the replica has stopped; what was in flight may have been applied";
    OutcomeUnknown = 17, "outcome-unknown", 504, Exit::Unknown, Unknown, "no answer came in time; the command may have been applied, or may yet be";
    TimedOut = 18, "timed-out", 503, Unavailable, Retry, "no answer came in time; nothing was changed";
    QueryFailed = 19, "query-failed", 503, Unavailable, Retry, "this node could not run the query; another one may";
    Rejected = 20, "rejected", 422, Exit::Rejected, Refused, "the machine rejected the request; its own code stands beside this one";
    RefusedByHost = 21, "refused", 422, Exit::Rejected, Refused, "the host refused the command on every replica, without asking the machine";
    GuestFault = 22, "guest-fault", 422, Exit::Rejected, Refused, "the machine failed on the request, on every replica alike; its state is as before";

    // What a node says of its groups.
    GroupExists = 100, "group-exists", 409, Failed, Refused, "there is a group of this id or name";
    NoSuchGroup = 101, "no-such-group", 404, Failed, Refused, "there is no such group, or no replica of it on the node that was asked";
    GroupRemoved = 102, "group-removed", 409, Failed, Refused, "this node's replica of this life of the group was removed for ever; the node may join again as another";
    GroupStarting = 103, "group-starting", 503, Unavailable, Retry, "the group does not run on this node yet";
    GroupElsewhere = 104, "group-elsewhere", 503, Unavailable, Retry, "the group is not on this node; a member is named";
    Unreachable = 105, "unreachable", 503, Unavailable, Retry, "the node does not answer; check that it runs, and its address";
    NodeFailed = 106, "node-failed", 503, Failed, Refused, "the node acknowledges nothing any more, and has to be restarted";
    NotReady = 107, "not-ready", 503, Unavailable, Refused, "the node has not started all that it should serve";
    Internal = 108, "internal", 500, Failed, Refused, "a defect of Skep; please report it with the log of the node";
    NotUpgraded = 109, "not-upgraded", 422, Failed, Refused, "the new machine does not take the state of the group, which goes on with the old one";
    NotAborted = 110, "not-aborted", 409, Failed, Refused, "the upgrade was decided before it was to be given up";
    NotRehearsed = 111, "not-rehearsed", 409, Failed, Refused, "the group could not take a snapshot that a machine could be tried on";
    MachineFailed = 112, "machine-failed", 503, Unavailable, Refused, "this node could not start or run the machine; it is tried again";
    OutOfBudget = 113, "out-of-budget", 507, Failed, Refused, "there is no room for it on the disk, or under the key of `[limits]` that is named";
    AboveCeiling = 114, "above-ceiling", 400, Failed, Refused, "the profile asks for more than `[limits] profile_*` allow";
    CatalogueFull = 115, "catalogue-full", 507, Failed, Refused, "the catalogue holds as many as it may";
    Unfounded = 116, "unfounded", 503, Unavailable, Retry, "the node belongs to no cluster yet; its log and `/readyz` say for whom it waits";

    NodeStops = 120, "node-stops", 503, Unavailable, Retry, "the node stops and takes nothing new; others answer";
    NotTransferred = 121, "not-transferred", 503, Unavailable, Retry, "the member did not take leadership over in time: it is behind, or does not answer";
    FoundProblems = 122, "found-problems", 503, Failed, Refused, "`skep doctor` found something that somebody has to mend";

    // What is wrong with a request.
    InvalidRequest = 200, "invalid-request", 400, Failed, Refused, "the request makes no sense";
    Forbidden = 201, "forbidden", 403, Failed, Refused, "only nodes ask this of each other";
    NotFound = 202, "not-found", 404, Failed, Refused, "what the request names does not exist";
    NoSuchPath = 203, "no-such-path", 404, Failed, Refused, "there is nothing at this path; the API begins at `/v1`";
    MethodNotAllowed = 204, "method-not-allowed", 405, Failed, Refused, "the path does not take this method";
    WrongHost = 205, "wrong-host", 421, Failed, Refused, "the request names a host that is not this node's; see `[http] hosts`";
    CrossOrigin = 206, "cross-origin", 403, Failed, Refused, "a web page of another site may not use this node; see `[http] origins`";
    BodyLate = 207, "body-late", 408, Failed, Refused, "the body did not come whole in time";

    // What is wrong with a component.
    NoSuchComponent = 300, "no-such-component", 404, Failed, Refused, "the component is not known here; upload it";
    DigestMismatch = 301, "digest-mismatch", 400, Failed, Refused, "the bytes are not those of the name";
    NotWasm = 302, "not-wasm", 422, Failed, Refused, "the file is not WebAssembly";
    CoreModule = 303, "core-module", 422, Failed, Refused, "the file is a core module, not a component";
    ComponentTruncated = 304, "component-truncated", 422, Failed, Refused, "the component ends in the middle";
    ForeignImport = 305, "foreign-import", 422, Failed, Refused, "the component imports what no machine gets";
    MissingExport = 306, "missing-export", 422, Failed, Refused, "the component was not built against the world of `skep:machine`";
    InvalidComponent = 307, "invalid-component", 422, Failed, Refused, "the component is not valid here, has another shape, or cannot say what it is";
    CompileTooCostly = 308, "compile-too-costly", 422, Failed, Refused, "the component is too intricate, or its compiler takes more memory than allowed";
    CompileLate = 309, "compile-late", 503, Unavailable, Retry, "the component was not compiled in time, or others were before it for as long";
    CompilerFailed = 310, "compiler-failed", 422, Failed, Refused, "the compiler failed on the component, which is a defect of Skep";
    CompilerUnavailable = 311, "compiler-unavailable", 503, Unavailable, Retry, "this node could not have the component compiled now";
    EngineUnusable = 312, "engine-unusable", 422, Failed, Refused, "this processor cannot run machines";
    WrongComponent = 313, "wrong-component", 500, Failed, Refused, "a node sent other bytes than those of the component";
    Storage = 314, "storage", 500, Failed, Refused, "a component or compiled code cannot be read or written";

    // Why a node does not start.
    InvalidConfig = 400, "invalid-config", 400, Failed, Refused, "a file, a key, a value or an argument of the configuration is wrong; it is named";
    CannotStart = 401, "cannot-start", 500, Failed, Refused, "the system refused what the node needs to start";
    CannotListen = 402, "cannot-listen", 500, Failed, Refused, "an address cannot be listened on";
    AddressInUse = 403, "address-in-use", 500, Failed, Refused, "another process listens at the address";
    PlaintextRefused = 404, "plaintext-refused", 500, Failed, Refused, "the address is not local, and what is sent there would not be encrypted";
    NoRuntime = 405, "no-runtime", 500, Failed, Refused, "the transport was started outside a tokio runtime";
    TooFewDescriptors = 406, "too-few-descriptors", 500, Failed, Refused, "the process may open fewer files and sockets than a node needs";

    // What is wrong with a log, a snapshot or a directory.
    DiskFull = 500, "disk-full", 500, Failed, Refused, "the disk is full";
    LogIo = 501, "log-io", 500, Failed, Refused, "a file of the log or a snapshot cannot be read or written";
    LogCorrupt = 502, "log-corrupt", 500, Failed, Refused, "a record of the log is damaged; the file and the offset are named";
    LogMissingSegment = 503, "log-missing-segment", 500, Failed, Refused, "a segment of the log is missing";
    LogFormat = 504, "log-format", 500, Failed, Refused, "the log has a format that this release does not read";
    LogWrongStore = 505, "log-wrong-store", 500, Failed, Refused, "a segment belongs to another store";
    LogPoisoned = 506, "log-poisoned", 500, Failed, Refused, "a write to the log failed before, so nobody knows what is on the disk; restart the node";
    LogInvalidRecord = 507, "log-invalid-record", 500, Failed, Refused, "a record makes no sense and was not written";
    LogRecordTooLarge = 508, "log-record-too-large", 500, Failed, Refused, "a record is too large and was not written";
    LogOptions = 509, "log-options", 500, Failed, Refused, "an option of the log is wrong";
    StoreLocked = 510, "store-locked", 500, Failed, Refused, "another process uses the data directory";
    StoreWrongCluster = 511, "store-wrong-cluster", 500, Failed, Refused, "the data directory belongs to another cluster";
    StoreWrongNode = 512, "store-wrong-node", 500, Failed, Refused, "the data directory belongs to another node";
    StoreWrongGroup = 513, "store-wrong-group", 500, Failed, Refused, "a directory belongs to another group";
    StoreBadIdentity = 514, "store-bad-identity", 500, Failed, Refused, "the file that says whose the data directory is cannot be read";
    StoreInvalidIdentity = 515, "store-invalid-identity", 500, Failed, Refused, "an id that the data directory should bear is wrong";
    PeerStoreChanged = 516, "peer-store-changed", 500, Failed, Refused, "another node came back with another data directory";
    PeerLimit = 517, "peer-limit", 500, Failed, Refused, "the data directory remembers as many other nodes as it may";
    SnapshotCorrupt = 518, "snapshot-corrupt", 500, Failed, Refused, "a snapshot is damaged";
    SnapshotTooLarge = 519, "snapshot-too-large", 500, Failed, Refused, "a snapshot is above its limit";
    SnapshotChunk = 520, "snapshot-chunk", 500, Failed, Refused, "a piece of a snapshot does not follow the one before it";
    StoreUnfounded = 521, "store-unfounded", 500, Failed, Refused, "the data directory has a log and belongs to no cluster, as before clusters had an identity";
    StoreFounded = 522, "store-founded", 500, Failed, Refused, "the data directory has been used; it belongs to a cluster, or may be part of a founding";
    StoreWentBack = 523, "store-went-back", 503, Failed, Refused, "the data directory was set back to an older copy, or is used twice; remove the node and let it join as a new one";
    StoreRecovering = 524, "store-recovering", 500, Failed, Refused, "a forced recovery of the data directory was begun and not ended; `skep recover apply` goes on with it";

    // What is wrong with a message or a connection.
    EmptyMessage = 600, "empty-message", 400, Failed, Refused, "a message is empty";
    NotEnoughData = 601, "not-enough-data", 400, Failed, Refused, "a message ends in the middle";
    FrameTooLarge = 602, "frame-too-large", 500, Failed, Refused, "a frame is above its limit";
    FrameCorrupt = 603, "frame-corrupt", 500, Failed, Refused, "the checksum of a frame is wrong";
    NotAFrame = 604, "not-a-frame", 500, Failed, Refused, "what came is no frame";
    FrameVersion = 605, "frame-version", 500, Failed, Refused, "a frame has a version that is not spoken here";
    MalformedMessage = 606, "malformed-message", 500, Failed, Refused, "a message cannot be decoded";
    MessageIncomplete = 607, "message-incomplete", 500, Failed, Refused, "a message lacks a field";
    UnknownValue = 608, "unknown-value", 500, Failed, Refused, "a field has a value that this release does not know";
    ZeroId = 609, "zero-id", 500, Failed, Refused, "an id is 0, which names nothing";
    BadLength = 610, "bad-length", 500, Failed, Refused, "a field has the wrong length";
    MisplacedMessage = 611, "misplaced-message", 500, Failed, Refused, "a message came where none of its kind belongs";
    EntriesNotContiguous = 612, "entries-not-contiguous", 500, Failed, Refused, "the entries of an append do not follow each other";
    ConnectionFailed = 613, "connection-failed", 503, Unavailable, Refused, "the connection was lost";
    CannotConnect = 614, "cannot-connect", 503, Unavailable, Refused, "the address cannot be connected to";
    Closed = 615, "closed", 503, Unavailable, Refused, "the other end closed the connection without an answer";
    WrongProtocol = 616, "wrong-protocol", 500, Failed, Refused, "the other end speaks another version of the protocol";
    UnsupportedVersion = 617, "unsupported-version", 500, Failed, Refused, "the node does not speak this version of the client protocol";
    WrongCluster = 618, "wrong-cluster", 500, Failed, Refused, "the other end belongs to another cluster";
    WrongNode = 619, "wrong-node", 500, Failed, Refused, "another node listens at the address";
    WrongStore = 620, "wrong-store", 500, Failed, Refused, "the node is known with another data directory";
    UnknownNode = 621, "unknown-node", 500, Failed, Refused, "the node is not, or no longer, a member of the cluster";
    BadHello = 622, "bad-hello", 500, Failed, Refused, "the other end introduced itself with something that makes no sense";
    AcceptFailed = 623, "accept-failed", 500, Failed, Refused, "the system gave no connection that waited";
    Misaddressed = 624, "misaddressed", 500, Failed, Refused, "a batch of messages is for another node";
    BadAnswer = 625, "bad-answer", 500, Failed, Refused, "the answer of a node makes no sense; run the same release on both ends";
    Unlisted = 626, "unlisted", 500, Failed, Refused, "a node of another release answered with a code that this one does not know";

    // Who may be part of a cluster.
    NodeRemoved = 650, "node-removed", 410, Failed, Refused, "the node was removed from the cluster for ever; it may join anew, with an empty data directory";
    NodeNeeded = 651, "node-needed", 409, Failed, Refused, "groups need the node; they are named";
    NotInvited = 652, "not-invited", 403, Failed, Refused, "nobody was invited with this token; see `skep node invite`";
    InvitationExpired = 653, "invitation-expired", 403, Failed, Refused, "the invitation has expired; see `skep node invite`";
    InvitationUsed = 654, "invitation-used", 403, Failed, Refused, "another node came with this token, which is good for one";
    NodeGivenUp = 655, "node-given-up", 410, Failed, Refused, "a recovery of the cluster was forced without the node; it may join anew, with an empty data directory";

    // How a command of `skep` ends that asks no node.
    RehearsalFailed = 700, "rehearsal-failed", 500, Failed, Refused, "`skep test` found an error in the component";
    ComponentsDiffer = 701, "components-differ", 500, Failed, Refused, "`skep replay --compare` found a difference";
    RecoveryRefused = 702, "recovery-refused", 500, Failed, Refused, "`skep recover` would do harm, or does not know enough; nothing was changed";
}

impl Code {
    /// The number, which is never given to another code.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The code of a number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.number() == number)
    }

    /// The code of a name that a node said, which may run another release.
    pub fn said(name: &str) -> Self {
        Self::named(name).unwrap_or(Self::Unlisted)
    }

    /// The stable name, as on the wire.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The status of an HTTP answer that bears it.
    pub fn status(self) -> u16 {
        self.row().status
    }

    /// How `skep` ends after a request that was answered with it.
    pub fn exit(self) -> Exit {
        self.row().exit
    }

    /// Whether the same request may succeed if it is sent again (under the same request id).
    pub fn is_retryable(self) -> bool {
        self.row().fate != Refused
    }

    /// Whether what was asked for may have been done, or may yet be.
    pub fn is_unknown(self) -> bool {
        self.row().fate == Unknown
    }

    /// What it means, for people.
    pub fn sentence(self) -> &'static str {
        self.row().sentence
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The table of all codes as Markdown.
pub fn markdown() -> String {
    let mut text =
        "| code | number | means | HTTP | exit | again |\n|---|---|---|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let Row {
            name,
            status,
            exit,
            fate,
            sentence,
        } = code.row();
        let again = match fate {
            Refused => "",
            Retry => "may succeed",
            Unknown => "may succeed, under the same request id",
        };
        let (number, exit) = (code.number(), exit as u8);
        text.push_str(&format!(
            "| `{name}` | {number} | {sentence} | {status} | {exit} | {again} |\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_code_is_found_by_its_name_and_by_its_number() {
        let mut names = BTreeSet::new();
        for code in Code::ALL {
            let name = code.name();
            assert!(names.insert(name), "`{name}` stands twice");
            assert!(
                name.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
                "{name}"
            );
            assert_eq!(Code::named(name), Some(*code));
            assert_eq!(Code::from_number(code.number()), Some(*code));
            let json = serde_json::to_value(code).unwrap();
            assert_eq!(json, name);
        }
        assert!(Code::ALL.is_sorted());
        assert_eq!(Code::said("of-next-year"), Code::Unlisted);
        assert_eq!(Code::from_number(0), None);
    }

    /// What nobody can be certain of is told apart in every way there is.
    #[test]
    fn what_is_unknown_has_a_status_and_an_exit_of_its_own() {
        for code in Code::ALL {
            assert_eq!(code.is_unknown(), code.status() == 504, "{code}");
            if code.is_unknown() {
                assert_eq!(code.exit(), Exit::Unknown, "{code}");
            } else if code.is_retryable() {
                assert_eq!(code.exit(), Unavailable, "{code}");
            }
        }
    }
}
