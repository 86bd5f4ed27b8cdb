//! How full this node's disk is, and what the node does about it.

use std::sync::Arc;
use std::time::Duration;

use skep::{Error, clock};
use skep_core::id::GroupId;

use super::Host;
use super::blocking;

/// How often the disk is looked at: so long commands may go on that it has no room for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps a reserve on the disk. When the disk is so full that commands are refused here, others lead this node's groups,
/// once: where every disk is full an election a second would only fill them.
pub(super) async fn look_after(host: Host) {
    let (mut was_full, mut failed) = (false, false);
    loop {
        let room = Arc::clone(&host.inner.room);
        let kept = blocking(move || room.keep_up()).await;
        let failure = match &kept {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.chain()),
        };
        // A file system that cannot keep a reserve is told of once.
        if let Some(error) = failure.as_ref().filter(|_| !failed) {
            tracing::warn!(%error, "no reserve is kept on the disk");
        }
        failed = failure.is_some();
        let full = host.inner.room.check_command();
        if let Err(error) = full
            && !was_full
        {
            tracing::warn!(%error, "commands are refused here, and others are to lead the groups of this node");
            hand_over(&host).await;
        }
        was_full = full.is_err();
        clock::sleep(LOOK_EVERY).await;
    }
}

/// Asks another member to lead, for each group that this node leads.
async fn hand_over(host: &Host) {
    let groups: Vec<GroupId> = (host.catalog().groups().map(|group| group.id)).collect();
    for group in groups {
        match host.inner.node.hand_over(group).await {
            Ok(()) | Err(Error::NoSuchGroup { .. }) => {}
            Err(error) => {
                tracing::debug!(%group, %error, "leadership stays with this node");
            }
        }
    }
}
