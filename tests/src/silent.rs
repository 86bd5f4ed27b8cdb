//! Clients of the client protocol who introduce themselves, and then say nothing.

use bytes::BytesMut;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, client_frame, server_frame};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clock::{PATIENCE, within};

/// Connects to the client port of a node, and is let in.
///
/// # Panics
/// If it is not.
pub async fn client(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(&hello()).await.expect("it reads");
    match within(PATIENCE, "a hello", answer(&mut stream)).await {
        Some(server_frame::Body::Hello(hello)) if hello.refused.is_none() => stream,
        other => panic!("not let in at {address}: {other:?}"),
    }
}

/// The frame that a client introduces itself with.
///
/// # Panics
/// Never: it is a small frame.
pub fn hello() -> BytesMut {
    let hello = proto::ClientHello {
        protocol: CLIENT_PROTOCOL,
        ..Default::default()
    };
    let frame = proto::ClientFrame {
        body: Some(client_frame::Body::Hello(hello)),
    };
    let mut encoded = BytesMut::new();
    Encoder::new(MAX_CLIENT_FRAME)
        .put(&frame, &mut encoded)
        .expect("a small frame");
    encoded
}

async fn answer(stream: &mut TcpStream) -> Option<server_frame::Body> {
    let mut decoder = Decoder::<proto::ServerFrame>::new(MAX_CLIENT_FRAME);
    let mut buffer = BytesMut::new();
    loop {
        if let Some(frame) = decoder.take(&mut buffer).expect("a frame") {
            return frame.body;
        }
        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}
