//! As much of an HTTP client as the tests need: one request on one connection.

use std::io;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clock::{PATIENCE, within};

/// Largest answer that is read: far above any reply a group may give.
const ANSWER_BYTES: u64 = 256 << 20;

/// What a node answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text, for comparing and for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// An id, an index or a term of the JSON body: text of digits.
    ///
    /// # Panics
    /// If it is none.
    pub fn number(&self, key: &str) -> u64 {
        self.try_number(key)
            .unwrap_or_else(|| panic!("no number {key}: {self:?}"))
    }

    /// As [`number`](Self::number), if there is one.
    pub fn try_number(&self, key: &str) -> Option<u64> {
        self.json()[key].as_str()?.parse().ok()
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The stable code of a problem; empty if the answer is none.
    pub fn code(&self) -> String {
        match self.header("content-type") {
            Some("application/problem+json") => {
                self.json()["code"].as_str().unwrap_or_default().to_owned()
            }
            _ => String::new(),
        }
    }
}

/// Sends one request and reads its answer.
///
/// # Errors
/// If the connection fails or the answer is no HTTP.
///
/// # Panics
/// If there is no answer within [`PATIENCE`].
pub async fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let exchange = exchange(address, method, path, headers, body);
    within(PATIENCE, &format!("{method} {path} at {address}"), exchange).await
}

async fn exchange(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    // A node that refuses a body answers without having read it all.
    let sent = stream.write_all(body).await;
    let mut bytes = Vec::new();
    let received = stream.take(ANSWER_BYTES).read_to_end(&mut bytes).await;
    match parse(&bytes) {
        Some(answer) => Ok(answer),
        None => {
            sent?;
            received?;
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is cut off or no HTTP",
            ))
        }
    }
}

/// An answer from its bytes; `None` if they are not all of one.
pub fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers
        .iter()
        .find(|(name, _)| name == "content-length")?
        .1
        .parse()
        .ok()?;
    let body = bytes.get(end + 4..end + 4 + length)?.to_vec();
    Some(Answer {
        status,
        headers,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_none() {
        let text = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: 12\r\n\r\n{\"code\":\"x\"}";
        let answer = parse(text).unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (404, "x"));
        assert!(parse(&text[..text.len() - 1]).is_none());
    }
}
