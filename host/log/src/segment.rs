//! Segment files: their names, their header, and the one that is being written.

use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use skep_vfs::{Vfs, VfsFile, patiently, place};

use crate::error::LogError;
use crate::frame::{Place, Seed};
use crate::options::LogOptions;

/// Bytes of a segment before its first frame.
pub(crate) const SEGMENT_HEADER: u64 = 64;

/// The version of the segment and frame formats.
pub(crate) const FORMAT_VERSION: u32 = 1;

const MAGIC: u64 = u64::from_le_bytes(*b"SKEPWAL\0");

/// Sequences stay below this, because a [`Place`] keeps them in 32 bits.
const MAX_SEQUENCE: u64 = u32::MAX as u64;

/// What the files of a log directory are, by their names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum SegmentName {
    /// `<sequence>.wal`: a part of the log.
    Segment(u64),
    /// `<sequence>.spare`: a freed file, kept because its blocks are written already.
    Spare(u64),
    /// `<sequence>.tmp`: a segment that was being made.
    Temporary(u64),
}

impl SegmentName {
    pub(crate) fn parse(name: &str) -> Option<SegmentName> {
        let (stem, suffix) = name.split_once('.')?;
        let sequence = u64::from_str_radix(stem, 16)
            .ok()
            .filter(|sequence| *sequence <= MAX_SEQUENCE)?;
        if stem != format!("{sequence:016x}") {
            return None;
        }
        match suffix {
            "wal" => Some(SegmentName::Segment(sequence)),
            "spare" => Some(SegmentName::Spare(sequence)),
            "tmp" => Some(SegmentName::Temporary(sequence)),
            _ => None,
        }
    }

    pub(crate) fn path(self, dir: &Path) -> PathBuf {
        let (sequence, suffix) = match self {
            SegmentName::Segment(sequence) => (sequence, "wal"),
            SegmentName::Spare(sequence) => (sequence, "spare"),
            SegmentName::Temporary(sequence) => (sequence, "tmp"),
        };
        dir.join(format!("{sequence:016x}.{suffix}"))
    }
}

/// The first bytes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) store: [u8; 16],
    pub(crate) sequence: u64,
    /// Where the frames of the segment before end. All of them were durable when this header was written.
    pub(crate) previous_end: u64,
    /// Segments before this one were not needed any more when this header was written.
    pub(crate) first_live: u64,
}

impl SegmentHeader {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER as usize);
        out.put_u64_le(MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(SEGMENT_HEADER as u32);
        out.put_slice(&self.store);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.previous_end);
        out.put_u64_le(self.first_live);
        out.put_u32_le(0);
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    /// Reads and checks the header of the file that is named as segment `sequence` of `store`.
    pub(crate) fn read(
        file: &dyn VfsFile,
        path: &Path,
        sequence: u64,
        store: &[u8; 16],
    ) -> Result<SegmentHeader, LogError> {
        let mut bytes = [0; SEGMENT_HEADER as usize];
        let read = file
            .read_at(0, &mut bytes)
            .map_err(LogError::io("read", path))?;
        let (content, crc) = bytes.split_at(SEGMENT_HEADER as usize - 4);
        let mut fields = content;
        if read < bytes.len() || fields.get_u64_le() != MAGIC {
            return Err(LogError::corrupt(path, 0, "this is not a log segment"));
        }
        // The version comes before the checksum, because another version may place its checksum elsewhere.
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION && crc32c::crc32c(content).to_le_bytes() == crc {
            return Err(LogError::UnsupportedFormat {
                file: path.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        if crc32c::crc32c(content).to_le_bytes() != crc {
            return Err(LogError::corrupt(
                path,
                0,
                "the segment header's checksum is wrong",
            ));
        }
        fields.advance(4);
        let mut found = [0; 16];
        fields.copy_to_slice(&mut found);
        if &found != store {
            return Err(LogError::WrongStore {
                file: path.to_path_buf(),
            });
        }
        let header = SegmentHeader {
            store: found,
            sequence: fields.get_u64_le(),
            previous_end: fields.get_u64_le(),
            first_live: fields.get_u64_le(),
        };
        if header.sequence != sequence {
            let reason = format!(
                "the file holds segment {:016x}; was it renamed?",
                header.sequence
            );
            return Err(LogError::corrupt(path, 0, reason));
        }
        if header.first_live > sequence {
            // It would have this segment deleted.
            let reason = format!(
                "its header says that the log begins with the later segment {:016x}",
                header.first_live
            );
            return Err(LogError::corrupt(path, 0, reason));
        }
        Ok(header)
    }
}

/// The segment at the end of the log. Everything before `synced` is durable, everything before `written` is with the
/// system, and the file has real bytes up to `filled`.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    file: Box<dyn VfsFile>,
    path: PathBuf,
    options: LogOptions,
    pub(crate) sequence: u64,
    pub(crate) seed: Seed,
    pub(crate) written: u64,
    synced: u64,
    filled: u64,
}

impl ActiveSegment {
    /// Makes the segment durable under its final name, from the spare file if there is one.
    pub(crate) fn create(
        vfs: &dyn Vfs,
        dir: &Path,
        header: SegmentHeader,
        options: &LogOptions,
        spare: Option<PathBuf>,
    ) -> Result<ActiveSegment, LogError> {
        let path = SegmentName::Segment(header.sequence).path(dir);
        if header.sequence > MAX_SEQUENCE {
            return Err(LogError::InvalidOptions {
                reason: format!("the log used up its {MAX_SEQUENCE} segment numbers"),
            });
        }
        let (made, file) = match spare {
            Some(spare) => {
                let file = patiently(|| vfs.open(&spare)).map_err(LogError::io("open", &spare))?;
                (spare, file)
            }
            None => {
                let made = SegmentName::Temporary(header.sequence).path(dir);
                let file =
                    patiently(|| vfs.create(&made)).map_err(LogError::io("create", &made))?;
                (made, file)
            }
        };
        file.write_all_at(0, &header.encode())
            .map_err(LogError::io("write", &made))?;
        let mut filled = file.len().map_err(LogError::io("read", &made))?;
        let target = options.fill_step.min(options.segment_bytes);
        if filled < target {
            file.zero_fill(filled, target - filled)
                .map_err(LogError::io("write", &made))?;
            filled = target;
        }
        file.sync_data().map_err(LogError::io("sync", &made))?;
        place(vfs, &made, &path)?;
        let seed = Seed::new(&header.store, header.sequence);
        let (written, synced) = (SEGMENT_HEADER, SEGMENT_HEADER);
        Ok(ActiveSegment {
            file,
            path,
            options: options.clone(),
            sequence: header.sequence,
            seed,
            written,
            synced,
            filled,
        })
    }

    /// Hands `data` to the system. Zeros are written ahead in steps, so that most syncs find the file's size and
    /// blocks unchanged and write no metadata.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), LogError> {
        let end = self.written + data.len() as u64;
        self.file
            .write_all_at(self.written, data)
            .map_err(LogError::io("write", &self.path))?;
        if end > self.filled {
            self.filled = end;
            self.fill()?;
        }
        self.written = end;
        Ok(())
    }

    /// Writes the next step of zeros while nobody waits for it.
    pub(crate) fn fill_ahead(&mut self) -> Result<bool, LogError> {
        let low = self.filled - self.written < self.options.fill_step / 2;
        if !low || self.filled >= self.options.segment_bytes {
            return Ok(false);
        }
        self.fill()?;
        self.sync()?;
        Ok(true)
    }

    fn fill(&mut self) -> Result<(), LogError> {
        let target = (self.filled + self.options.fill_step).min(self.options.segment_bytes);
        if target > self.filled {
            self.file
                .zero_fill(self.filled, target - self.filled)
                .map_err(LogError::io("write", &self.path))?;
            self.filled = target;
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<(), LogError> {
        self.file
            .sync_data()
            .map_err(LogError::io("sync", &self.path))?;
        self.synced = self.written;
        Ok(())
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced == self.written
    }

    pub(crate) fn synced_through(&self) -> Place {
        Place::new(self.sequence, self.synced)
    }
}
