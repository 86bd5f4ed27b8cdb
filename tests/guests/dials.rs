//! Uses the network through the standard library: `dial` connects, `listen` binds, `resolve` asks for an address. Each
//! answers with the kind of the error, which is an ordinary answer.

use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct Dials;

impl Attack for Dials {
    const NAME: &'static str = "dials";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        let error = match request {
            b"dial" => TcpStream::connect("127.0.0.1:22").err(),
            b"listen" => TcpListener::bind("127.0.0.1:0").err(),
            b"send" => UdpSocket::bind("127.0.0.1:0").err(),
            b"resolve" => "example.org:80".to_socket_addrs().err(),
            _ => return None,
        };
        let answer = error.map_or("connected".to_owned(), |error| error.kind().to_string());
        Some(Ok(answer.into_bytes()))
    }
}

skep_guest::export!(Guest<Dials>);
