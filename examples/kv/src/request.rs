//! Requests, parsed from bytes once and valid from then on.

use std::str;

use skep_guest::Rejection;

use crate::code;

/// The longest key in bytes: long enough for any path or URL worth a key, short enough that keys never dominate a
/// reply.
pub const MAX_KEY: usize = 512;

/// The longest value in bytes. A `put` of it with the longest key, and the `gets` or `scan` that returns it, fit the
/// host's default limit of 1 MiB for a command and for a reply, with the rest of the line.
pub const MAX_VALUE: usize = 1024 * 1024 - 2048;

/// The most items one `scan` returns, so that one command has a bounded cost; the caller goes on where it ended.
pub const MAX_SCAN: usize = 10_000;

/// What `scan` returns without a LIMIT.
const DEFAULT_SCAN: usize = 100;

/// One request. Keys are valid keys, values are of a valid length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Put {
        key: &'a str,
        value: &'a [u8],
    },
    Cas {
        key: &'a str,
        version: u64,
        value: &'a [u8],
    },
    Delete {
        key: &'a str,
    },
    Incr {
        key: &'a str,
        delta: i64,
    },
    Get {
        key: &'a str,
    },
    Gets {
        key: &'a str,
    },
    Scan {
        prefix: &'a str,
        limit: usize,
        after: Option<&'a str>,
    },
    Count {
        prefix: &'a str,
    },
    Stats,
}

impl<'a> Request<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Rejection> {
        let mut words = Words(Some(bytes));
        let request = match words.next() {
            Some(b"put") => {
                let key = words.key("put KEY VALUE")?;
                Request::Put {
                    key,
                    value: words.value("put KEY VALUE")?,
                }
            }
            Some(b"cas") => {
                let key = words.key("cas KEY VERSION VALUE")?;
                let version = words
                    .number("cas KEY VERSION VALUE")?
                    .ok_or_else(|| usage("cas KEY VERSION VALUE"))?;
                Request::Cas {
                    key,
                    version,
                    value: words.value("cas KEY VERSION VALUE")?,
                }
            }
            Some(b"delete") => Request::Delete {
                key: words.key("delete KEY")?,
            },
            Some(b"incr") => {
                let key = words.key("incr KEY [DELTA]")?;
                Request::Incr {
                    key,
                    delta: words.number("incr KEY [DELTA]")?.unwrap_or(1),
                }
            }
            Some(b"get") => Request::Get {
                key: words.key("get KEY")?,
            },
            Some(b"gets") => Request::Gets {
                key: words.key("gets KEY")?,
            },
            Some(b"scan") => {
                let prefix = words.prefix()?;
                let limit = words
                    .number("scan [PREFIX [LIMIT [AFTER]]]")?
                    .unwrap_or(DEFAULT_SCAN);
                if !(1..=MAX_SCAN).contains(&limit) {
                    return Err(bad(format!(
                        "the LIMIT of a scan is a number from 1 to {MAX_SCAN}, not {limit}"
                    )));
                }
                Request::Scan {
                    prefix,
                    limit,
                    after: words.next().map(key).transpose()?,
                }
            }
            Some(b"count") => Request::Count {
                prefix: words.prefix()?,
            },
            Some(b"stats") => Request::Stats,
            _ => {
                let verbs = "put, get, gets, delete, cas, incr, scan, count, stats";
                return Err(bad(format!(
                    "unknown request; the first word must be one of {verbs}"
                )));
            }
        };
        match words.next() {
            None => Ok(request),
            Some(_) => Err(bad(
                "the request has a word too many (keys hold no spaces; percent-encode them)",
            )),
        }
    }
}

/// What follows, split at single spaces; two spaces enclose an empty word.
struct Words<'a>(Option<&'a [u8]>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        let (word, later) = match rest.iter().position(|&byte| byte == b' ') {
            Some(space) => (&rest[..space], Some(&rest[space + 1..])),
            None => (rest, None),
        };
        self.0 = later;
        Some(word)
    }

    fn key(&mut self, form: &str) -> Result<&'a str, Rejection> {
        key(self.next().ok_or_else(|| usage(form))?)
    }

    fn prefix(&mut self) -> Result<&'a str, Rejection> {
        match self.next() {
            None | Some(b"") => Ok(""),
            Some(word) => key(word),
        }
    }

    fn number<N: str::FromStr>(&mut self, form: &str) -> Result<Option<N>, Rejection> {
        let Some(word) = self.next() else {
            return Ok(None);
        };
        let number = str::from_utf8(word).ok().and_then(|word| word.parse().ok());
        number.map(Some).ok_or_else(|| usage(form))
    }

    /// Everything after the space.
    fn value(&mut self, form: &str) -> Result<&'a [u8], Rejection> {
        let value = self.0.take().ok_or_else(|| usage(form))?;
        if value.len() > MAX_VALUE {
            let message = format!(
                "the value has {} bytes, at most {MAX_VALUE} are allowed; split it",
                value.len()
            );
            return Err(Rejection::new(code::VALUE_TOO_LARGE, message));
        }
        Ok(value)
    }
}

fn key(word: &[u8]) -> Result<&str, Rejection> {
    if word.is_empty() || word.len() > MAX_KEY {
        return Err(bad(format!(
            "a key has 1 to {MAX_KEY} bytes, this one has {}",
            word.len()
        )));
    }
    if let Some(byte) = word.iter().find(|byte| byte.is_ascii_control()) {
        return Err(bad(format!(
            "a key holds no control characters; percent-encode byte 0x{byte:02x} as %{byte:02X}"
        )));
    }
    str::from_utf8(word).map_err(|_| bad("a key is UTF-8 text; percent-encode other bytes"))
}

fn usage(form: &str) -> Rejection {
    bad(format!("the request has the form `{form}`"))
}

fn bad(message: impl Into<String>) -> Rejection {
    Rejection::new(code::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_parses() {
        let long = "k".repeat(MAX_KEY);
        for (text, request) in [
            (
                "put a b c\nd",
                Request::Put {
                    key: "a",
                    value: b"b c\nd",
                },
            ),
            (
                "put a ",
                Request::Put {
                    key: "a",
                    value: b"",
                },
            ),
            (
                "put a  b",
                Request::Put {
                    key: "a",
                    value: b" b",
                },
            ),
            (
                "cas a 0 x y",
                Request::Cas {
                    key: "a",
                    version: 0,
                    value: b"x y",
                },
            ),
            ("delete ä%20b", Request::Delete { key: "ä%20b" }),
            ("incr a", Request::Incr { key: "a", delta: 1 }),
            (
                "incr a -9223372036854775808",
                Request::Incr {
                    key: "a",
                    delta: i64::MIN,
                },
            ),
            (&format!("get {long}"), Request::Get { key: &long }),
            ("gets a", Request::Gets { key: "a" }),
            (
                "scan",
                Request::Scan {
                    prefix: "",
                    limit: 100,
                    after: None,
                },
            ),
            (
                "scan a/",
                Request::Scan {
                    prefix: "a/",
                    limit: 100,
                    after: None,
                },
            ),
            (
                "scan  5",
                Request::Scan {
                    prefix: "",
                    limit: 5,
                    after: None,
                },
            ),
            (
                "scan a/ 5 a/b",
                Request::Scan {
                    prefix: "a/",
                    limit: 5,
                    after: Some("a/b"),
                },
            ),
            ("count", Request::Count { prefix: "" }),
            ("count a", Request::Count { prefix: "a" }),
            ("stats", Request::Stats),
        ] {
            assert_eq!(Request::parse(text.as_bytes()), Ok(request), "{text:?}");
        }
        let binary = Request::parse(b"put a \xff\0\n");
        assert_eq!(
            binary,
            Ok(Request::Put {
                key: "a",
                value: b"\xff\0\n"
            })
        );
    }

    #[test]
    fn every_other_form_is_rejected() {
        let long = format!("get {}", "k".repeat(MAX_KEY + 1));
        for text in [
            "",
            " ",
            "PUT a b",
            "put",
            "put a",
            "put  b",
            "get",
            "get ",
            "get a b",
            "get a\n",
            "get a\tb",
            "get a\x7f",
            &long,
            "cas a",
            "cas a 1",
            "cas a -1 x",
            "cas a one x",
            "incr a 1.5",
            "incr a 9223372036854775808",
            "incr a 1 2",
            "scan a 0",
            "scan a 10001",
            "scan a x",
            "scan a 1 ",
            "scan a 1 b c",
            "count a b",
            "stats now",
            "drop a",
        ] {
            let rejection = Request::parse(text.as_bytes()).expect_err(text);
            assert_eq!(rejection.code, code::BAD_REQUEST, "{text:?}");
        }
        assert_eq!(
            Request::parse(b"get \xff").unwrap_err().code,
            code::BAD_REQUEST
        );
    }

    #[test]
    fn the_longest_value_is_the_limit() {
        let request = |len| [b"put a ".as_slice(), &vec![b'v'; len]].concat();
        assert!(Request::parse(&request(MAX_VALUE)).is_ok());
        assert_eq!(
            Request::parse(&request(MAX_VALUE + 1)).unwrap_err().code,
            code::VALUE_TOO_LARGE
        );
    }
}
