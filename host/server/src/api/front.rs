//! Who stands behind the ports for clients: a node, or one that waits for its cluster.

use std::future::Future;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use skep::Supervisor;
use skep_types::admin::method;
use skep_types::code::Code;
use skep_wire::proto::{self, request, response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::call::{Caller, json};
use super::doors::Doors;
use super::problem::Problem;
use super::{client_port, http, origin, requests, server};
use crate::cluster::{Beginning, Founded, Host, Waiting};
use crate::config::Config;
use crate::error::HostError;
use crate::metrics::Metrics;

/// What the ports for clients need of whoever answers at them.
pub trait Front: Clone + Send + Sync + 'static {
    /// Its configuration.
    fn config(&self) -> &Config;
    /// The places at its ports.
    fn doors(&self) -> &Doors;
    /// What it counts.
    fn metrics(&self) -> &Metrics;
    /// Who watches its tasks.
    fn supervisor(&self) -> &Supervisor;
    /// Its routes of HTTP.
    fn router(&self) -> Router;
    /// Answers a request of the framed protocol.
    fn answer(&self, request: proto::Request) -> impl Future<Output = proto::Response> + Send;
}

impl Front for Host {
    fn config(&self) -> &Config {
        Host::config(self)
    }

    fn doors(&self) -> &Doors {
        Host::doors(self)
    }

    fn metrics(&self) -> &Metrics {
        Host::metrics(self)
    }

    fn supervisor(&self) -> &Supervisor {
        Host::supervisor(self)
    }

    fn router(&self) -> Router {
        http::router(self.clone())
    }

    fn answer(&self, request: proto::Request) -> impl Future<Output = proto::Response> + Send {
        requests::answer(self, Caller::Client, request)
    }
}

impl Front for Waiting {
    fn config(&self) -> &Config {
        Waiting::config(self)
    }

    fn doors(&self) -> &Doors {
        Waiting::doors(self)
    }

    fn metrics(&self) -> &Metrics {
        Waiting::metrics(self)
    }

    fn supervisor(&self) -> &Supervisor {
        Waiting::supervisor(self)
    }

    /// It lives, is not ready, and says why; everything else needs a cluster.
    fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readyz))
            .route("/v1/status", get(status))
            .fallback(any(unfounded))
            .layer(middleware::from_fn_with_state(
                self.clone(),
                origin::check::<Waiting>,
            ))
            .with_state(self.clone())
    }

    async fn answer(&self, request: proto::Request) -> proto::Response {
        let asks_status = matches!(
            &request.body,
            Some(request::Body::Call(call)) if call.method == method::STATUS
        );
        let said = match asks_status {
            true => json(&self.info()),
            false => Err(self.unfounded()),
        };
        let body = said.map_or_else(
            |error| response::Body::Error(explain(&error)),
            |body| response::Body::Called(proto::Called { body }),
        );
        proto::Response {
            id: request.id,
            body: Some(body),
            leader: 0,
        }
    }
}

/// Waits until a node belongs to its cluster. Meanwhile it says at its ports for clients for whom it waits.
///
/// # Errors
/// As [`Beginning::founded`].
pub async fn founded(
    beginning: Beginning,
    clients: &TcpListener,
    web: &TcpListener,
) -> Result<Founded, HostError> {
    if beginning.is_founded() {
        return beginning.founded().await;
    }
    let (waiting, stop) = (beginning.waiting(), CancellationToken::new());
    // What is open then ends by itself, and holds up nobody.
    let _stopped = stop.clone().drop_guard();
    let serving = async {
        tokio::join!(
            client_port::serve(waiting.clone(), clients, stop.clone()),
            server::serve(waiting.clone(), web, stop.clone()),
        );
        std::future::pending().await
    };
    tokio::select! {
        founded = beginning.founded() => founded,
        never = serving => never,
    }
}

fn explain(error: &HostError) -> proto::Error {
    proto::Error {
        retryable: error.is_retryable(),
        ..proto::Error::new(error.code(), error.chain())
    }
}

async fn readyz(State(waiting): State<Waiting>) -> Response {
    let detail = format!("waiting for {}", waiting.waiting_for().join("; "));
    Problem::of(Code::NotReady, detail).into_response()
}

async fn status(State(waiting): State<Waiting>) -> Result<Response, Problem> {
    let body = json(&waiting.info())?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn unfounded(State(waiting): State<Waiting>) -> Problem {
    Problem::from(waiting.unfounded())
}
