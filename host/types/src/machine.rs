//! What is shown of a machine.

/// What a machine says of itself (`describe` of the WIT world).
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Descriptor {
    /// Name of the machine.
    pub name: String,
    /// Version of the machine.
    pub version: String,
    /// Version of the bytes that `save` writes.
    pub schema: u32,
    /// Oldest version of the bytes that `restore` reads.
    pub oldest_schema: u32,
}

/// The linear memory of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    /// Bytes it has taken; they never become fewer until the machine is restored.
    pub used_bytes: u64,
    /// Bytes its group's profile lets it take.
    pub limit_bytes: u64,
}
