//! The administrative methods of the client protocol, by name.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep_core::id::{NodeId, as_text};
use skep_types::admin::{
    Collect, CreateGroup, InviteNode, JoinCluster, NodeAt, OfGroup, OfGroupAndNode, OfNode, Page,
    Prepare, Upgrade, method,
};

use super::problem::quoted;
use crate::cluster::{Activate, Host, Reach};
use crate::error::HostError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caller {
    /// Anybody, over the port for clients.
    Client,
    /// This other node, over the port for nodes.
    Node(NodeId),
}

/// Carries out one call; the answer is JSON.
pub(super) async fn call(
    host: &Host,
    caller: Caller,
    name: &str,
    body: Bytes,
) -> Result<Bytes, HostError> {
    if caller == Caller::Client && is_between_nodes(name) {
        return Err(HostError::BetweenNodes(name.to_owned()));
    }
    let (name, reach) = match name.strip_prefix(method::LOCAL) {
        Some(name) => (name, Reach::Node),
        None => (name, Reach::Cluster),
    };
    match name {
        method::STATUS => json(&host.info().await?),
        method::GROUP_CREATE => {
            let request: CreateGroup = parse(&body)?;
            match request.count {
                None => json(&host.create_group(request).await?),
                Some(count) => json(&host.create_groups(count, request).await?),
            }
        }
        method::GROUP_LIST => {
            let page = match body.is_empty() {
                true => None,
                false => parse::<Option<Page>>(&body)?,
            };
            json(&host.groups(page.unwrap_or_default(), reach).await?)
        }
        method::GROUP_INFO => {
            let record = host.find(&parse::<OfGroup>(&body)?.group).await?;
            json(&host.group_info(&record).await)
        }
        method::GROUP_STATUS => json(
            &host
                .group_status(&parse::<OfGroup>(&body)?.group, reach)
                .await?,
        ),
        method::GROUP_REMOVE => json(&host.remove_group(&parse::<OfGroup>(&body)?.group).await?),
        method::GROUP_CAMPAIGN => json(
            &host
                .campaign(&parse::<OfGroup>(&body)?.group, reach)
                .await?,
        ),
        method::GROUP_TRANSFER => {
            let request: OfGroupAndNode = parse(&body)?;
            json(
                &host
                    .transfer_leader(&request.group, request.node, reach)
                    .await?,
            )
        }
        method::GROUP_REPLICAS => json(&host.set_replicas(parse(&body)?).await?),
        method::GROUP_MOVE => json(&host.move_replica(parse(&body)?).await?),
        method::GROUP_SNAPSHOT => json(
            &host
                .snapshot(&parse::<OfGroup>(&body)?.group, reach)
                .await?,
        ),
        method::GROUP_UPGRADE => {
            let request: Upgrade = parse(&body)?;
            if request.dry_run {
                return json(&host.rehearse_upgrade(request).await?);
            }
            json(&host.upgrade_group(request).await?)
        }
        method::GROUP_ACTIVATE => json(&host.activate(&parse::<Activate>(&body)?, reach).await?),
        method::GROUP_ABORT_UPGRADE => {
            let group = parse::<OfGroup>(&body)?.group;
            json(&host.abort_upgrade(&group, reach).await?)
        }
        method::GROUP_RESUME => json(&host.resume(&parse::<OfGroup>(&body)?.group, reach).await?),
        method::GROUP_TRUST => {
            let request: OfGroupAndNode = parse(&body)?;
            json(&host.trust(&request.group, request.node, reach).await?)
        }
        method::COMPONENT_PREPARE => {
            json(&host.prepare_component(&parse::<Prepare>(&body)?).await?)
        }
        method::MEMBER_ADD => {
            let request: OfGroupAndNode = parse(&body)?;
            match reach {
                Reach::Node => json(&host.change_member(&request, true, reach).await?),
                Reach::Cluster => json(&host.add_member(request).await?),
            }
        }
        method::MEMBER_REMOVE => {
            let request: OfGroupAndNode = parse(&body)?;
            match reach {
                Reach::Node => json(&host.change_member(&request, false, reach).await?),
                Reach::Cluster => json(&host.remove_member(request).await?),
            }
        }
        method::NODE_LIST => json(&host.nodes(reach).await?),
        method::NODE_STATUS => json(&host.node_view(parse::<OfNode>(&body)?, reach).await?),
        method::NODE_INVITE => json(&host.invite_node(parse::<InviteNode>(&body)?).await?),
        method::NODE_JOIN => json(&host.take_in(parse::<JoinCluster>(&body)?).await?),
        method::NODE_REMOVE => json(&host.remove_node(parse::<OfNode>(&body)?, reach).await?),
        method::NODE_CORDON => json(&host.cordon_node(parse::<OfNode>(&body)?.node).await?),
        method::NODE_UNCORDON => json(&host.uncordon_node(parse::<OfNode>(&body)?.node).await?),
        method::NODE_DRAIN => json(&host.drain_node(parse::<OfNode>(&body)?.node).await?),
        method::NODE_REPLACE => json(&host.replace_node(parse(&body)?, reach).await?),
        method::NODE_REPORT => json(&host.report(parse(&body)?).await?),
        method::NODE_AT => match caller {
            Caller::Node(from) => json(&host.note_address(from, parse::<NodeAt>(&body)?)?),
            Caller::Client => Err(HostError::BetweenNodes(name.to_owned())),
        },
        method::COMPONENT_LIST => {
            let catalog = host.catalog();
            json(&catalog.components().collect::<Vec<_>>())
        }
        method::COMPONENT_COLLECT => {
            json(&host.collect_components(parse::<Collect>(&body)?).await?)
        }
        unknown => {
            let shown: String = unknown.chars().take(64).collect();
            Err(HostError::Invalid(format!(
                "there is no method `{shown}`; is the client newer than this node?"
            )))
        }
    }
}

/// Whether only nodes ask this of each other: what is checked before it is asked is not checked again.
fn is_between_nodes(name: &str) -> bool {
    name.starts_with(method::LOCAL)
        || matches!(
            name,
            method::GROUP_ACTIVATE
                | method::COMPONENT_PREPARE
                | method::NODE_AT
                | method::NODE_REPORT
        )
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, HostError> {
    serde_json::from_slice(body).map_err(|error| {
        HostError::Invalid(quoted(&format!(
            "the body is not what it should be: {error}"
        )))
    })
}

/// A request or an answer.
pub(super) fn json(value: &impl Serialize) -> Result<Bytes, HostError> {
    as_text(|| serde_json::to_vec(value))
        .map(Bytes::from)
        .map_err(|error| HostError::Internal(error.to_string()))
}
