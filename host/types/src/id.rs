//! Names of things. Each is its own type, so that a node can never be passed where a replica is meant.

use std::cell::Cell;
use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

thread_local! {
    /// Whether numbers of this module are written as text.
    static AS_TEXT: Cell<bool> = const { Cell::new(false) };
}

/// Runs what writes JSON for others, on this thread: in it each id, index and term is text, since many readers of JSON
/// know whole numbers up to 2^53 only. What is kept or replicated is written without, and reading takes both.
pub fn as_text<T>(write: impl FnOnce() -> T) -> T {
    struct Restored(bool);
    impl Drop for Restored {
        fn drop(&mut self) {
            AS_TEXT.set(self.0);
        }
    }
    let _restored = Restored(AS_TEXT.replace(true));
    write()
}

/// A number of 64 bits in serde: see [`as_text`].
pub mod number {
    use std::fmt;

    use serde::{Deserializer, Serializer, de};

    /// As a number, or as text within [`as_text`](super::as_text).
    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        match super::AS_TEXT.get() {
            true => serializer.collect_str(number),
            false => serializer.serialize_u64(*number),
        }
    }

    /// From a number, or from its digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        struct Number;
        impl de::Visitor<'_> for Number {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 64 bits, or its digits as text")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
                Ok(number)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
                u64::try_from(number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_str<E: de::Error>(self, digits: &str) -> Result<u64, E> {
                let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
                match digits.parse() {
                    Ok(number) if all_digits => Ok(number),
                    _ => Err(E::invalid_value(de::Unexpected::Str(digits), &self)),
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
        )]
        pub struct $name(pub u64);

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                number::serialize(&self.0, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                number::deserialize(deserializer).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// One `skep` process with its own store. Never 0.
    NodeId,
    "n"
);
id!(
    /// One Raft group. Never 0 for a user's group; 0 is the catalogue.
    GroupId,
    "g"
);
id!(
    /// One replica of a group: the id Raft votes with. Assigned by the group, never used twice in its life, so a
    /// message to a replica that was removed can never be taken by one that came later. 0 means "not yet known".
    ReplicaId,
    "r"
);
id!(
    /// One life of a group id. A group that is removed and created again has another incarnation, so records and
    /// messages of the former cannot reach the latter.
    Incarnation,
    "i"
);
id!(
    /// Position in a group's log; the first entry is 1, 0 is "before the log".
    LogIndex,
    "@"
);
id!(
    /// Raft term.
    Term,
    "t"
);
/// A client's session in one group. Who knows it may use it, from any connection and at any node, so it is nothing that can
/// be guessed. 0 is the anonymous session, whose commands are sent once and never retried.
///
/// In JSON it is a string of digits, since few readers of JSON know numbers of 128 bits; a number is understood as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u128);

impl SessionId {
    /// Its 16 bytes, as in the log and on the wire; none of the anonymous session.
    pub fn to_bytes(self) -> Bytes {
        match self.0 {
            0 => Bytes::new(),
            id => Bytes::copy_from_slice(&id.to_be_bytes()),
        }
    }

    /// The id of such bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl std::str::FromStr for SessionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl serde::Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits;
        impl serde::de::Visitor<'_> for Digits {
            type Value = SessionId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a session's id in digits")
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<SessionId, E> {
                Ok(SessionId(id.into()))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SessionId, E> {
                text.parse()
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Digits)
    }
}

/// Names one command of one client, however often it is sent (`RequestID` of the seed package).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Debug,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct RequestId {
    /// The session the command belongs to; anonymous commands are never deduplicated.
    pub session: SessionId,
    /// Counts the session's commands from 1.
    pub sequence: u64,
}

impl RequestId {
    /// The id of a command that is sent once, without a session.
    pub const ANONYMOUS: Self = Self {
        session: SessionId(0),
        sequence: 0,
    };

    /// Whether the command has no session and so no deduplication.
    pub fn is_anonymous(self) -> bool {
        self.session.0 == 0
    }
}

/// A component, named by the sha256 of its bytes; printed and parsed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ComponentId(pub [u8; 32]);

impl ComponentId {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A component name was not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a component is named by 64 hexadecimal digits (its sha256), not `{0}`")]
pub struct NotAComponentId(pub String);

impl std::str::FromStr for ComponentId {
    type Err = NotAComponentId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NotAComponentId(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut id = [0; 32];
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

impl serde::Serialize for ComponentId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ComponentId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_survives_its_forms() {
        for id in [0, 1, 1 << 64, u128::MAX].map(SessionId) {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(SessionId::from_bytes(&id.to_bytes()), Some(id));
            let json = serde_json::to_string(&id).expect("JSON");
            assert_eq!(json, format!("\"{id}\""));
            assert_eq!(serde_json::from_str::<SessionId>(&json).ok(), Some(id));
        }
        assert_eq!(
            serde_json::from_str::<SessionId>("7").ok(),
            Some(SessionId(7))
        );
        assert!(serde_json::from_str::<SessionId>("\"seven\"").is_err());
        assert_eq!(SessionId::from_bytes(&[1; 15]), None);
    }

    #[test]
    fn a_component_id_survives_its_text() {
        let id = ComponentId::of(b"bytes");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<ComponentId>().is_err(), "{wrong}");
        }
    }
}
