//! A replica that knows of its own removal is never elected. It may lead on for a while in the term in which it was removed:
//! until those who stay know.

use skep_core::status::Status;

/// A replica begins to lead.
pub fn check(status: &Status) -> Result<(), String> {
    let member = |member: &skep_core::status::MemberStatus| member.replica == status.replica;
    if status.members.iter().any(member) {
        return Ok(());
    }
    Err(format!(
        "replica {} on node {} begins to lead in term {} and is no member",
        status.replica, status.node, status.term
    ))
}
