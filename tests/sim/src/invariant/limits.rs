//! Every queue keeps its limit.

use skep_core::config::Limits;
use skep_core::sessions::SESSIONS_MAX;
use skep_core::status::Status;

/// Records of one replica that may be on their way to the disk: far more than a slow disk explains.
const RECORDS_MAX: usize = 4096;
/// Entries that may wait for the machine.
const WORK_MAX: usize = 65_536;

/// How full the queues of a replica are.
pub fn check(limits: &Limits, status: &Status, records: usize, work: usize) -> Result<(), String> {
    let within = status.queued <= limits.queued_proposals
        && status.sessions <= SESSIONS_MAX
        && records <= RECORDS_MAX
        && work <= WORK_MAX;
    if within {
        return Ok(());
    }
    Err(format!(
        "a queue is too long: {} proposals, {} sessions, {records} records, {work} pieces of work",
        status.queued, status.sessions
    ))
}
