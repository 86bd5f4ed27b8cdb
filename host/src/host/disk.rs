//! How full this node's disk is, and what the node does about it.

use std::sync::Arc;
use std::time::Duration;

use skep_core::id::GroupId;
use skep_core::state::Role;
use skep_core::status::Part;

use super::Host;
use super::reconcile::blocking;
use crate::{Error, clock};

/// How often the disk is looked at: so long commands may go on that it has no room for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps a reserve on the disk. When the disk is so full that commands are refused here, others lead this node's groups,
/// once: where every disk is full an election a second would only fill them.
pub(super) async fn look_after(host: Host) {
    let mut was_full = false;
    loop {
        let room = Arc::clone(&host.inner.room);
        match blocking(move || room.keep_up()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "no reserve is kept on the disk"),
            Err(error) => tracing::warn!(error = %error.chain(), "the disk is not looked at"),
        }
        let full = host.inner.room.check_command();
        if let Err(error) = &full
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
        if let Err(error) = hand_over_one(host, group).await {
            tracing::debug!(%group, %error, "leadership stays with this node");
        }
    }
}

async fn hand_over_one(host: &Host, group: GroupId) -> Result<(), Error> {
    let node = &host.inner.node;
    let status = match node.status(group).await {
        Err(Error::NoSuchGroup { .. }) => return Ok(()),
        status => status?.replica,
    };
    if status.part != Part::Leader {
        return Ok(());
    }
    let best = (status.members.iter())
        .filter(|member| member.node != host.id() && member.active != Some(false))
        .filter(|member| member.role == Role::Voter)
        .max_by_key(|member| member.matched);
    match best {
        Some(member) => node.transfer_leader(group, member.node).await,
        None => Ok(()),
    }
}
