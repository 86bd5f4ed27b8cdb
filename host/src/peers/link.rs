//! One connection to another node's client port, shared by many requests.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use skep_wire::client::request_frame;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, client_frame, request, response, server_frame};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::memory::{KEPT_BY_CLIENT, empty};
use crate::supervisor::Supervisor;

/// Requests that wait to be written. Whoever has more waits; the other node bounds what is in flight.
const QUEUE: usize = 1024;
/// Requests that share one write.
const BATCH: usize = 256;
/// To connect and to be welcomed.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 << 10;

/// Why a request has no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LinkError {
    /// It was never sent.
    NotSent(String),
    /// The connection was lost after it was, or may have been, sent.
    Lost,
}

/// A handle; all clones share the connection, which is made when it is first needed and again after it was lost.
#[derive(Clone)]
pub(super) struct Link {
    address: String,
    requests: mpsc::Sender<Asked>,
}

struct Asked {
    group: u64,
    body: request::Body,
    answer: Waiter,
}

type Waiter = oneshot::Sender<Result<response::Body, LinkError>>;
type Waiting = Mutex<HashMap<u64, Waiter>>;

impl Link {
    pub(super) fn new(address: String, cluster: String, supervisor: Supervisor) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (to, queue) = (address.clone(), tokio::sync::Mutex::new(queue));
        tokio::spawn(async move {
            let queue = &queue;
            supervisor
                .keep("peer-link", || run(&to, &cluster, queue))
                .await;
        });
        Self { address, requests }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) async fn ask(
        &self,
        group: u64,
        body: request::Body,
    ) -> Result<response::Body, LinkError> {
        let (answer, answered) = oneshot::channel();
        let stopped = |_| LinkError::NotSent("the connection was given up".to_owned());
        self.requests
            .send(Asked {
                group,
                body,
                answer,
            })
            .await
            .map_err(stopped)?;
        answered.await.unwrap_or(Err(LinkError::Lost))
    }
}

/// Owns the connection; ends with the last handle.
async fn run(address: &str, cluster: &str, queue: &tokio::sync::Mutex<mpsc::Receiver<Asked>>) {
    let mut queue = queue.lock().await;
    while let Some(first) = queue.recv().await {
        let connected = clock::timeout(CONNECT_WITHIN, connect(address, cluster)).await;
        match connected.unwrap_or_else(|| Err("it does not answer".to_owned())) {
            Ok((stream, decoder, input)) => {
                // Those still waiting when this is dropped see that the connection was lost.
                let waiting = Waiting::default();
                let (reader, writer) = stream.into_split();
                tokio::select! {
                    () = read(reader, decoder, input, &waiting) => {}
                    () = write(writer, first, &mut queue, &waiting) => {}
                }
            }
            Err(reason) => {
                // All that came meanwhile would only wait for the same.
                let mut next = Some(first);
                while let Some(asked) = next {
                    // Whoever asked may have left.
                    let _ = asked.answer.send(Err(LinkError::NotSent(reason.clone())));
                    next = queue.try_recv().ok();
                }
            }
        }
    }
}

async fn connect(
    address: &str,
    cluster: &str,
) -> Result<(TcpStream, Decoder<proto::ServerFrame>, BytesMut), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let hello = proto::ClientHello {
        protocol: CLIENT_PROTOCOL,
        cluster: cluster.to_owned(),
    };
    let frame = proto::ClientFrame {
        body: Some(client_frame::Body::Hello(hello)),
    };
    let mut output = BytesMut::new();
    Encoder::new(MAX_CLIENT_FRAME)
        .put(&frame, &mut output)
        .map_err(|error| error.to_string())?;
    stream.write_all(&output).await.map_err(text)?;
    let mut decoder = Decoder::new(MAX_CLIENT_FRAME);
    let mut input = BytesMut::new();
    let frame: proto::ServerFrame = loop {
        if let Some(frame) = decoder
            .take(&mut input)
            .map_err(|error| error.to_string())?
        {
            break frame;
        }
        if stream.read_buf(&mut input).await.map_err(text)? == 0 {
            return Err("it closed the connection".to_owned());
        }
    };
    match frame.body {
        Some(server_frame::Body::Hello(proto::ServerHello { refused: None, .. })) => {
            Ok((stream, decoder, input))
        }
        Some(server_frame::Body::Hello(proto::ServerHello {
            refused: Some(error),
            ..
        })) => Err(error.message),
        _ => Err("it did not introduce itself".to_owned()),
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    first: Asked,
    queue: &mut mpsc::Receiver<Asked>,
    waiting: &Waiting,
) {
    let encoder = Encoder::new(MAX_CLIENT_FRAME);
    let (mut output, mut last) = (BytesMut::new(), 0);
    let mut batch = vec![first];
    loop {
        for asked in batch.drain(..) {
            last += 1;
            match encoder.put(&request_frame(last, asked.group, asked.body), &mut output) {
                Ok(()) => drop(lock(waiting).insert(last, asked.answer)),
                Err(error) => drop(
                    asked
                        .answer
                        .send(Err(LinkError::NotSent(error.to_string()))),
                ),
            }
        }
        if writer.write_all(&output).await.is_err() {
            return;
        }
        empty(&mut output, KEPT_BY_CLIENT);
        if queue.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    mut decoder: Decoder<proto::ServerFrame>,
    mut input: BytesMut,
    waiting: &Waiting,
) {
    loop {
        loop {
            match decoder.take(&mut input) {
                Ok(Some(proto::ServerFrame {
                    body: Some(server_frame::Body::Response(response)),
                })) => {
                    let waiter = lock(waiting).remove(&response.id);
                    if let (Some(waiter), Some(body)) = (waiter, response.body) {
                        // Whoever asked may have left.
                        let _ = waiter.send(Ok(body));
                    }
                }
                Ok(None) => break,
                // Anything else is not the protocol; a new connection starts clean.
                Ok(Some(_)) | Err(_) => return,
            }
        }
        input.reserve(READ_BYTES);
        match reader.read_buf(&mut input).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u64, Waiter>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn receive(stream: &mut TcpStream, input: &mut BytesMut) -> client_frame::Body {
        let mut decoder = Decoder::<proto::ClientFrame>::new(MAX_CLIENT_FRAME);
        loop {
            if let Some(frame) = decoder.take(input).unwrap() {
                return frame.body.unwrap();
            }
            assert_ne!(stream.read_buf(input).await.unwrap(), 0);
        }
    }

    async fn send(stream: &mut TcpStream, body: server_frame::Body) {
        let mut output = BytesMut::new();
        Encoder::new(MAX_CLIENT_FRAME)
            .put(&proto::ServerFrame { body: Some(body) }, &mut output)
            .unwrap();
        stream.write_all(&output).await.unwrap();
    }

    fn call(method: &str) -> request::Body {
        request::Body::Call(proto::Call {
            method: method.to_owned(),
            ..Default::default()
        })
    }

    fn called(id: u64, body: &'static [u8]) -> server_frame::Body {
        let body = response::Body::Called(proto::Called { body: body.into() });
        server_frame::Body::Response(proto::Response {
            id,
            body: Some(body),
        })
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order_and_a_lost_connection_is_made_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::new(
            listener.local_addr().unwrap().to_string(),
            "test".to_owned(),
            Supervisor::default(),
        );
        let (one, two) = (link.clone(), link.clone());
        let one = tokio::spawn(async move { one.ask(0, call("one")).await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut input = BytesMut::new();
        let client_frame::Body::Hello(hello) = receive(&mut stream, &mut input).await else {
            panic!()
        };
        assert_eq!(
            (hello.protocol, hello.cluster.as_str()),
            (CLIENT_PROTOCOL, "test")
        );
        send(
            &mut stream,
            server_frame::Body::Hello(proto::ServerHello {
                node: 2,
                ..Default::default()
            }),
        )
        .await;
        let client_frame::Body::Request(first) = receive(&mut stream, &mut input).await else {
            panic!()
        };
        let two = tokio::spawn(async move { two.ask(0, call("two")).await });
        let client_frame::Body::Request(second) = receive(&mut stream, &mut input).await else {
            panic!()
        };
        send(&mut stream, called(second.id, b"2")).await;
        assert!(
            matches!(two.await.unwrap(), Ok(response::Body::Called(called)) if called.body == "2")
        );
        send(&mut stream, called(first.id, b"1")).await;
        assert!(
            matches!(one.await.unwrap(), Ok(response::Body::Called(called)) if called.body == "1")
        );

        let three = link.clone();
        let three = tokio::spawn(async move { three.ask(0, call("three")).await });
        receive(&mut stream, &mut input).await;
        drop(stream);
        assert_eq!(three.await.unwrap(), Err(LinkError::Lost));

        let four = tokio::spawn(async move { link.ask(0, call("four")).await });
        let (mut stream, _) = listener.accept().await.unwrap();
        receive(&mut stream, &mut BytesMut::new()).await;
        let refused = proto::Error {
            message: "no".into(),
            ..Default::default()
        };
        let hello = proto::ServerHello {
            refused: Some(refused),
            ..Default::default()
        };
        send(&mut stream, server_frame::Body::Hello(hello)).await;
        assert_eq!(four.await.unwrap(), Err(LinkError::NotSent("no".into())));
    }
}
