//! Requests and replies of the key-value machine, from bytes.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::blob::Blob;
use crate::error::CheckerError;
use crate::history::{Operation, Outcome, RawOperation, Reply, Via};

use super::KvOperation;
use super::command::{Command, Input, Output};

/// The most reads that the scans of a history may be taken for: each is an operation in memory, some hundred bytes.
pub const MAX_SCANNED: usize = 4_000_000;

/// What a scan shows without a limit of its own.
const DEFAULT_SCAN: usize = 100;

/// Parses a history. Queries of unknown outcome are left out: they say nothing. A scan becomes a `gets` of every key that it
/// covers and that the history or a scan names, all with its id.
///
/// # Errors
/// [`CheckerError::Request`] for a request that the model does not know, that the machine always rejects, or that changes
/// and was sent as a query; [`CheckerError::Reply`] for an answer that the machine does not give to the request in any
/// state; [`CheckerError::Interval`] for an operation that returned before it was called; [`CheckerError::TooLarge`].
pub fn parse(history: &[RawOperation]) -> Result<Vec<KvOperation>, CheckerError> {
    let mut operations = Vec::with_capacity(history.len());
    let mut scans = Vec::new();
    let mut keys: BTreeSet<Arc<str>> = BTreeSet::new();
    for raw in history {
        if raw.ret < raw.call && raw.outcome != Outcome::Unknown {
            return Err(CheckerError::Interval {
                id: raw.id,
                call: raw.call,
                ret: raw.ret,
            });
        }
        let asked = request(raw.input.as_slice())
            .map_err(|reason| CheckerError::Request { id: raw.id, reason })?;
        let wrong = |reason| CheckerError::Reply { id: raw.id, reason };
        match asked {
            Request::One(input) => {
                let reads = matches!(input.command, Command::Get | Command::Gets);
                if !reads && raw.via != Via::Log {
                    return Err(CheckerError::Request {
                        id: raw.id,
                        reason: format!("`{input}` changes the state and cannot be a query"),
                    });
                }
                let input = shared(input, &mut keys);
                let outcome = match &raw.outcome {
                    Outcome::Ok(answer) => {
                        Outcome::Ok(reply(&input, answer).ok_or_else(|| {
                            wrong(format!("`{answer}` is no answer to `{input}`"))
                        })?)
                    }
                    Outcome::Failed => Outcome::Failed,
                    Outcome::Unknown if reads => continue,
                    Outcome::Unknown => Outcome::Unknown,
                };
                operations.push(with(raw, input, outcome));
            }
            Request::Scan(scan) => {
                let Outcome::Ok(answer) = &raw.outcome else {
                    continue;
                };
                let shown = scan.reply(answer).map_err(|reason| {
                    wrong(format!("the answer to a scan is malformed: {reason}"))
                })?;
                keys.extend(shown.items.iter().map(|(key, ..)| Arc::from(*key)));
                scans.push((raw, scan, shown));
            }
        }
    }
    let scanned = operations.len();
    for (raw, scan, shown) in scans {
        let mut items = shown.items.into_iter().peekable();
        for key in scan.covers(&keys, shown.more) {
            let output = match items.next_if(|(shown, ..)| *shown == &**key) {
                Some((_, version, value)) => Output::Versioned(version, value),
                None => Output::NotFound,
            };
            let input = Input {
                key: Arc::clone(key),
                command: Command::Gets,
            };
            operations.push(with(raw, input, Outcome::Ok(output)));
            if operations.len() - scanned > MAX_SCANNED {
                return Err(CheckerError::TooLarge {
                    what: "keys in its scans",
                    limit: MAX_SCANNED,
                });
            }
        }
    }
    Ok(operations)
}

fn with(raw: &RawOperation, input: Input, outcome: Outcome<Output>) -> KvOperation {
    Operation {
        id: raw.id,
        client: raw.client,
        via: raw.via,
        input,
        call: raw.call,
        ret: raw.ret,
        outcome,
        place: raw.place,
    }
}

/// The input with the copy of its key that all share.
fn shared(input: Input, keys: &mut BTreeSet<Arc<str>>) -> Input {
    if let Some(key) = keys.get(&input.key) {
        return Input {
            key: Arc::clone(key),
            ..input
        };
    }
    keys.insert(Arc::clone(&input.key));
    input
}

enum Request<'a> {
    One(Input),
    Scan(Scan<'a>),
}

fn request(bytes: &[u8]) -> Result<Request<'_>, String> {
    let mut words = bytes.splitn(3, |byte| *byte == b' ');
    let verb = words.next().unwrap_or_default();
    if verb == b"scan" {
        return Scan::request(bytes).map(Request::Scan);
    }
    let malformed = || {
        format!(
            "`{}` is no request that is checked",
            Blob::from(bytes.to_vec())
        )
    };
    let word = words.next().ok_or_else(malformed)?;
    let key = key(word).ok_or_else(malformed)?;
    let rest = words.next();
    let command = match (verb, rest) {
        (b"put", Some(value)) => Command::Put(value.to_vec().into()),
        (b"cas", Some(rest)) => {
            let space = rest.iter().position(|byte| *byte == b' ');
            let (version, value) = rest.split_at(space.ok_or_else(malformed)?);
            Command::Cas {
                version: number(version).ok_or_else(malformed)?,
                value: value[1..].to_vec().into(),
            }
        }
        (b"delete", None) => Command::Delete,
        (b"incr", None) => Command::Incr(1),
        (b"incr", Some(delta)) => Command::Incr(number(delta).ok_or_else(malformed)?),
        (b"get", None) => Command::Get,
        (b"gets", None) => Command::Gets,
        _ => return Err(malformed()),
    };
    Ok(Request::One(Input {
        key: key.into(),
        command,
    }))
}

fn reply(input: &Input, reply: &Reply) -> Option<Output> {
    match (&input.command, reply) {
        (Command::Put(_) | Command::Cas { .. } | Command::Delete, Reply::Ok(bytes)) => {
            version(bytes.as_slice().strip_prefix(b"OK ")?).map(Output::Changed)
        }
        (Command::Incr(_), Reply::Ok(bytes)) => number(bytes.as_slice()).map(Output::Number),
        (Command::Get, Reply::Ok(bytes)) => Some(Output::Value(bytes.clone())),
        (Command::Gets, Reply::Ok(bytes)) => {
            let space = bytes.as_slice().iter().position(|byte| *byte == b' ')?;
            let value = bytes.0.slice(space + 1..);
            version(&bytes.as_slice()[..space])
                .map(|version| Output::Versioned(version, value.into()))
        }
        (Command::Delete | Command::Get | Command::Gets, Reply::Rejected { code: 404, .. }) => {
            Some(Output::NotFound)
        }
        (Command::Cas { .. }, Reply::Rejected { code: 409, message }) => {
            let rest = message.strip_prefix(&format!("{:?} has version ", &*input.key))?;
            let (found, _) = rest.split_once(',')?;
            number(found.as_bytes()).map(Output::Mismatch)
        }
        (Command::Incr(_), Reply::Rejected { code: 422, .. }) => Some(Output::NotANumber),
        _ => None,
    }
}

/// A key as the machine takes it, but for its length: an answer to one that is too long is no answer of the model.
fn key(word: &[u8]) -> Option<&str> {
    let valid = !word.is_empty()
        && !word
            .iter()
            .any(|byte| byte.is_ascii_control() || *byte == b' ');
    valid.then(|| str::from_utf8(word).ok()).flatten()
}

fn number<N: std::str::FromStr>(word: &[u8]) -> Option<N> {
    str::from_utf8(word).ok()?.parse().ok()
}

/// Versions count changes from 1.
fn version(word: &[u8]) -> Option<u64> {
    number(word).filter(|version| *version != 0)
}

/// A scan: the keys that begin with the prefix and are greater than `after`.
struct Scan<'a> {
    prefix: &'a str,
    limit: usize,
    after: Option<&'a str>,
}

/// What a scan showed.
struct Shown<'a> {
    items: Vec<(&'a str, u64, Blob)>,
    /// There may be others behind this key.
    more: Option<&'a str>,
}

impl<'a> Scan<'a> {
    fn request(bytes: &'a [u8]) -> Result<Self, String> {
        let malformed = || format!("`{}` is no scan", Blob::from(bytes.to_vec()));
        let mut words = bytes.split(|byte| *byte == b' ').skip(1);
        let prefix = match words.next() {
            None | Some(b"") => "",
            Some(word) => key(word).ok_or_else(malformed)?,
        };
        let limit = match words.next() {
            None => DEFAULT_SCAN,
            Some(word) => number(word).ok_or_else(malformed)?,
        };
        let after = words.next().map(|word| key(word).ok_or_else(malformed));
        match words.next() {
            None => Ok(Self {
                prefix,
                limit,
                after: after.transpose()?,
            }),
            Some(_) => Err(malformed()),
        }
    }

    fn reply(&self, reply: &'a Reply) -> Result<Shown<'a>, String> {
        let Reply::Ok(bytes) = reply else {
            return Err(format!("`{reply}`"));
        };
        let mut items: Vec<(&'a str, u64, Blob)> = Vec::new();
        let mut at = 0;
        loop {
            let rest = &bytes.as_slice()[at..];
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .ok_or("it has no last line")?;
            let line = str::from_utf8(&rest[..end]).map_err(|_| "a key is not UTF-8")?;
            at += end + 1;
            let words: Vec<&'a str> = line.split(' ').collect();
            let more = match words[..] {
                ["END"] => None,
                ["MORE", key] => Some(key),
                [key, version_word, len] => {
                    let version = version(version_word.as_bytes());
                    let len = len
                        .parse::<usize>()
                        .ok()
                        .and_then(|len| at.checked_add(len));
                    let (Some(version), Some(end)) = (version, len) else {
                        return Err(format!("`{line}` is no item"));
                    };
                    if bytes.as_slice().get(end) != Some(&b'\n') {
                        return Err(format!(
                            "the value of `{line}` does not end where it should"
                        ));
                    }
                    let last = items.last().map(|(key, ..)| *key).or(self.after);
                    if !key.starts_with(self.prefix) || last.is_some_and(|last| last >= key) {
                        return Err(format!("`{line}` is out of order or was not asked for"));
                    }
                    items.push((key, version, bytes.0.slice(at..end).into()));
                    at = end + 1;
                    continue;
                }
                _ => return Err(format!("`{line}` is neither an item nor the end")),
            };
            if at != bytes.as_slice().len() {
                return Err("something follows its last line".to_owned());
            }
            if items.len() > self.limit {
                return Err(format!("{} items, asked for {}", items.len(), self.limit));
            }
            if more.is_some() && more != items.last().map(|(key, ..)| *key) {
                return Err("its last line names another key than the last item".to_owned());
            }
            return Ok(Shown { items, more });
        }
    }

    /// The keys of which the answer tells whether they are there.
    fn covers<'k>(
        &self,
        keys: &'k BTreeSet<Arc<str>>,
        more: Option<&str>,
    ) -> impl Iterator<Item = &'k Arc<str>> {
        let start = match self.after {
            Some(after) if after >= self.prefix => Bound::Excluded(after),
            _ => Bound::Included(self.prefix),
        };
        let end = more.map_or(Bound::Unbounded, Bound::Included);
        // A page may end before the next begins, and a range must not.
        let empty = more.is_some_and(|more| more < self.prefix || self.after >= Some(more));
        let range = (!empty).then(|| keys.range::<str, _>((start, end)));
        let prefix = self.prefix.to_owned();
        range
            .into_iter()
            .flatten()
            .take_while(move |key| key.starts_with(&prefix))
    }
}
