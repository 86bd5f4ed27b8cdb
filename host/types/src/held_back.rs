//! What keeps the commands of a group waiting, or has them refused, though nothing is wrong: what isolates groups and clients from
//! each other, by name.

/// A mechanism that holds back what clients ask of a group on a node. `docs/reference/limits.md` says what each is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldBack {
    /// The machine failed on too many commands in a row: they are refused until somebody resumes the group.
    Paused,
    /// Commands wait for the decision on an upgrade.
    Upgrade,
    /// Commands of clients whose commands failed lately wait, so that others have most of the time.
    Suspects,
    /// The group's commands for now are used up: more are refused.
    CommandsPerSecond,
    /// The group's bytes for now are used up: commands wait.
    BytesPerSecond,
    /// The group has no quota of bytes, and those of the node for long commands and replies are used up: commands wait.
    LongBytesPerSecond,
    /// As many bytes as may wait did so within the last second: more were refused.
    BytesInFlight,
    /// A member is behind: commands wait so that it can catch up.
    CatchUp,
    /// The bytes for queries on this node are used up, by the group's quota or the node's for long ones: queries wait.
    QueryBytes,
}

impl HeldBack {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Paused,
        Self::Upgrade,
        Self::Suspects,
        Self::CommandsPerSecond,
        Self::BytesPerSecond,
        Self::LongBytesPerSecond,
        Self::BytesInFlight,
        Self::CatchUp,
        Self::QueryBytes,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_line_in_the_reference() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/limits.md"
        );
        let reference = std::fs::read_to_string(path).expect("the reference");
        let names: Vec<String> = reference
            .lines()
            .filter(|line| line.starts_with('|'))
            .filter_map(|line| line.rsplit('|').nth(1)?.trim().strip_prefix("held back: "))
            .flat_map(|names| names.split(", "))
            .map(|name| name.trim_matches('`').to_owned())
            .collect();
        let held_back = HeldBack::ALL.map(|held| serde_json::to_value(held).expect("a word"));
        for held in &held_back {
            assert!(names.iter().any(|name| held == name), "{held}");
        }
        for name in &names {
            assert!(held_back.iter().any(|held| held == name), "{name}");
        }
    }
}
