//! A replicated key-value machine: put, get, delete, compare-and-set, prefix scans and counters over text requests.
//!
//! `README.md` beside this crate's manifest documents every request, reply and code, and is the tutorial on writing
//! such a machine.

mod members;
mod request;
mod store;

use skep_guest::{ConfChange, Context, Descriptor, Machine, Rejection, Sink, Source, StatusChange};

use members::Membership;
use request::Request;
use store::Store;

pub use request::{MAX_KEY, MAX_SCAN, MAX_VALUE};
pub use store::MAX_REPLY;

/// The codes of this machine's rejections. They mean what the HTTP status codes of the same numbers mean.
pub mod code {
    /// The request is not one of the documented forms.
    pub const BAD_REQUEST: u32 = 400;
    /// There is no such key.
    pub const NOT_FOUND: u32 = 404;
    /// The request changes state and came as a query.
    pub const NOT_A_QUERY: u32 = 405;
    /// The key has another version than `cas` expects.
    pub const VERSION_MISMATCH: u32 = 409;
    /// The value is longer than [`MAX_VALUE`](crate::MAX_VALUE).
    pub const VALUE_TOO_LARGE: u32 = 413;
    /// The value is no decimal number, or the sum would not fit in 64 bits.
    pub const NOT_A_NUMBER: u32 = 422;
}

/// The machine: the keys and values, how many requests it answered, and what it knows of its group.
#[derive(Default)]
pub struct Kv {
    store: Store,
    applied: u64,
    group: Membership,
}

impl Machine for Kv {
    fn describe() -> Descriptor {
        Descriptor {
            name: "kv",
            version: env!("CARGO_PKG_VERSION"),
            schema: 1,
            oldest_schema: 1,
        }
    }

    fn init(&mut self, _ctx: &Context, config: &[u8]) -> Result<(), Rejection> {
        if config.is_empty() {
            return Ok(());
        }
        Err(Rejection::new(
            code::BAD_REQUEST,
            "kv takes no configuration; create the group with an empty one",
        ))
    }

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        let reply = match Request::parse(request)? {
            Request::Put { key, value } => ok(self.store.put(key, value)),
            Request::Cas {
                key,
                version,
                value,
            } => ok(self.store.compare_and_set(key, version, value)?),
            Request::Delete { key } => ok(self.store.delete(key)?),
            Request::Incr { key, delta } => {
                self.store.increment(key, delta)?.to_string().into_bytes()
            }
            read => self.read(read)?,
        };
        self.applied += 1;
        Ok(reply)
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.read(Request::parse(request)?)
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        to.put_u64(self.applied);
        self.group.save(to);
        self.store.save(to);
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        let applied = from.take_u64()?;
        let group = Membership::restore(from)?;
        let store = Store::restore(from)?;
        from.finish()?;
        Ok(Kv {
            store,
            applied,
            group,
        })
    }

    fn apply_conf_change(&mut self, _ctx: &Context, change: &ConfChange) -> Result<(), Rejection> {
        self.group.conf_changed(change);
        Ok(())
    }

    fn process_status_change(&mut self, _ctx: &Context, event: &StatusChange) {
        let StatusChange::LeaderChanged(change) = event;
        self.group.leader_changed(change);
    }
}

impl Kv {
    fn read(&self, request: Request<'_>) -> Result<Vec<u8>, Rejection> {
        match request {
            Request::Get { key } => Ok(self.store.get(key)?.value.to_vec()),
            Request::Gets { key } => {
                let item = self.store.get(key)?;
                let mut reply = format!("{} ", item.version).into_bytes();
                reply.extend_from_slice(&item.value);
                Ok(reply)
            }
            Request::Scan {
                prefix,
                limit,
                after,
            } => Ok(self.store.scan(prefix, limit, after)),
            Request::Count { prefix } => Ok(self.store.count(prefix).to_string().into_bytes()),
            Request::Stats => Ok(self.stats().into_bytes()),
            Request::Put { .. }
            | Request::Cas { .. }
            | Request::Delete { .. }
            | Request::Incr { .. } => Err(Rejection::new(
                code::NOT_A_QUERY,
                "this request changes the state; propose it instead of querying",
            )),
        }
    }

    fn stats(&self) -> String {
        format!(
            "keys {}\nbytes {}\nrevision {}\napplied {}\n{}",
            self.store.len(),
            self.store.bytes(),
            self.store.revision(),
            self.applied,
            self.group
        )
    }
}

fn ok(version: u64) -> Vec<u8> {
    format!("OK {version}").into_bytes()
}

skep_guest::export!(Kv);
