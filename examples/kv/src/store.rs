//! The keys and values. Every change is checked before it is made, so a rejection changes nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::str;

use skep_guest::{Rejection, Sink, Source};

use crate::code;
use crate::request::MAX_KEY;

/// The longest reply in bytes: the host's default limit. A `scan` stops before it.
pub const MAX_REPLY: usize = 1024 * 1024;

/// What the line that ends a `scan` needs at most: `MORE`, a space, a key, a newline.
const LAST_LINE: usize = 4 + 1 + MAX_KEY + 1;

#[derive(Default)]
pub(crate) struct Store {
    items: BTreeMap<Box<str>, Item>,
    /// Lengths of all keys and values.
    bytes: u64,
    /// The number of changes made so far, which is the version of the item changed last.
    revision: u64,
}

pub(crate) struct Item {
    pub(crate) version: u64,
    pub(crate) value: Box<[u8]>,
}

impl Store {
    pub(crate) fn get(&self, key: &str) -> Result<&Item, Rejection> {
        self.items
            .get(key)
            .ok_or_else(|| Rejection::new(code::NOT_FOUND, format!("there is no key {key:?}")))
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) -> u64 {
        self.revision += 1;
        self.bytes += value.len() as u64;
        match self.items.get_mut(key) {
            Some(item) => {
                self.bytes -= item.value.len() as u64;
                *item = Item {
                    version: self.revision,
                    value: value.into(),
                };
            }
            None => {
                self.bytes += key.len() as u64;
                self.items.insert(
                    key.into(),
                    Item {
                        version: self.revision,
                        value: value.into(),
                    },
                );
            }
        }
        self.revision
    }

    /// Version 0 stands for "there is no such key".
    pub(crate) fn compare_and_set(
        &mut self,
        key: &str,
        expected: u64,
        value: &[u8],
    ) -> Result<u64, Rejection> {
        let version = self.items.get(key).map_or(0, |item| item.version);
        if version != expected {
            let message =
                format!("{key:?} has version {version}, not {expected}; read it again with `gets`");
            return Err(Rejection::new(code::VERSION_MISMATCH, message));
        }
        Ok(self.put(key, value))
    }

    pub(crate) fn delete(&mut self, key: &str) -> Result<u64, Rejection> {
        let value_len = self.get(key)?.value.len();
        self.items.remove(key);
        self.bytes -= (key.len() + value_len) as u64;
        self.revision += 1;
        Ok(self.revision)
    }

    /// A missing key counts from 0.
    pub(crate) fn increment(&mut self, key: &str, delta: i64) -> Result<i64, Rejection> {
        let number = match self.items.get(key) {
            None => 0,
            Some(item) => str::from_utf8(&item.value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| {
                    Rejection::new(
                        code::NOT_A_NUMBER,
                        format!("the value of {key:?} is no 64-bit decimal number"),
                    )
                })?,
        };
        let sum = i64::checked_add(number, delta).ok_or_else(|| {
            Rejection::new(
                code::NOT_A_NUMBER,
                format!("{number} plus {delta} does not fit in 64 bits"),
            )
        })?;
        self.put(key, sum.to_string().as_bytes());
        Ok(sum)
    }

    /// Items in order of their keys' bytes: `KEY VERSION LENGTH`, newline, the value, newline. Then `END`, or `MORE
    /// KEY` with the last key shown.
    pub(crate) fn scan(&self, prefix: &str, limit: usize, after: Option<&str>) -> Vec<u8> {
        let mut reply = Vec::new();
        let mut last: Option<&str> = None;
        for (shown, (key, item)) in self.range(prefix, after).enumerate() {
            let head = format!("{key} {} {}\n", item.version, item.value.len());
            let len = reply.len() + head.len() + item.value.len() + 1;
            if shown == limit || len + LAST_LINE > MAX_REPLY {
                // The first item always fits: limits are at least 1, and MAX_VALUE leaves room for both lines.
                let last = last.unwrap_or_default();
                reply.extend_from_slice(format!("MORE {last}\n").as_bytes());
                return reply;
            }
            reply.extend_from_slice(head.as_bytes());
            reply.extend_from_slice(&item.value);
            reply.push(b'\n');
            last = Some(key);
        }
        reply.extend_from_slice(b"END\n");
        reply
    }

    pub(crate) fn count(&self, prefix: &str) -> usize {
        if prefix.is_empty() {
            self.len()
        } else {
            self.range(prefix, None).count()
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn save(&self, to: &mut Sink<'_>) {
        to.put_u64(self.revision);
        to.put_u64(self.items.len() as u64);
        for (key, item) in &self.items {
            to.put_bytes(key.as_bytes());
            to.put_u64(item.version);
            to.put_bytes(&item.value);
        }
    }

    pub(crate) fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut store = Store {
            revision: from.take_u64()?,
            ..Store::default()
        };
        for _ in 0..from.take_u64()? {
            let key = from.take_string()?.into_boxed_str();
            let item = Item {
                version: from.take_u64()?,
                value: from.take_bytes()?.into(),
            };
            store.bytes += (key.len() + item.value.len()) as u64;
            if store
                .items
                .last_key_value()
                .is_some_and(|(last, _)| *last >= key)
            {
                return Err(Rejection::new(
                    code::BAD_REQUEST,
                    format!("the snapshot's keys are out of order at {key:?}"),
                ));
            }
            store.items.insert(key, item);
        }
        Ok(store)
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a str, &'a Item)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.items
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(key, item)| (&**key, item))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }
}
