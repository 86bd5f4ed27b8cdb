//! Connections of HTTP: who gets in, and how long each part of a request may take.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use skep::clock::{self, Stopwatch};
use skep_types::code::Code;
use skep_types::shared::lock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::front::Front;
use super::problem::Problem;
use crate::api::door::{self, Full, Visit};

const HEAD_BYTES: usize = 64 << 10;
/// Pause between two looks at how long a connection has taken, at the most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

struct Server<F> {
    front: F,
    router: Router,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Serves until the token is cancelled; requests in flight are finished first.
pub async fn serve<F: Front>(front: F, listener: &TcpListener, stop: CancellationToken) {
    let server = Arc::new(Server {
        router: front.router(),
        front,
        stop,
        connections: TaskTracker::new(),
    });
    let accepting = server
        .front
        .supervisor()
        .keep("http-accept", || accept(&server, listener));
    server.stop.run_until_cancelled(accepting).await;
    server.connections.close();
    server.connections.wait().await;
}

async fn accept<F: Front>(server: &Arc<Server<F>>, listener: &TcpListener) {
    loop {
        let (stream, remote) = door::accept(listener, "HTTP").await;
        match server.front.doors().http.admit(remote.ip()).await {
            Ok(visit) => {
                let server = Arc::clone(server);
                let tracker = server.connections.clone();
                tracker.spawn(async move {
                    let supervisor = server.front.supervisor().clone();
                    let served = connection(&server, stream, visit);
                    supervisor.once("http-connection", served).await
                });
            }
            Err(full) => refuse(stream, full),
        }
    }
}

/// Says that there is no place.
fn refuse(stream: TcpStream, full: Full) {
    let problem = Problem {
        retryable: true,
        ..Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::Busy,
            full.to_string(),
        )
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    door::refuse(stream, answer.as_bytes());
}

async fn connection<F: Front>(server: &Server<F>, stream: TcpStream, visit: Visit) {
    // Only latency is lost if the system refuses.
    let _ = stream.set_nodelay(true);
    let settings = server.front.doors().settings();
    let (head, idle) = (
        Duration::from_millis(settings.header_ms),
        Duration::from_millis(settings.idle_ms),
    );
    let pace = Arc::new(Pace::new(visit));
    let io = TokioIo::new(Paced {
        stream,
        pace: Arc::clone(&pace),
    });
    let routes = TowerToHyperService::new(server.router.clone());
    let pace = &pace;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let answering = routes.call(request.map(|body| coming(body, pace)));
        async move {
            let supervisor = server.front.supervisor();
            let answered = supervisor.once("http-request", answering).await;
            pace.set(Step::Idle);
            Ok::<_, Infallible>(match answered {
                Some(Ok(response)) => response,
                None => {
                    let detail = "this node made a mistake; its log says which";
                    Problem::of(Code::Internal, detail).into_response()
                }
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Measured here, together with what else may take time.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut ends = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "an HTTP connection was lost");
                }
                return;
            }
            () = pace.expired(head, idle) => return,
            () = pace.visit.must_go(), if !ends => {
                // A request may have come whole just now; it is answered.
                if pace.step() != Step::Busy {
                    return;
                }
            }
            () = server.stop.cancelled(), if !ends => {}
        }
        ends = true;
        connection.as_mut().graceful_shutdown();
    }
}

/// The body of a request, for which it is not busy yet.
fn coming(body: Incoming, pace: &Arc<Pace>) -> Body {
    if body.is_end_stream() {
        pace.set(Step::Busy);
        return Body::empty();
    }
    pace.set(Step::Body);
    let comes = Comes(Arc::clone(pace));
    let pieces = Body::new(body).into_data_stream();
    Body::from_stream(pieces.inspect(move |_| comes.0.set(Step::Body)))
}

/// A body comes, until it is whole or nobody wants more of it.
struct Comes(Arc<Pace>);

impl Drop for Comes {
    fn drop(&mut self) {
        if self.0.step() == Step::Body {
            self.0.set(Step::Busy);
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The head of a request comes.
    Head,
    /// The body of a request comes.
    Body,
    /// A request is being answered.
    Busy,
    /// The answer is on its way, or nothing is asked.
    Idle,
}

/// How long a connection has been at it.
struct Pace {
    visit: Visit,
    state: Mutex<(Step, Stopwatch)>,
}

impl Pace {
    /// A new connection is to ask at once.
    fn new(visit: Visit) -> Self {
        Self {
            visit,
            state: Mutex::new((Step::Head, Stopwatch::start())),
        }
    }

    /// Who waits for others keeps the place; who is waited for may lose it, from the last bytes on.
    fn set(&self, step: Step) {
        *lock(&self.state) = (step, Stopwatch::start());
        match step {
            Step::Busy => self.visit.is_busy(),
            Step::Head | Step::Body | Step::Idle => self.visit.rests(),
        }
    }

    fn step(&self) -> Step {
        lock(&self.state).0
    }

    /// Bytes have come.
    fn read(&self) {
        let mut state = lock(&self.state);
        if state.0 == Step::Idle {
            *state = (Step::Head, Stopwatch::start());
        }
    }

    /// Bytes of an answer have gone.
    fn written(&self) {
        if self.step() == Step::Idle {
            self.set(Step::Idle);
        }
    }

    /// Resolves when it has taken too long.
    async fn expired(&self, head: Duration, idle: Duration) {
        let pause = (head.min(idle) / 4).clamp(Duration::from_millis(10), LOOK_EVERY);
        loop {
            clock::sleep(pause).await;
            let (step, since) = *lock(&self.state);
            let limit = match step {
                Step::Head => head,
                Step::Idle => idle,
                // The body and the answer have limits of their own.
                Step::Body | Step::Busy => continue,
            };
            if since.elapsed() >= limit {
                return;
            }
        }
    }
}

/// A stream that says when something moves.
struct Paced {
    stream: TcpStream,
    pace: Arc<Pace>,
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.pace.read();
        }
        read
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.pace.written();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.pace.written();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
