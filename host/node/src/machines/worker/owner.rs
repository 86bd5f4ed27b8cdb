//! Whose a machine is.

use std::sync::Arc;

use skep_core::id::{ComponentId, GroupId};
use skep_core::proposal::ProposalError;
use skep_log::GroupKey;

use crate::error::Error;
use crate::machines::gauge::MemoryGauge;
use crate::shards::replica::Life;
use crate::shards::router::Router;

/// Who a machine belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) key: GroupKey,
    pub(crate) name: String,
    pub(crate) life: Life,
    pub(crate) component: ComponentId,
    /// What the machine holds, as its route shows it.
    pub(crate) memory: Arc<MemoryGauge>,
}

impl Owner {
    /// Why its machine answers nothing any more.
    pub(crate) fn refusal(&self, router: &Router) -> Error {
        let group = GroupId(self.key.group);
        match router.route(group) {
            Ok(route) if route.life == self.life => Error::Proposal {
                group,
                source: ProposalError::Faulted,
            },
            Ok(_) => Error::NoSuchGroup {
                group,
                node: router.node,
            },
            Err(gone) => gone,
        }
    }
}
