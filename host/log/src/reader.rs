//! Entries read back from the files, beside the thread that writes them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use skep_types::shared::lock;
use skep_vfs::{Vfs, VfsFile};

use crate::error::LogError;
use crate::frame::{Body, FRAME_HEADER, FrameHeader, Seed, decode_body};
use crate::record::{Entry, GroupKey};
use crate::segment::SegmentName;
use crate::table::{FramePlace, GroupTable, Span};

/// Reads durable entries of a log that somebody else writes.
///
/// *Concurrency*: clones share the log; any thread. A read holds nobody up: it looks up where the entries are and lets go
/// before it opens a file. *Failure*: an error changes nothing, for the log neither; it is usable as before.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) store: [u8; 16],
    pub(crate) table: Arc<Mutex<GroupTable>>,
}

impl LogReader {
    /// Entries of a group from `first` to `last`, as many of them as have about `bytes` bytes, but at least one. `None` if the
    /// log does not hold the first one any more. They must be durable: what was appended since may be on its way to the file.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if the file is damaged there; [`LogError::Io`].
    pub fn entries(
        &self,
        key: GroupKey,
        first: u64,
        last: u64,
        bytes: u64,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut read = 0;
        let mut spans = SpanReader::default();
        let mut next = first;
        while next <= last && (entries.is_empty() || read < bytes) {
            let Some(span) = self.span(key, next) else {
                break;
            };
            let found = match spans.entries((&self.dir, &self.store), key, &span, |path| {
                self.vfs.open(path)
            }) {
                Ok(found) => found,
                // Collection has moved or freed it meanwhile; it is looked up again.
                Err(_) if self.span(key, next) != Some(span) => continue,
                Err(_) if !entries.is_empty() => break,
                Err(error) => return Err(error),
            };
            read += span.place.len;
            next = span.last + 1;
            let wanted = |entry: &Entry| (first..=last).contains(&entry.index);
            entries.extend(found.into_iter().filter(wanted));
        }
        Ok((!entries.is_empty()).then_some(entries))
    }

    /// The frame that holds an entry.
    fn span(&self, key: GroupKey, index: u64) -> Option<Span> {
        let table = lock(&self.table);
        let spans = &table.groups.get(&key)?.spans;
        let span = spans.get(spans.partition_point(|span| span.last < index))?;
        (span.first <= index).then_some(*span)
    }
}

/// Reads live entries back, keeping the segment it used last open.
#[derive(Default)]
pub(crate) struct SpanReader {
    open: Option<(u64, Box<dyn VfsFile>)>,
}

impl SpanReader {
    /// The entries of a span of the log of `store` in `dir`, whose files `open` opens.
    pub(crate) fn entries(
        &mut self,
        (dir, store): (&Path, &[u8; 16]),
        key: GroupKey,
        span: &Span,
        open: impl FnOnce(&Path) -> io::Result<Box<dyn VfsFile>>,
    ) -> Result<Vec<Entry>, LogError> {
        let segment = span.place.segment;
        let path = SegmentName::Segment(segment).path(dir);
        let file = match self.open.take() {
            Some((opened, file)) if opened == segment => file,
            _ => open(&path).map_err(LogError::io("open", &path))?,
        };
        let entries = read_entries(&*file, &path, Seed::new(store, segment), key, span)?;
        self.open = Some((segment, file));
        Ok(entries)
    }
}

fn read_entries(
    file: &dyn VfsFile,
    path: &Path,
    seed: Seed,
    key: GroupKey,
    span: &Span,
) -> Result<Vec<Entry>, LogError> {
    let FramePlace { offset, len, .. } = span.place;
    let corrupt = |reason: &str| LogError::corrupt(path, offset, reason);
    let mut frame = vec![0; len as usize];
    let read = file
        .read_at(offset, &mut frame)
        .map_err(LogError::io("read", path))?;
    let sound = FrameHeader::parse(&frame[..read], seed).filter(|header| {
        let body = frame.get(FRAME_HEADER..FRAME_HEADER + header.body_len as usize);
        header.key == key && body.is_some_and(|body| header.body_is_sound(body, seed))
    });
    let header = sound.ok_or_else(|| {
        corrupt("a frame that was sound when it was written does not verify any more")
    })?;
    let body = Bytes::from(frame).slice(FRAME_HEADER..FRAME_HEADER + header.body_len as usize);
    let record = match decode_body(key, body).map_err(corrupt)? {
        Body::Record(record) | Body::Rewrite { record, .. } => record,
        Body::Checkpoint { .. } => return Err(corrupt("a checkpoint where entries were written")),
    };
    let live = record
        .entries
        .into_iter()
        .filter(|entry| (span.first..=span.last).contains(&entry.index));
    let live: Vec<Entry> = live.collect();
    if live.len() as u64 != span.last - span.first + 1 {
        return Err(corrupt("a frame holds fewer entries than were written"));
    }
    Ok(live)
}
