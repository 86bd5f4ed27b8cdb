//! Machines with one planted mistake each, one file a mistake, and what they have in common: a map from keys to values
//! that is kept as it should be. A machine adds its mistake by wrapping it.

use std::collections::BTreeMap;

use skep_guest::{Descriptor, Rejection, Sink, Source};

/// The code of the rejection of an unknown request.
pub const UNKNOWN: u32 = 400;

/// Keys and values, in order.
#[derive(Default)]
pub struct Pairs(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl Pairs {
    /// `put KEY VALUE` answers how many keys there are, `get KEY` the value or nothing, `ping` says `pong`.
    ///
    /// # Errors
    ///
    /// [`UNKNOWN`] for anything else.
    pub fn apply(&mut self, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some((key, value)) = put(request) {
            self.0.insert(key.to_vec(), value.to_vec());
            return Ok(self.0.len().to_string().into_bytes());
        }
        self.query(request)
    }

    /// `get` and `ping` of [`apply`](Self::apply).
    ///
    /// # Errors
    ///
    /// [`UNKNOWN`] for anything else.
    pub fn query(&self, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request == b"ping" {
            return Ok(b"pong".to_vec());
        }
        match request.strip_prefix(b"get ") {
            Some(key) => Ok(self.0.get(key).cloned().unwrap_or_default()),
            None => Err(Rejection::new(
                UNKNOWN,
                "one of: put KEY VALUE, get KEY, ping",
            )),
        }
    }

    /// Writes all pairs.
    pub fn save(&self, to: &mut Sink<'_>) {
        to.put_u32(self.0.len() as u32);
        for (key, value) in &self.0 {
            to.put_bytes(key);
            to.put_bytes(value);
        }
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// If the bytes end too early.
    pub fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut pairs = BTreeMap::new();
        for _ in 0..from.take_u32()? {
            pairs.insert(from.take_bytes()?, from.take_bytes()?);
        }
        Ok(Self(pairs))
    }
}

/// Key and value of `put KEY VALUE`.
pub fn put(request: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = request.strip_prefix(b"put ")?;
    let space = rest.iter().position(|byte| *byte == b' ')?;
    Some((&rest[..space], &rest[space + 1..]))
}

/// The number behind a word: `number(b"spin 5", "spin")` is 5. `None` when the request is another.
pub fn number(request: &[u8], word: &str) -> Option<u64> {
    std::str::from_utf8(request)
        .ok()?
        .strip_prefix(word)?
        .strip_prefix(' ')?
        .parse()
        .ok()
}

/// The descriptor of a machine of this name.
pub fn descriptor(name: &'static str) -> Descriptor {
    Descriptor {
        name,
        version: env!("CARGO_PKG_VERSION"),
        schema: 1,
        oldest_schema: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_survive_their_bytes() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.apply(b"put a 1 2").unwrap(), b"1");
        assert_eq!(pairs.apply(b"get a").unwrap(), b"1 2");
        assert_eq!(pairs.apply(b"boo").unwrap_err().code, UNKNOWN);
        let mut bytes = Vec::new();
        let mut write = |chunk: &[u8]| bytes.extend_from_slice(chunk);
        let mut sink = Sink::new(&mut write);
        pairs.save(&mut sink);
        drop(sink);
        let mut rest = &bytes[..];
        let len = rest.len() as u64;
        let mut read = |len: u32| {
            let (chunk, later) = rest.split_at(rest.len().min(len as usize));
            rest = later;
            chunk.to_vec()
        };
        let restored = Pairs::restore(&mut Source::new(len, &mut read)).unwrap();
        assert_eq!(restored.0, pairs.0);
        assert_eq!(number(b"spin 5", "spin"), Some(5));
    }
}
