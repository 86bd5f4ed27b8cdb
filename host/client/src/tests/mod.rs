mod requests;
mod sessions;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use skep_wire::client::response_frame;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{
    self, ClientFrame, ServerFrame, client_frame, request, response, server_frame,
};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const GROUP: GroupId = GroupId(5);

/// What a node does with a request.
enum Act {
    Answer(response::Body),
    /// Nothing, ever.
    Ignore,
    /// Closes the connection.
    Close,
    /// Answers all requests kept so far, the last first, and this one before them.
    Keep(response::Body),
    Release(response::Body),
}

/// A node that does as it is told, and remembers what it was asked.
struct FakeNode {
    address: String,
    seen: Arc<Mutex<Vec<proto::Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Script = Arc<dyn Fn(usize, &proto::Request) -> Act + Send + Sync>;

impl FakeNode {
    /// `script` is given the number of requests seen before, over all connections.
    async fn start(script: impl Fn(usize, &proto::Request) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    fn on(
        listener: TcpListener,
        script: impl Fn(usize, &proto::Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<proto::Request>>> = Arc::default();
        let (script, log): (Script, _) = (Arc::new(script), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&script), Arc::clone(&log)));
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    fn seen(&self) -> Vec<proto::Request> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    script: Script,
    seen: Arc<Mutex<Vec<proto::Request>>>,
) -> Option<()> {
    let mut decoder = Decoder::<ClientFrame>::new(MAX_CLIENT_FRAME);
    let (mut input, mut kept) = (BytesMut::new(), Vec::new());
    loop {
        while let Some(frame) = decoder.take(&mut input).unwrap() {
            let request = match frame.body.unwrap() {
                client_frame::Body::Hello(hello) => {
                    let mut answer = proto::ServerHello {
                        protocol: CLIENT_PROTOCOL,
                        cluster: "bees".into(),
                        node: 1,
                        refused: None,
                    };
                    if !hello.cluster.is_empty() && hello.cluster != "bees" {
                        let code = "wrong-cluster".to_owned();
                        answer.refused = Some(proto::Error {
                            code,
                            message: "here are bees".into(),
                            ..Default::default()
                        });
                    }
                    send(
                        &mut stream,
                        ServerFrame {
                            body: Some(server_frame::Body::Hello(answer)),
                        },
                    )
                    .await?;
                    continue;
                }
                client_frame::Body::Request(request) => request,
            };
            let act = {
                let mut seen = seen.lock().unwrap();
                seen.push(request.clone());
                script(seen.len() - 1, &request)
            };
            match act {
                Act::Answer(body) => send(&mut stream, response_frame(request.id, body)).await?,
                Act::Ignore => {}
                Act::Close => return None,
                Act::Keep(body) => kept.push(response_frame(request.id, body)),
                Act::Release(body) => {
                    send(&mut stream, response_frame(request.id, body)).await?;
                    while let Some(frame) = kept.pop() {
                        send(&mut stream, frame).await?;
                    }
                }
            }
        }
        if stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
    }
}

async fn send(stream: &mut TcpStream, frame: ServerFrame) -> Option<()> {
    let mut bytes = BytesMut::new();
    Encoder::new(MAX_CLIENT_FRAME)
        .put(&frame, &mut bytes)
        .unwrap();
    stream.write_all(&bytes).await.ok()
}

fn config(nodes: &[&FakeNode]) -> ClientConfig {
    ClientConfig {
        request_timeout: Duration::from_secs(20),
        attempt_timeout: Duration::from_secs(20),
        ..ClientConfig::new(nodes.iter().map(|node| node.address.clone()))
    }
}

async fn client(nodes: &[&FakeNode]) -> Client {
    Client::connect(config(nodes)).await.unwrap()
}

fn opened() -> Act {
    Act::Answer(response::Body::SessionOpened(proto::SessionOpened {
        session: SessionId(77).to_bytes(),
        index: 77,
        term: 2,
    }))
}

/// The reply is the command.
fn proposed(request: &proto::Request) -> response::Body {
    let propose = propose(request);
    let outcome = proto::Outcome {
        body: Some(proto::outcome::Body::Reply(propose.data.clone())),
    };
    response::Body::Proposed(proto::Proposed {
        index: 100 + propose.sequence,
        term: 2,
        outcome: Some(outcome),
    })
}

fn propose(request: &proto::Request) -> &proto::Propose {
    match request.body.as_ref().unwrap() {
        request::Body::Propose(propose) => propose,
        body => panic!("no proposal: {body:?}"),
    }
}

fn proposals(seen: &[proto::Request]) -> Vec<&proto::Propose> {
    seen.iter()
        .filter(|seen| matches!(seen.body, Some(request::Body::Propose(_))))
        .map(propose)
        .collect()
}

fn is_open(request: &proto::Request) -> bool {
    matches!(request.body, Some(request::Body::OpenSession(_)))
}

fn error(code: &str, unknown: bool, retryable: bool, leader: &str) -> Act {
    Act::Answer(response::Body::Error(proto::Error {
        code: code.into(),
        message: format!("it is {code}"),
        unknown,
        retryable,
        leader: 0,
        leader_address: leader.into(),
    }))
}

fn reply(response: &Response) -> Bytes {
    match &response.outcome {
        Outcome::Reply(reply) => reply.clone(),
        outcome => panic!("{outcome:?}"),
    }
}
