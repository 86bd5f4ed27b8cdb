//! Why a component has no images.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why the memories and globals of a component are not all that it keeps, or cannot be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoImage {
    /// A function writes to a table.
    #[error("it writes to its tables while it runs, and those are in none of its memories")]
    WrittenTable,
    /// A function reads or drops a passive segment.
    #[error(
        "it reads or drops segments of its own file while it runs, and what is left of them is in none of its memories"
    )]
    LateSegment,
    /// A mutable global holds a reference.
    #[error("it keeps a reference in a global, and a reference cannot be copied into a memory")]
    ReferenceGlobal,
    /// It makes handles of its own.
    #[error(
        "it hands out resources of its own between its components, and the handles of those are in none of its memories"
    )]
    OwnHandles,
    /// One of its components calls another with handles of the host's.
    #[error(
        "it passes handles from one of its components to another, where the host cannot follow them"
    )]
    PassedHandles,
    /// It passes modules or components on.
    #[error(
        "it passes modules or components from one component to another, so nobody can tell what is instantiated"
    )]
    PassedCode,
    /// It uses a name of the host's.
    #[error(
        "it exports or imports something as `skep:g…`, `skep:m…`, `skep-freeze…`, `skep-thaw…`, `skep-give…`, `skep-take…` or `skep-handle…`, which are the host's own names"
    )]
    TakenName,
    /// It has more of something than an image may.
    #[error(
        "it has more components, instances, memories or globals than an image is made of (no toolchain makes so many)"
    )]
    TooManyParts,
}

impl NoImage {
    const ALL: [Self; 8] = [
        Self::WrittenTable,
        Self::LateSegment,
        Self::ReferenceGlobal,
        Self::OwnHandles,
        Self::PassedHandles,
        Self::PassedCode,
        Self::TakenName,
        Self::TooManyParts,
    ];

    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::WrittenTable => "written-table",
            Self::LateSegment => "late-segment",
            Self::ReferenceGlobal => "reference-global",
            Self::OwnHandles => "own-handles",
            Self::PassedHandles => "passed-handles",
            Self::PassedCode => "passed-code",
            Self::TakenName => "taken-name",
            Self::TooManyParts => "too-many-parts",
        }
    }
}

/// In JSON: its name, and the sentence for people, which is not read again.
#[derive(Serialize, Deserialize)]
struct Spoken {
    name: String,
    #[serde(default)]
    reason: String,
}

impl Serialize for NoImage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, reason) = (self.name().to_owned(), self.to_string());
        Spoken { name, reason }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NoImage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spoken = Spoken::deserialize(deserializer)?;
        Self::ALL
            .into_iter()
            .find(|one| one.name() == spoken.name)
            .ok_or_else(|| serde::de::Error::custom(format!("no reason is `{}`", spoken.name)))
    }
}
