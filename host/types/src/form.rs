//! In which form a barrier, and the snapshot taken at it, has a machine.

use std::fmt;
use std::str::FromStr;

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

/// Which form the barriers of a group have that nobody asked for. Those that somebody asks for are of the saved form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Barriers {
    /// As sizes tell: images where saving is long or memory is hardly larger, the saved form now and then.
    #[default]
    Auto,
    /// Always saved.
    Saved,
    /// An image whenever every member can have one.
    Image,
}

impl Barriers {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Saved, Self::Image];

    /// Its number in logs.
    pub fn code(self) -> u32 {
        match self {
            Self::Auto => 0,
            Self::Saved => 1,
            Self::Image => 2,
        }
    }

    /// The setting of a number.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|barriers| barriers.code() == code)
    }

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Saved => "saved",
            Self::Image => "image",
        }
    }
}

impl fmt::Display for Barriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Barriers {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|barriers| barriers.name() == name);
        found.ok_or_else(|| format!("`{name}` is none of auto, saved, image"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_and_setting_has_its_own_number_and_name() {
        for (code, form) in (0..).zip(Form::ALL) {
            assert_eq!((form.code(), Form::from_code(code)), (code, Some(form)));
            let json = serde_json::to_value(form).expect("a word");
            assert_eq!(json, form.name());
        }
        assert_eq!(Form::from_code(2), None);
        for (code, barriers) in (0..).zip(Barriers::ALL) {
            let read = Barriers::from_code(code);
            assert_eq!((barriers.code(), read), (code, Some(barriers)));
            assert_eq!(barriers.name().parse(), Ok(barriers));
            let json = serde_json::to_value(barriers).expect("a word");
            assert_eq!(json, barriers.name());
        }
        assert_eq!(Barriers::from_code(3), None);
        assert!("often".parse::<Barriers>().is_err());
    }
}
