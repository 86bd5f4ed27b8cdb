//! In which form a barrier, and the snapshot taken at it, has a machine.

use std::fmt;

/// How a barrier writes a machine down, and so what its snapshot holds of it.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// What its `save` wrote. Every replica goes on from these bytes, in a fresh instance: what `save` leaves out is gone.
    #[default]
    Saved,
    /// Its memory as it was. Every replica goes on as it is, and who begins with the snapshot goes on with the same memory.
    Image,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Saved, Self::Image];

    /// Its number in logs.
    pub fn code(self) -> u32 {
        match self {
            Self::Saved => 0,
            Self::Image => 1,
        }
    }

    /// The form of a number.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.code() == code)
    }

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saved => "saved",
            Self::Image => "image",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
