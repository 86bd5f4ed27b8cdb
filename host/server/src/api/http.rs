//! HTTP for people and tools: `/v1`, health, metrics.

mod body;

use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, any, delete, get, on, post, put};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skep::status::Consistency;
use skep::trouble::Troubled;
use skep_core::id::{ComponentId, LogIndex, NodeId, RequestId, SessionId, Term};
use skep_core::outcome::Outcome;
use skep_core::proposal::Command;
use skep_types::admin::{
    Collect, CreateGroup, InviteNode, MoveReplica, OfGroup, OfGroupAndNode, OfNode, Page,
    ReplaceNode, SetReplicas, Upgrade, method,
};
use skep_types::code::Code;

use self::body::{Body, Json, crowded};
use super::call::{Caller, call, json};
use super::origin;
use super::problem::{Problem, quoted};
use crate::api::pot::Portion;
use crate::catalog::ComponentRecord;
use crate::cluster::{Host, Reach, the_first};
use crate::error::HostError;

/// Names the session of a command.
pub const SESSION: HeaderName = HeaderName::from_static("skep-session");
/// Names a command within its session, from 1.
pub const SEQUENCE: HeaderName = HeaderName::from_static("skep-sequence");
/// The client has the answers to its session's commands up to this sequence: they need not be kept.
pub const ACKNOWLEDGED: HeaderName = HeaderName::from_static("skep-acknowledged");
/// Milliseconds the caller will wait.
pub const TIMEOUT: HeaderName = HeaderName::from_static("skep-timeout-ms");
/// Where an answer stands in the group's log.
pub const INDEX: HeaderName = HeaderName::from_static("skep-index");
/// Term of that place.
pub const TERM: HeaderName = HeaderName::from_static("skep-term");

/// Most bytes of a JSON body of administration.
const ADMIN_BYTES_MAX: usize = 1 << 20;
/// Longest a caller may wait.
const TIMEOUT_MAX: Duration = Duration::from_millis(skep_wire::MAX_TIMEOUT_MS as u64);

type Answer<T> = Result<T, Problem>;

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const DELETE: MethodFilter = MethodFilter::DELETE;

/// Every route.
pub fn router(host: Host) -> Router {
    let limits = &host.config().limits;
    // One byte more than allowed, so that the host itself refuses what is too large and says the limit.
    let command = DefaultBodyLimit::max(limits.command_bytes as usize + 1);
    let component = DefaultBodyLimit::max(limits.component_bytes as usize + 1);
    let data = Router::new()
        .route("/v1/groups/{group}/propose", post(propose))
        .route("/v1/groups/{group}/query", post(query))
        .layer(command);
    let components = Router::new()
        .route(
            "/v1/components/{id}",
            put(put_component).get(component_bytes),
        )
        .layer(component);
    Router::new()
        .route("/v1/groups", get(groups).post(create_group))
        .route(
            "/v1/groups/{group}",
            of_group(GET, method::GROUP_INFO).merge(of_group(DELETE, method::GROUP_REMOVE)),
        )
        .route(
            "/v1/groups/{group}/status",
            of_group(GET, method::GROUP_STATUS),
        )
        .route(
            "/v1/groups/{group}/campaign",
            of_group(POST, method::GROUP_CAMPAIGN),
        )
        .route(
            "/v1/groups/{group}/transfer",
            of_node(method::GROUP_TRANSFER),
        )
        .route(
            "/v1/groups/{group}/snapshot",
            of_group(POST, method::GROUP_SNAPSHOT),
        )
        .route("/v1/groups/{group}/replicas", post(set_replicas))
        .route("/v1/groups/{group}/move", post(move_replica))
        .route("/v1/groups/{group}/upgrade", post(upgrade))
        .route(
            "/v1/groups/{group}/abort-upgrade",
            of_group(POST, method::GROUP_ABORT_UPGRADE),
        )
        .route(
            "/v1/groups/{group}/resume",
            of_group(POST, method::GROUP_RESUME),
        )
        .route("/v1/groups/{group}/trust", of_node(method::GROUP_TRUST))
        .route("/v1/groups/{group}/members", of_node(method::MEMBER_ADD))
        .route("/v1/groups/{group}/members/{node}", delete(remove_member))
        .route("/v1/groups/{group}/sessions", post(open_session))
        .route("/v1/nodes", of_cluster(method::NODE_LIST))
        .route("/v1/nodes/invite", post(invite_node))
        .route(
            "/v1/nodes/{node}",
            about_node(GET, method::NODE_STATUS).merge(about_node(DELETE, method::NODE_REMOVE)),
        )
        .route(
            "/v1/nodes/{node}/cordon",
            about_node(POST, method::NODE_CORDON),
        )
        .route(
            "/v1/nodes/{node}/uncordon",
            about_node(POST, method::NODE_UNCORDON),
        )
        .route(
            "/v1/nodes/{node}/drain",
            about_node(POST, method::NODE_DRAIN),
        )
        .route("/v1/nodes/{node}/replace", post(replace_node))
        .route("/v1/components", of_cluster(method::COMPONENT_LIST))
        .route("/v1/components/collect", post(collect_components))
        .route("/v1/status", of_cluster(method::STATUS))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(ADMIN_BYTES_MAX))
        .merge(data)
        .merge(components)
        .fallback(any(async || {
            Problem::of(
                Code::NoSuchPath,
                "there is nothing at this path; the API begins at /v1",
            )
        }))
        .method_not_allowed_fallback(async || {
            let detail = "this path does not take this method";
            Problem::of(Code::MethodNotAllowed, detail)
        })
        .layer(middleware::from_fn_with_state(host.clone(), stays))
        .layer(middleware::from_fn_with_state(
            host.clone(),
            origin::check::<Host>,
        ))
        .with_state(host)
}

/// Refuses what is asked of a node that is being stopped; whoever asks is to connect elsewhere.
async fn stays(State(host): State<Host>, request: Request, next: Next) -> Response {
    match host.check_stays() {
        Err(error) if request.uri().path().starts_with("/v1/") => {
            let close = HeaderValue::from_static("close");
            ([(header::CONNECTION, close)], Problem::from(error)).into_response()
        }
        _ => next.run(request).await,
    }
}

async fn propose(
    State(host): State<Host>,
    Path(group): Path<String>,
    headers: HeaderMap,
    Body(data, _held): Body,
) -> Answer<Response> {
    let timeout = timeout(&host, &headers)?;
    let command = command(&headers, data)?;
    let id = host.find(&group).await?.id;
    let response = host.propose(id, command, Reach::Cluster, timeout).await?;
    Ok(outcome(response.outcome, response.index.0, response.term.0))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryParameters {
    #[serde(default)]
    consistency: Consistency,
}

async fn query(
    State(host): State<Host>,
    Path(group): Path<String>,
    parameters: Result<Query<QueryParameters>, QueryRejection>,
    headers: HeaderMap,
    Body(request, _held): Body,
) -> Answer<Response> {
    let Query(parameters) = parameters.map_err(|error| bad_request(error.body_text()))?;
    let timeout = timeout(&host, &headers)?;
    let id = host.find(&group).await?.id;
    let answer = host
        .query(id, request, parameters.consistency, Reach::Cluster, timeout)
        .await?;
    Ok(outcome(answer.outcome, answer.index.0, answer.term.0))
}

#[derive(Serialize)]
struct SessionOpened {
    session: SessionId,
    index: LogIndex,
    term: Term,
}

async fn open_session(
    State(host): State<Host>,
    Path(group): Path<String>,
    headers: HeaderMap,
) -> Answer<(StatusCode, Json<SessionOpened>)> {
    let timeout = timeout(&host, &headers)?;
    let id = host.find(&group).await?.id;
    let response = host.open_session(id, Reach::Cluster, timeout).await?;
    let (session, index, term) = (response.session(), response.index, response.term);
    Ok((
        StatusCode::CREATED,
        Json(SessionOpened {
            session,
            index,
            term,
        }),
    ))
}

/// Carries out an administrative method, as the client protocol does.
async fn administer(host: &Host, method: &str, body: &impl Serialize) -> Answer<Response> {
    let answer = call(host, Caller::Client, method, json(body)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// A method that is asked of the cluster.
fn of_cluster(method: &'static str) -> MethodRouter<Host> {
    get(async move |State(host): State<Host>| administer(&host, method, &()).await)
}

/// A method that is asked of a group.
fn of_group(verb: MethodFilter, method: &'static str) -> MethodRouter<Host> {
    let ask = async move |State(host): State<Host>, Path(group): Path<String>| {
        administer(&host, method, &OfGroup { group }).await
    };
    on(verb, ask)
}

/// A method that is asked of a group about the node in the body.
fn of_node(method: &'static str) -> MethodRouter<Host> {
    post(
        async move |State(host): State<Host>, Path(group): Path<String>, Json(to): Json<ToNode>| {
            let ToNode { node, data } = to;
            administer(&host, method, &OfGroupAndNode { group, node, data }).await
        },
    )
}

async fn groups(
    State(host): State<Host>,
    page: Result<Query<Page>, QueryRejection>,
) -> Answer<Response> {
    let Query(page) = page.map_err(|error| bad_request(error.body_text()))?;
    administer(&host, method::GROUP_LIST, &page).await
}

async fn create_group(
    State(host): State<Host>,
    Json(request): Json<CreateGroup>,
) -> Answer<(StatusCode, Response)> {
    let created = administer(&host, method::GROUP_CREATE, &request).await?;
    Ok((StatusCode::CREATED, created))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToNode {
    node: NodeId,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replicas {
    replicas: usize,
}

async fn set_replicas(
    State(host): State<Host>,
    Path(group): Path<String>,
    Json(Replicas { replicas }): Json<Replicas>,
) -> Answer<Response> {
    let asked = SetReplicas { group, replicas };
    administer(&host, method::GROUP_REPLICAS, &asked).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FromTo {
    from: NodeId,
    to: NodeId,
}

async fn move_replica(
    State(host): State<Host>,
    Path(group): Path<String>,
    Json(FromTo { from, to }): Json<FromTo>,
) -> Answer<Response> {
    let asked = MoveReplica { group, from, to };
    administer(&host, method::GROUP_MOVE, &asked).await
}

async fn upgrade(
    State(host): State<Host>,
    Path(group): Path<String>,
    Json(request): Json<Upgrade>,
) -> Answer<Response> {
    administer(&host, method::GROUP_UPGRADE, &Upgrade { group, ..request }).await
}

async fn remove_member(
    State(host): State<Host>,
    Path((group, node)): Path<(String, String)>,
) -> Answer<Response> {
    let asked = OfGroupAndNode::new(group, node_id(&node)?);
    administer(&host, method::MEMBER_REMOVE, &asked).await
}

/// A method that is asked of a node of the cluster.
fn about_node(verb: MethodFilter, method: &'static str) -> MethodRouter<Host> {
    let ask = async move |State(host): State<Host>, Path(node): Path<String>| {
        let node = node_id(&node)?;
        administer(&host, method, &OfNode { node }).await
    };
    on(verb, ask)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    by: NodeId,
}

async fn replace_node(
    State(host): State<Host>,
    Path(node): Path<String>,
    Json(By { by }): Json<By>,
) -> Answer<Response> {
    let node = node_id(&node)?;
    administer(&host, method::NODE_REPLACE, &ReplaceNode { node, by }).await
}

async fn invite_node(
    State(host): State<Host>,
    Json(asked): Json<InviteNode>,
) -> Answer<(StatusCode, Response)> {
    let invited = administer(&host, method::NODE_INVITE, &asked).await?;
    Ok((StatusCode::CREATED, invited))
}

fn node_id(text: &str) -> Answer<NodeId> {
    let id = text.parse().map(NodeId);
    id.map_err(|_| bad_request(format!("`{text}` is no node id; use digits")))
}

async fn collect_components(
    State(host): State<Host>,
    Json(asked): Json<Collect>,
) -> Answer<Response> {
    administer(&host, method::COMPONENT_COLLECT, &asked).await
}

async fn put_component(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Request,
) -> Answer<(StatusCode, Json<ComponentRecord>)> {
    // Before anything of the body is read.
    let id = component_id(&id)?;
    let Body(bytes, _held) = Body::from_request(request, &host).await?;
    Ok((
        StatusCode::CREATED,
        Json(host.put_component(Some(id), bytes).await?),
    ))
}

async fn component_bytes(State(host): State<Host>, Path(id): Path<String>) -> Answer<Response> {
    let id = component_id(&id)?;
    let mut portion = host.doors().components.portion();
    let mut hold = |bytes| portion.set(bytes).then_some(()).ok_or_else(crowded);
    // Before it is read, as far as its size is known by then.
    let known = host.catalog().component(id).map(|record| record.size);
    hold(known.map_or(0, |size| size as usize))?;
    let bytes = host.component(id).await?;
    hold(bytes.len())?;
    let bytes = Bytes::from_owner(Held {
        bytes,
        _portion: portion,
    });
    Ok(([(header::CONTENT_TYPE, "application/wasm")], bytes).into_response())
}

/// An answer, and its share of the memory for components that are sent, which is kept until the answer is written.
struct Held {
    bytes: Bytes,
    _portion: Portion,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn livez(State(host): State<Host>) -> Response {
    match host.node().node_status().fault {
        None => "alive\n".into_response(),
        Some(reason) => Problem::of(Code::NodeFailed, reason).into_response(),
    }
}

async fn readyz(State(host): State<Host>) -> Response {
    let waiting_for = host.waiting_for();
    let troubled = the_first(host.troubled().iter().map(Troubled::to_string));
    if waiting_for.is_empty() {
        let lines: String = troubled.iter().map(|line| format!("{line}\n")).collect();
        return format!("ready\n{lines}").into_response();
    }
    let mut detail = format!("waiting for {}", waiting_for.join(", "));
    for line in troubled {
        detail.push_str("; ");
        detail.push_str(&line);
    }
    Problem::of(Code::NotReady, detail).into_response()
}

async fn metrics(State(host): State<Host>) -> Answer<Response> {
    let text = host
        .metrics()
        .render(&host)
        .map_err(|error| HostError::Internal(error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

fn outcome(outcome: Outcome, index: u64, term: u64) -> Response {
    let mut response = match (Problem::of_outcome(&outcome), outcome) {
        (Some(problem), _) => problem.into_response(),
        (None, Outcome::Reply(reply)) => {
            ([(header::CONTENT_TYPE, "application/octet-stream")], reply).into_response()
        }
        (None, _) => unreachable!("an answer without a body is a problem"),
    };
    response
        .headers_mut()
        .insert(INDEX, HeaderValue::from(index));
    response.headers_mut().insert(TERM, HeaderValue::from(term));
    response
}

fn command(headers: &HeaderMap, data: Bytes) -> Answer<Command> {
    let request = match (number(headers, &SESSION)?, number(headers, &SEQUENCE)?) {
        (None, None) => RequestId::ANONYMOUS,
        (Some(SessionId(session)), Some(sequence)) if session > 0 && sequence > 0 => RequestId {
            session: SessionId(session),
            sequence,
        },
        _ => {
            let detail = "give Skep-Session and Skep-Sequence together, both 1 or more, or neither";
            return Err(bad_request(detail));
        }
    };
    // Nothing is concluded from the sequence: many commands of a session may be in flight.
    let acknowledged = number(headers, &ACKNOWLEDGED)?.unwrap_or(0);
    if acknowledged > 0 && acknowledged >= request.sequence {
        let detail =
            "Skep-Acknowledged names commands that are answered, so it is below Skep-Sequence";
        return Err(bad_request(detail));
    }
    Ok(Command {
        request,
        acknowledged,
        data,
    })
}

fn timeout(host: &Host, headers: &HeaderMap) -> Answer<Duration> {
    let given = number(headers, &TIMEOUT)?.map(Duration::from_millis);
    Ok(given
        .unwrap_or(host.config().request_timeout())
        .min(TIMEOUT_MAX))
}

fn number<T: FromStr>(headers: &HeaderMap, name: &HeaderName) -> Answer<Option<T>> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| bad_request(format!("the header {name} must be a number")))
}

fn component_id(text: &str) -> Answer<ComponentId> {
    text.parse()
        .map_err(|error: skep_core::id::NotAComponentId| bad_request(error.to_string()))
}

fn bad_request(detail: impl Into<String>) -> Problem {
    let detail = quoted(&detail.into());
    Problem::of(Code::InvalidRequest, detail)
}

/// A part of the path; what is wrong with it is a [`Problem`].
struct Path<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(error) => Err(bad_request(format!("the path: {}", error.body_text()))),
        }
    }
}

#[cfg(test)]
mod tests;
