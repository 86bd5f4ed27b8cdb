//! All that a machine is between two calls, written down.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use skep_core::id::{ComponentId, LogIndex, Term};
use skep_core::outcome::EntryContext;

use crate::LocalCode;
use crate::wasm::code::rewriting;
use crate::wasm::fault::Failure;
use crate::wasm::memory::{BLOCK_BYTES, Captured, Memory};
use crate::wasm::world::kept::Kept;

/// At the end of every image.
const MAGIC: &[u8; 8] = b"SKEPIMG1";

/// Bytes behind the head: its length, and the magic.
const TRAILER: usize = 4 + MAGIC.len();

/// What is written or left out at once. Every system gives memory in multiples of it, and all must write the same.
const PAGE_BYTES: usize = 4096;

/// The image of a machine: the pages of its memories that are not as in a fresh instance of its component, and the host's part.
///
/// Its globals are among the pages: a machine is frozen before. Machines that have run the same calls from the same start have the
/// same image, byte for byte. It says nothing of the profile, which whoever keeps it must know.
///
/// The layout: the pages, in order of memories and addresses; the [`Head`], as a protobuf message; its length in four bytes, the
/// lowest first; the magic.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    bytes: Bytes,
    head: Arc<Head>,
}

#[derive(Clone, PartialEq, Message)]
struct Head {
    /// Of the rewriting that made the globals' places.
    #[prost(uint32, tag = "1")]
    rewriting: u32,
    #[prost(bytes = "vec", tag = "2")]
    component: Vec<u8>,
    #[prost(message, required, tag = "3")]
    start: Start,
    #[prost(message, required, tag = "4")]
    kept: Kept,
    #[prost(message, repeated, tag = "5")]
    memories: Vec<Pages>,
}

/// The context under which the instance was started.
#[derive(Clone, PartialEq, Message)]
struct Start {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    now: u64,
    #[prost(bytes = "vec", tag = "4")]
    entropy: Vec<u8>,
}

/// Which pages of a memory follow each other in the image.
#[derive(Clone, PartialEq, Message)]
struct Pages {
    /// Number of the first page, and how many there are; and so on.
    #[prost(uint32, repeated, tag = "1")]
    runs: Vec<u32>,
}

impl Pages {
    fn add(&mut self, page: u32) {
        let [.., first, count] = &mut self.runs[..] else {
            self.runs.extend([page, 1]);
            return;
        };
        match *first + *count == page {
            true => *count += 1,
            false => self.runs.extend([page, 1]),
        }
    }

    fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let (runs, _odd) = self.runs.as_chunks::<2>();
        runs.iter()
            .map(|[first, count]| (*first as usize, *count as usize))
    }

    fn bytes(&self) -> usize {
        let bytes = |(_, count): (usize, usize)| count.saturating_mul(PAGE_BYTES);
        self.runs().map(bytes).fold(0, usize::saturating_add)
    }
}

impl From<&EntryContext> for Start {
    fn from(context: &EntryContext) -> Self {
        Self {
            index: context.index.0,
            term: context.term.0,
            now: context.now,
            entropy: context.entropy.to_vec(),
        }
    }
}

impl Image {
    /// Of memories that were captured, of a machine that was started under `start`; `fresh` are those of another instance that was.
    pub(crate) fn write(
        component: ComponentId,
        captured: Vec<Captured>,
        fresh: &[Arc<Memory>],
        start: &EntryContext,
        kept: Kept,
    ) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let mut memories = Vec::new();
        if captured.len() != fresh.len() {
            return Err(damaged(
                "two instances of one component have other memories",
            ));
        }
        for (captured, fresh) in captured.into_iter().zip(fresh) {
            memories.push(write_memory(captured, fresh, &mut bytes)?);
        }
        let head = Head {
            rewriting: rewriting::VERSION,
            component: component.0.to_vec(),
            start: start.into(),
            kept,
            memories,
        };
        let length = head.encoded_len();
        bytes.try_reserve(length + TRAILER).map_err(no_room)?;
        bytes.extend_from_slice(&head.encode_to_vec());
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        Ok(Self {
            bytes: bytes.into(),
            head: Arc::new(head),
        })
    }

    /// Of bytes that somebody has kept, of a machine of this component.
    pub(crate) fn read(component: ComponentId, bytes: Bytes) -> Result<Self, Failure> {
        let rest = (bytes.strip_suffix(MAGIC))
            .ok_or_else(|| damaged("they do not end as every image does"))?;
        let (rest, length) =
            (rest.split_last_chunk::<4>()).ok_or_else(|| damaged("they are too short"))?;
        let pages = (rest.len())
            .checked_sub(u32::from_le_bytes(*length) as usize)
            .ok_or_else(|| damaged("their head is longer than they are"))?;
        let head = Head::decode(&rest[pages..])
            .map_err(|error| damaged(&format!("their head cannot be read: {error}")))?;
        if head.rewriting != rewriting::VERSION {
            let reason = format!(
                "the image was taken by a release that rewrites components in another way ({}, and this one {}): this node needs a snapshot of the saved form",
                head.rewriting,
                rewriting::VERSION
            );
            return Err(Failure::local(LocalCode::Missing, reason));
        }
        if head.component != component.0 {
            return Err(damaged("they are of another component"));
        }
        let listed = head.memories.iter().map(Pages::bytes);
        if listed.fold(0, usize::saturating_add) != pages
            || head.start.entropy.len() != 16
            || !head.kept.is_sound()
        {
            return Err(damaged("their head does not fit what is before it"));
        }
        Ok(Self {
            bytes,
            head: Arc::new(head),
        })
    }

    pub(crate) fn component(&self) -> ComponentId {
        let mut component = ComponentId::default();
        component.0.copy_from_slice(&self.head.component);
        component
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The context under which an instance must be started to become what this is of.
    pub(crate) fn start(&self) -> EntryContext {
        let Start {
            index,
            term,
            now,
            entropy,
        } = &self.head.start;
        let mut start = EntryContext {
            index: LogIndex(*index),
            term: Term(*term),
            now: *now,
            ..EntryContext::default()
        };
        start.entropy.copy_from_slice(entropy);
        start
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.head.kept
    }

    /// Writes the pages into the memories of an instance, as far as these are long enough. True if they all were.
    pub(crate) fn put(&self, memories: &[Arc<Memory>]) -> Result<bool, Failure> {
        if self.head.memories.len() != memories.len() {
            return Err(damaged("they are of a component with other memories"));
        }
        let (mut at, mut all) = (0, true);
        for (pages, memory) in self.head.memories.iter().zip(memories) {
            for (first, count) in pages.runs() {
                let bytes = &self.bytes[at..at + count * PAGE_BYTES];
                all &= memory.put(first * PAGE_BYTES, bytes);
                at += bytes.len();
            }
        }
        Ok(all)
    }
}

fn write_memory(
    mut captured: Captured,
    fresh: &Memory,
    to: &mut Vec<u8>,
) -> Result<Pages, Failure> {
    const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let mut pages = Pages::default();
    for block in 0..captured.blocks() {
        let wrote = captured.read_once(block, |bytes| {
            fresh.read_block(block, |fresh| {
                for (at, page) in bytes.chunks(PAGE_BYTES).enumerate() {
                    let from = (at * PAGE_BYTES).min(fresh.len());
                    let same = &fresh[from..(from + page.len()).min(fresh.len())];
                    let (begins, ends) = page.split_at(same.len());
                    if begins == same && *ends == ZEROES[..ends.len()] {
                        continue;
                    }
                    to.try_reserve(PAGE_BYTES).map_err(no_room)?;
                    to.extend_from_slice(page);
                    to.extend_from_slice(&ZEROES[page.len()..]);
                    pages.add((block * (BLOCK_BYTES / PAGE_BYTES) + at) as u32);
                }
                Ok::<_, Failure>(())
            })
        });
        wrote.map_err(|error| {
            let reason = format!("the memory of a machine cannot be copied: {error}");
            Failure::local(LocalCode::Memory, reason)
        })??;
    }
    Ok(pages)
}

fn no_room(error: std::collections::TryReserveError) -> Failure {
    let reason = format!("there is no memory for the image of a machine: {error}");
    Failure::local(LocalCode::Memory, reason)
}

fn damaged(what: &str) -> Failure {
    let reason = format!("these bytes are no image of this machine: {what}");
    Failure::local(LocalCode::Differs, reason)
}
