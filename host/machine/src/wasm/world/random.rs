//! Random streams that are the same on every replica.

use sha2::{Digest, Sha256};
use skep_core::outcome::EntryContext;

/// Bytes of random that one call may draw, so that the host's work in a call is bounded.
pub(crate) const MAX_RANDOM_BYTES: u64 = 16 << 20;

/// One call into the guest: what its random streams are keyed by, so that a call draws the same bytes when it is
/// replayed, whatever ran before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallKey {
    pub(crate) entropy: [u8; 16],
    pub(crate) index: u64,
    /// Name of the export, and which of several in one entry.
    pub(crate) call: (&'static str, u32),
}

impl CallKey {
    pub(crate) fn new(context: &EntryContext, call: &'static str, ordinal: u32) -> Self {
        Self {
            entropy: context.entropy,
            index: context.index.0,
            call: (call, ordinal),
        }
    }

    fn key(&self, domain: &str) -> [u8; 32] {
        let (call, ordinal) = self.call;
        let mut hash = Sha256::new();
        for part in [
            b"skep random 1".as_slice(),
            domain.as_bytes(),
            call.as_bytes(),
            &self.entropy,
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(self.index.to_le_bytes());
        hash.update(ordinal.to_le_bytes());
        hash.finalize().into()
    }

    /// Two words that stay the same for the life of an instance.
    pub(crate) fn seed(&self) -> (u64, u64) {
        let mut stream = Stream::new(self.key("insecure-seed"));
        (stream.next_u64(), stream.next_u64())
    }
}

/// The streams of one call, made when they are first read.
#[derive(Debug)]
pub(crate) struct Random {
    key: CallKey,
    entropy: Option<Stream>,
    secure: Option<Stream>,
    insecure: Option<Stream>,
}

impl Random {
    pub(crate) fn new(key: CallKey) -> Self {
        Self {
            key,
            entropy: None,
            secure: None,
            insecure: None,
        }
    }

    /// `skep:machine/entropy`.
    pub(crate) fn entropy(&mut self) -> &mut Stream {
        self.entropy
            .get_or_insert_with(|| Stream::new(self.key.key("entropy")))
    }

    /// `wasi:random/random`.
    pub(crate) fn secure(&mut self) -> &mut Stream {
        self.secure
            .get_or_insert_with(|| Stream::new(self.key.key("random")))
    }

    /// `wasi:random/insecure`.
    pub(crate) fn insecure(&mut self) -> &mut Stream {
        self.insecure
            .get_or_insert_with(|| Stream::new(self.key.key("insecure")))
    }
}

/// SHA-256 in counter mode.
#[derive(Debug)]
pub(crate) struct Stream {
    key: [u8; 32],
    counter: u64,
    block: [u8; 32],
    taken: usize,
}

impl Stream {
    fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            counter: 0,
            block: [0; 32],
            taken: 32,
        }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.taken == self.block.len() {
                let hash = Sha256::new()
                    .chain_update(self.key)
                    .chain_update(self.counter.to_le_bytes());
                self.block = hash.finalize().into();
                self.counter += 1;
                self.taken = 0;
            }
            let len = bytes.len().min(self.block.len() - self.taken);
            let (now, later) = bytes.split_at_mut(len);
            now.copy_from_slice(&self.block[self.taken..self.taken + len]);
            self.taken += len;
            bytes = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u64, call: &'static str, ordinal: u32) -> CallKey {
        CallKey {
            entropy: [7; 16],
            index,
            call: (call, ordinal),
        }
    }

    #[test]
    fn a_stream_does_not_depend_on_how_it_is_read() {
        let whole = Random::new(key(1, "apply", 0)).secure().bytes(100);
        let mut random = Random::new(key(1, "apply", 0));
        let parts = [1, 30, 2, 60, 7]
            .into_iter()
            .flat_map(|len| random.secure().bytes(len))
            .collect::<Vec<_>>();
        assert_eq!(whole, parts);
    }

    #[test]
    fn every_call_and_every_stream_is_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for (index, call, ordinal) in [
            (1, "apply", 0),
            (2, "apply", 0),
            (1, "query", 0),
            (1, "apply", 1),
        ] {
            let mut random = Random::new(key(index, call, ordinal));
            assert!(seen.insert(random.entropy().next_u64()));
            assert!(seen.insert(random.secure().next_u64()));
            assert!(seen.insert(random.insecure().next_u64()));
            assert!(seen.insert(key(index, call, ordinal).seed().0));
        }
    }
}
