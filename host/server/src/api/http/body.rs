//! Bodies of requests, and the memory that they share; JSON.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep::clock;
use skep_core::id::as_text;
use skep_types::code::Code;
use skep_types::shared::lock;

use super::bad_request;
use crate::api::pot::Portion;
use crate::api::problem::Problem;
use crate::cluster::Host;

/// A body that is no longer takes nothing of the memory for bodies: long ones that stall must not keep short ones out. All places
/// for connections together bound those.
const SMALL: usize = 64 << 10;

/// What has come of a body.
struct Coming {
    portion: Portion,
    read: usize,
    /// It is refused, because all bodies together are too much.
    full: bool,
}

impl Coming {
    fn take(&mut self, piece: Bytes) -> io::Result<Bytes> {
        self.read += piece.len();
        self.full = self.read > SMALL && !self.portion.set(self.read);
        match self.full {
            false => Ok(piece),
            true => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}

/// A body of raw bytes, and its share of the memory for bodies, which is kept until the request is answered. What is wrong
/// with it is a [`Problem`].
pub(super) struct Body(pub(super) Bytes, pub(super) Portion);

impl FromRequest<Host> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, host: &Host) -> Result<Self, Problem> {
        let coming = Arc::new(Mutex::new(Coming {
            portion: host.doors().bodies.portion(),
            read: 0,
            full: false,
        }));
        let counting = Arc::clone(&coming);
        let request = request.map(|body| {
            axum::body::Body::from_stream(body.into_data_stream().map(move |piece| {
                let piece = piece.map_err(io::Error::other)?;
                let mut coming = lock(&counting);
                coming.take(piece)
            }))
        });
        let body_ms = host.doors().settings().body_ms;
        let read = Bytes::from_request(request, host);
        let read = clock::timeout(Duration::from_millis(body_ms), read)
            .await
            .ok_or_else(|| late(body_ms))?;
        let full = lock(&coming).full;
        let bytes = read.map_err(|error| if full { crowded() } else { unreadable(error) })?;
        // The stream that shared it has ended; if not, the share goes with it.
        let coming = Arc::into_inner(coming).map(Mutex::into_inner);
        let portion = match coming {
            Some(coming) => coming.unwrap_or_else(PoisonError::into_inner).portion,
            None => host.doors().bodies.portion(),
        };
        Ok(Self(bytes, portion))
    }
}

/// A body or an answer of JSON; what is wrong with it is a [`Problem`].
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Host> for Json<T> {
    type Rejection = Problem;

    /// The content type is not asked for: `curl -d` sends another one, and there is only one thing it can be.
    async fn from_request(request: Request, host: &Host) -> Result<Self, Problem> {
        let Body(bytes, _held) = Body::from_request(request, host).await?;
        match axum::Json::<T>::from_bytes(&bytes) {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(error) => Err(bad_request(error.body_text())),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        as_text(|| axum::Json(self.0).into_response())
    }
}

fn late(body_ms: u64) -> Problem {
    let detail = format!("the body did not come within {body_ms} ms; see [http] body_ms");
    Problem::of(Code::BodyLate, detail)
}

pub(super) fn crowded() -> Problem {
    let detail = "the bodies of other requests take all the memory there is for bodies; try again";
    Problem::of(Code::Busy, detail)
}

fn unreadable(error: BytesRejection) -> Problem {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail =
                "the body is larger than this node takes; see [limits] in its configuration";
            Problem::of(Code::TooLarge, detail)
        }
        _ => bad_request(error.body_text()),
    }
}
