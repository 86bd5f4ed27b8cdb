//! Changing who hosts a group.
//!
//! The catalogue says which nodes host a replica; the group itself says which of them are members. A node is put into
//! the catalogue before it is added, so that there is a replica to receive the leader's messages, and taken out after
//! it was removed. Whatever fails in between leaves a host without a vote, which costs some memory and endangers
//! nothing: repeat the change, or undo it.

use bytes::Bytes;
use skep_core::id::NodeId;
use skep_core::proposal::{ChangeRefusal, ProposalError};
use skep_types::admin::{Done, GroupInfo, OfGroupAndNode, method};

use super::Host;
use super::requests::{Reach, first};
use crate::error::HostError;

impl Host {
    /// Adds a node to a group, as a learner that is promoted when it has caught up.
    pub async fn add_member(&self, request: OfGroupAndNode) -> Result<GroupInfo, HostError> {
        let record = self.find(&request.group).await?;
        let info = self.changed_group(&record, request.node, true).await?;
        self.change_member(&request, true, Reach::Cluster).await?;
        tracing::info!(group = %record.id, node = %request.node, "member added");
        Ok(info)
    }

    /// Removes a node from a group, and its replica from the node.
    pub async fn remove_member(&self, request: OfGroupAndNode) -> Result<GroupInfo, HostError> {
        let record = self.find(&request.group).await?;
        if !record.members.contains(&request.node) {
            let (node, id) = (request.node, record.id);
            return Err(HostError::Invalid(format!(
                "node {node} is not a member of group {id}"
            )));
        }
        self.change_member(&request, false, Reach::Cluster).await?;
        tracing::info!(group = %record.id, node = %request.node, "member removed");
        self.changed_group(&record, request.node, false).await
    }

    /// The group's own part of a change, carried out by a node that hosts a replica. What is so already is done.
    pub async fn change_member(
        &self,
        request: &OfGroupAndNode,
        adds: bool,
        reach: Reach,
    ) -> Result<Done, HostError> {
        let id = self.find(&request.group).await?.id;
        // The node in question is the last that should be asked: a joiner knows nothing yet, and one that leaves
        // may be gone before it can answer.
        if let Some(members) = self.place_but(id, request.node, reach).await? {
            let method = match adds {
                true => method::MEMBER_ADD,
                false => method::MEMBER_REMOVE,
            };
            return first(members, |member| async move {
                self.ask(&member, method, request).await
            })
            .await;
        }
        let (node, data) = (request.node, Bytes::from(request.data.clone()));
        let changed = match adds {
            true => self.inner.node.add_node_to_group(id, node, data).await,
            false => self.inner.node.remove_node_from_group(id, node, data).await,
        };
        match changed {
            Ok(_) => Ok(Done::DONE),
            Err(error) if is_so_already(&error, adds) => Ok(Done::DONE),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn node_record(
        &self,
        node: NodeId,
    ) -> Result<std::sync::Arc<crate::catalog::NodeRecord>, HostError> {
        let unknown = || {
            HostError::Invalid(format!(
                "node {node} is not part of the cluster; see `skep status`"
            ))
        };
        self.catalog().node(node).cloned().ok_or_else(unknown)
    }
}

fn is_so_already(error: &skep::Error, adds: bool) -> bool {
    let wanted = if adds {
        ChangeRefusal::AlreadyMember
    } else {
        ChangeRefusal::NotMember
    };
    matches!(error, skep::Error::Proposal { source: ProposalError::ChangeRefused(refusal), .. } if *refusal == wanted)
}
