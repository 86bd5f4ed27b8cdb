//! The log: appends records, makes them durable, and rolls from segment to segment.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use skep_types::past::Durable;
use skep_types::shared::lock;
use skep_vfs::Vfs;

use crate::error::LogError;
use crate::frame::{
    Carried, FRAME_HEADER, FrameContext, Place, body_bound, encode_checkpoint, encode_record,
    frame_len,
};
use crate::options::LogOptions;
use crate::reader::LogReader;
use crate::record::Record;
use crate::recovery::{Recovered, replay};
use crate::segment::{ActiveSegment, SEGMENT_HEADER, SegmentHeader};
use crate::stats::{Counters, LogStats};
use crate::table::{FramePlace, GroupTable};

/// The write-ahead log of a node.
///
/// *Concurrency*: one owner; [`LogWriter`](crate::LogWriter) shares it. *Failure*: an error that
/// [`is_record_error`](LogError::is_record_error) changed nothing. After any other error of `append`, `sync` or
/// `collect` the log is poisoned: what is on disk is unknown until it is opened anew, so every further call answers
/// [`LogError::Poisoned`].
#[derive(Debug)]
pub struct Log {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) options: LogOptions,
    /// Shared with those who read entries back.
    pub(crate) table: Arc<Mutex<GroupTable>>,
    pub(crate) active: ActiveSegment,
    /// Sequence and end of the full segments, oldest first.
    pub(crate) sealed: VecDeque<(u64, u64)>,
    pub(crate) first_live: u64,
    pub(crate) spares: Vec<PathBuf>,
    /// Whether collection may find something to do.
    pub(crate) collect_due: bool,
    pub(crate) counters: Arc<Counters>,
    /// Where the log ended when it was opened.
    pub(crate) began: Durable,
    /// How far everything is durable now, for others to read.
    pub(crate) durable: Arc<AtomicU64>,
    /// Frames that were not handed to the system yet.
    buffer: Vec<u8>,
    poisoned: Option<String>,
}

/// Frames are handed to the system when this many bytes have gathered, so that a large round does not double in memory.
const BUFFER_BYTES: usize = 4 << 20;

impl Log {
    /// Opens the log in `dir`, or makes one there. The caller holds the directory's lock ([`Store`](crate::Store)).
    ///
    /// A torn tail, which no sync covered, is dropped. Appending always goes on in a fresh segment, so nothing that an
    /// interrupted write left behind can come back.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] and [`LogError::MissingSegment`] if acknowledged data is damaged or gone;
    /// [`LogError::WrongStore`], [`LogError::UnsupportedFormat`], [`LogError::InvalidOptions`], [`LogError::Io`].
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: LogOptions,
    ) -> Result<(Log, Recovered), LogError> {
        options.check()?;
        vfs.create_dir_all(dir)
            .map_err(LogError::io("create", dir))?;
        let replayed = replay(&*vfs, dir, &options)?;
        for path in &replayed.leftovers {
            vfs.remove(path).map_err(LogError::io("remove", path))?;
        }
        if !replayed.leftovers.is_empty() {
            vfs.sync_dir(dir).map_err(LogError::io("sync", dir))?;
        }
        let last = replayed.segments.back().copied();
        let header = SegmentHeader {
            store: options.store,
            sequence: last.map_or(1, |(sequence, _)| sequence + 1),
            previous_end: last.map_or(0, |(_, end)| end),
            first_live: replayed.first_live,
        };
        let active = ActiveSegment::create(&*vfs, dir, header, &options, None)?;
        let log = Log {
            vfs,
            dir: dir.to_path_buf(),
            options,
            table: Arc::new(Mutex::new(replayed.table)),
            active,
            sealed: replayed.segments,
            first_live: replayed.first_live,
            spares: Vec::new(),
            collect_due: true,
            counters: Arc::default(),
            began: last.map_or(Durable::default(), |(sequence, end)| {
                Durable(Place::new(sequence, end).0)
            }),
            durable: Arc::default(),
            buffer: Vec::new(),
            poisoned: None,
        };
        log.publish();
        Ok((log, replayed.recovered))
    }

    /// Adds a record to the write buffer. It is durable after the next [`Log::sync`], or earlier.
    ///
    /// # Errors
    /// [`LogError::Removed`] for a replica with a tombstone; [`LogError::RecordTooLarge`]; [`LogError::InvalidRecord`] if
    /// its entries are not contiguous or leave a gap, if it truncates beyond the log or beyond the group's durable
    /// snapshot, if it commits beyond the log, if it resets without a position (or, for a known group, without a
    /// snapshot), or if a tombstone carries more. These change nothing. Anything else poisons the log.
    pub fn append(&mut self, record: &Record) -> Result<(), LogError> {
        self.usable()?;
        let table = lock(&self.table);
        if table.is_removed(record) {
            return Err(LogError::Removed { key: record.key });
        }
        let size = body_bound(record);
        if size > self.options.max_record_bytes {
            return Err(LogError::RecordTooLarge {
                key: record.key,
                size,
                limit: self.options.max_record_bytes,
            });
        }
        if let Some(reason) = table.objection(record) {
            return Err(LogError::InvalidRecord {
                key: record.key,
                reason,
            });
        }
        drop(table);
        self.make_room(frame_len(size))?;
        let (offset, context) = (self.end(), self.context());
        let mut table = lock(&self.table);
        let known = table
            .groups
            .get(&record.key)
            .filter(|group| group.newest != self.active.sequence && !record.removed);
        let carried = known.map_or(Carried::default(), |group| group.carried());
        let len = encode_record(&mut self.buffer, context, record, carried);
        table.apply(
            record,
            FramePlace {
                segment: self.active.sequence,
                offset,
                len,
            },
        );
        drop(table);
        self.counters.count(|stats| {
            stats.records += 1;
            stats.appended_bytes += len;
        });
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes everything appended so far durable: at most one write and one `fdatasync`, none if nothing was appended.
    ///
    /// # Errors
    /// The first failure poisons the log for good, because after it nobody knows what reached the disk.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.usable()?;
        self.flush()?;
        if !self.active.is_synced() {
            let outcome = self.active.sync();
            self.poison_on_error(outcome)?;
            self.counters.count(|stats| stats.syncs += 1);
        }
        self.publish();
        Ok(())
    }

    /// Writes zeros ahead of the data if few are left: work for the time after an acknowledgement.
    ///
    /// # Errors
    /// As [`Log::sync`].
    pub fn prepare(&mut self) -> Result<(), LogError> {
        self.usable()?;
        let outcome = self.active.fill_ahead();
        if self.poison_on_error(outcome)? {
            self.counters.count(|stats| stats.syncs += 1);
        }
        Ok(())
    }

    /// Syncs, and leaves a last frame that says so: damage to anything before it is then told from a torn write.
    ///
    /// # Errors
    /// As [`Log::sync`].
    pub fn close(mut self) -> Result<(), LogError> {
        self.sync()?;
        self.append_checkpoint(self.first_live)?;
        self.sync()
    }

    /// The counters now.
    pub fn stats(&self) -> LogStats {
        self.publish();
        self.counters.read()
    }

    pub(crate) fn append_checkpoint(&mut self, first_live: u64) -> Result<u64, LogError> {
        self.make_room(frame_len(FRAME_HEADER as u64))?;
        let context = self.context();
        Ok(encode_checkpoint(&mut self.buffer, context, first_live))
    }

    /// Appends a frame that collection makes, of at most `bound` bytes.
    pub(crate) fn append_copy(
        &mut self,
        bound: u64,
        encode: impl FnOnce(&mut Vec<u8>, FrameContext) -> u64,
    ) -> Result<FramePlace, LogError> {
        self.make_room(bound)?;
        let (offset, context) = (self.end(), self.context());
        let len = encode(&mut self.buffer, context);
        self.counters.count(|stats| stats.copied_bytes += len);
        let place = FramePlace {
            segment: self.active.sequence,
            offset,
            len,
        };
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(place)
    }

    /// Hands the buffer to the system.
    pub(crate) fn flush(&mut self) -> Result<(), LogError> {
        if !self.buffer.is_empty() {
            let outcome = self.active.write(&self.buffer);
            self.poison_on_error(outcome)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Reads entries back from the files of this log, on any thread.
    pub fn reader(&self) -> LogReader {
        LogReader {
            vfs: Arc::clone(&self.vfs),
            dir: self.dir.clone(),
            store: self.options.store,
            table: Arc::clone(&self.table),
        }
    }

    pub(crate) fn usable(&self) -> Result<(), LogError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(LogError::Poisoned {
                cause: cause.clone(),
            }),
        }
    }

    pub(crate) fn poison_on_error<T>(
        &mut self,
        outcome: Result<T, LogError>,
    ) -> Result<T, LogError> {
        if let Err(error) = &outcome
            && self.poisoned.is_none()
        {
            self.poisoned = Some(error.to_string());
        }
        outcome
    }

    /// Bytes of all segments up to their ends.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.sealed.iter().map(|(_, end)| end).sum::<u64>() + self.end()
    }

    pub(crate) fn publish(&self) {
        self.durable
            .store(self.active.synced_through().0, Ordering::Release);
        let table = lock(&self.table);
        self.counters.count(|stats| {
            stats.bytes = self.total_bytes();
            stats.live_bytes = table.live_bytes;
            stats.segments = self.sealed.len() as u64 + 1;
            stats.groups = table.groups.len() as u64;
        });
    }

    fn end(&self) -> u64 {
        self.active.written + self.buffer.len() as u64
    }

    fn context(&self) -> FrameContext {
        FrameContext {
            seed: self.active.seed,
            synced_through: self.active.synced_through(),
        }
    }

    /// Rolls to a new segment if a frame of `len` bytes does not fit into this one.
    fn make_room(&mut self, len: u64) -> Result<(), LogError> {
        let end = self.end();
        if end + len <= self.options.segment_bytes || end == SEGMENT_HEADER {
            return Ok(());
        }
        self.sync()?;
        let header = SegmentHeader {
            store: self.options.store,
            sequence: self.active.sequence + 1,
            previous_end: end,
            first_live: self.first_live,
        };
        let (options, spare) = (&self.options, self.spares.pop());
        let outcome = ActiveSegment::create(&*self.vfs, &self.dir, header, options, spare);
        let next = self.poison_on_error(outcome)?;
        self.sealed.push_back((self.active.sequence, end));
        self.active = next;
        self.collect_due = true;
        Ok(())
    }
}
