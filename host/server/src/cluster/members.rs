//! Changing who hosts a group.
//!
//! The catalogue says which nodes host a replica; the group itself says which of them are members. A node is put into
//! the catalogue before it is added, so that there is a replica to receive the leader's messages, and taken out after
//! it was removed. What the group refuses for certain is taken back. Where nobody knows, or whoever asked has gone, a host without
//! a vote is left, which costs some memory and endangers nothing: repeat the change, or undo it.

use std::time::Duration;

use bytes::Bytes;
use skep_core::id::NodeId;
use skep_core::proposal::{ChangeRefusal, ProposalError};
use skep_types::admin::{Done, GroupInfo, OfGroupAndNode, method};

use super::Host;
use super::requests::{Reach, first};
use crate::catalog::command::Command;
use crate::error::HostError;

/// How long a node that is to be a member may take to say that it is there.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

impl Host {
    /// Adds a node to a group, as a learner that is promoted when it has caught up. Nothing is left of what is refused.
    /// The group is to have one replica more from then on, unless it has fewer than it should.
    pub async fn add_member(&self, request: OfGroupAndNode) -> Result<GroupInfo, HostError> {
        self.add_replica(&request, false).await
    }

    /// As [`add_member`](Self::add_member); the number of replicas that the group is to have may stay.
    pub(super) async fn add_replica(
        &self,
        request: &OfGroupAndNode,
        keeps_wanted: bool,
    ) -> Result<GroupInfo, HostError> {
        let (node, record) = (request.node, self.find(&request.group).await?);
        if let Some(known) = self
            .catalog()
            .node(node)
            .filter(|known| known.id != self.id())
        {
            self.inner.peers.look(known, ANSWERS_WITHIN).await?;
        }
        let add = Command::AddMember {
            group: record.id,
            incarnation: record.incarnation,
            node,
            keeps_wanted,
        };
        let (_, added) = self.change_catalog_at(&add).await?;
        match self.change_member(request, true, Reach::Cluster).await {
            Ok(_) => {
                tracing::info!(group = %record.id, %node, "member added");
                let catalog = self.catalog();
                let record = catalog.group(record.id).unwrap_or(&record);
                Ok(self.group_info(record).await)
            }
            Err(error) => {
                if !error.is_unknown() {
                    let keeps_wanted = keeps_wanted || record.members.len() < record.wanted;
                    self.take_back(Command::TakeBackMember {
                        group: record.id,
                        incarnation: record.incarnation,
                        node,
                        added,
                        keeps_wanted,
                    })
                    .await;
                }
                Err(error)
            }
        }
    }

    /// The group refused a node that the catalogue lets host it since that command, if it was not there before.
    async fn take_back(&self, command: Command) {
        if let Err(error) = self.change_catalog(&command).await {
            tracing::warn!(?command, error = %error.chain(), "the catalogue still lets a node host a replica that its group refused; add it again, or remove it");
        }
    }

    /// Removes a node from a group, and its replica from the node. The group is to have one replica fewer from then on.
    pub async fn remove_member(&self, request: OfGroupAndNode) -> Result<GroupInfo, HostError> {
        let record = self.find(&request.group).await?;
        if !record.members.contains(&request.node) {
            let (node, id) = (request.node, record.id);
            return Err(HostError::Invalid(format!(
                "node {node} is not a member of group {id}"
            )));
        }
        self.remove_replica(&request, false).await
    }

    /// As [`remove_member`](Self::remove_member), also where the catalogue does not know the member.
    pub(super) async fn remove_replica(
        &self,
        request: &OfGroupAndNode,
        keeps_wanted: bool,
    ) -> Result<GroupInfo, HostError> {
        let record = self.find(&request.group).await?;
        self.change_member(request, false, Reach::Cluster).await?;
        tracing::info!(group = %record.id, node = %request.node, "member removed");
        let record = self
            .change_group(&Command::RemoveMember {
                group: record.id,
                incarnation: record.incarnation,
                node: request.node,
                keeps_wanted,
            })
            .await?;
        Ok(self.group_info(&record).await)
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
