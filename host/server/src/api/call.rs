//! The administrative methods of the client protocol, by name.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep_core::id::as_text;
use skep_types::admin::{
    Collect, CreateGroup, OfGroup, OfGroupAndNode, Page, Prepare, Upgrade, method,
};

use super::problem::quoted;
use crate::cluster::{Activate, Host, Reach};
use crate::error::HostError;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caller {
    /// Anybody, over the port for clients.
    Client,
    /// Another node, over the port for nodes.
    Node,
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
        method::STATUS => answer(&host.info().await?),
        method::GROUP_CREATE => answer(&host.create_group(parse::<CreateGroup>(&body)?).await?),
        method::GROUP_LIST => {
            let page = match body.is_empty() {
                true => None,
                false => parse::<Option<Page>>(&body)?,
            };
            answer(&host.groups(page.unwrap_or_default()).await?)
        }
        method::GROUP_INFO => {
            let record = host.find(&parse::<OfGroup>(&body)?.group).await?;
            answer(&host.group_info(&record).await)
        }
        method::GROUP_STATUS => answer(
            &host
                .group_status(&parse::<OfGroup>(&body)?.group, reach)
                .await?,
        ),
        method::GROUP_REMOVE => answer(&host.remove_group(&parse::<OfGroup>(&body)?.group).await?),
        method::GROUP_CAMPAIGN => answer(
            &host
                .campaign(&parse::<OfGroup>(&body)?.group, reach)
                .await?,
        ),
        method::GROUP_TRANSFER => {
            let request: OfGroupAndNode = parse(&body)?;
            answer(
                &host
                    .transfer_leader(&request.group, request.node, reach)
                    .await?,
            )
        }
        method::GROUP_SNAPSHOT => answer(
            &host
                .snapshot(&parse::<OfGroup>(&body)?.group, reach)
                .await?,
        ),
        method::GROUP_UPGRADE => {
            let request: Upgrade = parse(&body)?;
            if request.dry_run {
                return answer(&host.rehearse_upgrade(request).await?);
            }
            answer(&host.upgrade_group(request).await?)
        }
        method::GROUP_ACTIVATE => answer(&host.activate(&parse::<Activate>(&body)?, reach).await?),
        method::GROUP_ABORT_UPGRADE => {
            let group = parse::<OfGroup>(&body)?.group;
            answer(&host.abort_upgrade(&group, reach).await?)
        }
        method::GROUP_RESUME => answer(&host.resume(&parse::<OfGroup>(&body)?.group, reach).await?),
        method::GROUP_TRUST => {
            let request: OfGroupAndNode = parse(&body)?;
            answer(&host.trust(&request.group, request.node, reach).await?)
        }
        method::COMPONENT_PREPARE => {
            answer(&host.prepare_component(&parse::<Prepare>(&body)?).await?)
        }
        method::MEMBER_ADD => member(host, &body, method::MEMBER_ADD, reach).await,
        method::MEMBER_REMOVE => member(host, &body, method::MEMBER_REMOVE, reach).await,
        method::COMPONENT_LIST => {
            let catalog = host.catalog();
            answer(&catalog.components().collect::<Vec<_>>())
        }
        method::COMPONENT_COLLECT => {
            answer(&host.collect_components(parse::<Collect>(&body)?).await?)
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
        || matches!(name, method::GROUP_ACTIVATE | method::COMPONENT_PREPARE)
}

async fn member(
    host: &Host,
    body: &Bytes,
    name: &'static str,
    reach: Reach,
) -> Result<Bytes, HostError> {
    let request: OfGroupAndNode = parse(body)?;
    match reach {
        Reach::Node => answer(&host.change_member(&request, name, reach).await?),
        Reach::Cluster if name == method::MEMBER_ADD => answer(&host.add_member(request).await?),
        Reach::Cluster => answer(&host.remove_member(request).await?),
    }
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, HostError> {
    serde_json::from_slice(body).map_err(|error| {
        HostError::Invalid(quoted(&format!(
            "the body is not what it should be: {error}"
        )))
    })
}

fn answer(value: &impl Serialize) -> Result<Bytes, HostError> {
    as_text(|| serde_json::to_vec(value))
        .map(Bytes::from)
        .map_err(|error| HostError::Internal(error.to_string()))
}
