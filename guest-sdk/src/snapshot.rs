//! Snapshot bytes on their way out of and into a machine, in chunks, so that neither side holds the whole state twice.
//!
//! The helpers write integers in little-endian order and byte strings behind a `u32` length. A machine may as well use
//! any encoder over [`io::Write`] and [`io::Read`].

use std::io::{self, Read, Write};

use crate::Rejection;

/// The most bytes that cross to the host at once. Large enough that the crossing costs nothing against the copy, small
/// enough to be nothing against a guest's memory.
pub const CHUNK: usize = 64 * 1024;

/// Where [`Machine::save`](crate::Machine::save) writes. Writing cannot fail: trouble on the host's disk is not the
/// guest's.
pub struct Sink<'a> {
    write: &'a mut dyn FnMut(&[u8]),
    buffer: Vec<u8>,
}

impl<'a> Sink<'a> {
    /// A sink that hands chunks of at most [`CHUNK`] bytes to `write`, the last when it is dropped.
    pub fn new(write: &'a mut dyn FnMut(&[u8])) -> Self {
        Sink {
            write,
            buffer: Vec::new(),
        }
    }

    /// Appends bytes as they are.
    pub fn put(&mut self, mut bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > CHUNK {
            self.flush_buffer();
            while bytes.len() > CHUNK {
                let (chunk, rest) = bytes.split_at(CHUNK);
                (self.write)(chunk);
                bytes = rest;
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Appends one byte.
    pub fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Appends four bytes, little-endian.
    pub fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Appends eight bytes, little-endian.
    pub fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Appends eight bytes, little-endian, two's complement.
    pub fn put_i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a `u32` length and the bytes.
    ///
    /// # Panics
    ///
    /// If there are more than `u32::MAX` bytes, which a guest's address space cannot hold.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_u32(
            u32::try_from(bytes.len()).expect("a byte string fits a 32-bit address space"),
        );
        self.put(bytes);
    }

    fn flush_buffer(&mut self) {
        if !self.buffer.is_empty() {
            (self.write)(&self.buffer);
            self.buffer.clear();
        }
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        self.flush_buffer();
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_buffer();
        Ok(())
    }
}

/// Where [`Machine::restore`](crate::Machine::restore) reads. Bytes that end too early are a [`Rejection`], never a
/// panic.
pub struct Source<'a> {
    read: &'a mut dyn FnMut(u32) -> Vec<u8>,
    /// Bytes the host still has; those in `chunk` are not counted.
    unread: u64,
    chunk: Vec<u8>,
    position: usize,
}

impl<'a> Source<'a> {
    /// A source of `len` bytes. `read(n)` yields the next `n` of them, fewer only at the end.
    pub fn new(len: u64, read: &'a mut dyn FnMut(u32) -> Vec<u8>) -> Self {
        Source {
            read,
            unread: len,
            chunk: Vec::new(),
            position: 0,
        }
    }

    /// The number of bytes not taken yet.
    pub fn remaining(&self) -> u64 {
        self.unread + self.chunk[self.position..].len() as u64
    }

    /// Fills `buffer`.
    pub fn take(&mut self, mut buffer: &mut [u8]) -> Result<(), Rejection> {
        self.require(buffer.len() as u64)?;
        while !buffer.is_empty() {
            let available = self.available()?;
            let len = available.len().min(buffer.len());
            let (now, later) = buffer.split_at_mut(len);
            now.copy_from_slice(&available[..len]);
            self.position += len;
            buffer = later;
        }
        Ok(())
    }

    /// One byte.
    pub fn take_u8(&mut self) -> Result<u8, Rejection> {
        self.take_array().map(|[byte]| byte)
    }

    /// Four bytes, little-endian.
    pub fn take_u32(&mut self) -> Result<u32, Rejection> {
        self.take_array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    pub fn take_u64(&mut self) -> Result<u64, Rejection> {
        self.take_array().map(u64::from_le_bytes)
    }

    /// Eight bytes, little-endian, two's complement.
    pub fn take_i64(&mut self) -> Result<i64, Rejection> {
        self.take_array().map(i64::from_le_bytes)
    }

    /// A `u32` length and that many bytes. The length is checked against what is left before anything is allocated.
    pub fn take_bytes(&mut self) -> Result<Vec<u8>, Rejection> {
        let len = self.take_u32()?;
        self.require(u64::from(len))?;
        let mut bytes = vec![0; len as usize];
        self.take(&mut bytes)?;
        Ok(bytes)
    }

    /// [`take_bytes`](Source::take_bytes), checked to be UTF-8.
    pub fn take_string(&mut self) -> Result<String, Rejection> {
        String::from_utf8(self.take_bytes()?).map_err(|error| {
            Rejection::bad_request(format!(
                "the snapshot holds a string that is not UTF-8: {error}"
            ))
        })
    }

    /// Checks that everything was taken. A decoder that leaves bytes over has misread the ones before.
    pub fn finish(&self) -> Result<(), Rejection> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(Rejection::bad_request(format!(
                "the snapshot goes on for {left} bytes after its end"
            ))),
        }
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Rejection> {
        let mut array = [0; N];
        self.take(&mut array)?;
        Ok(array)
    }

    fn require(&self, wanted: u64) -> Result<(), Rejection> {
        match self.remaining() {
            left if left < wanted => Err(ends_early(wanted, left)),
            _ => Ok(()),
        }
    }

    /// The bytes at hand, after asking the host for the next chunk if there are none. Not empty.
    fn available(&mut self) -> Result<&[u8], Rejection> {
        if self.position == self.chunk.len() {
            let wanted = self.unread.min(CHUNK as u64);
            // Freed first, so that two chunks never exist at once.
            self.chunk = Vec::new();
            self.position = 0;
            self.chunk = (self.read)(wanted as u32);
            if self.chunk.is_empty() {
                return Err(ends_early(self.unread, 0));
            }
            self.unread = self.unread.saturating_sub(self.chunk.len() as u64);
        }
        Ok(&self.chunk[self.position..])
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.remaining().min(buffer.len() as u64) as usize;
        self.take(&mut buffer[..len])
            .map_err(|rejection| io::Error::new(io::ErrorKind::UnexpectedEof, rejection.message))?;
        Ok(len)
    }
}

fn ends_early(wanted: u64, left: u64) -> Rejection {
    Rejection::bad_request(format!(
        "the snapshot ends early: {wanted} more bytes are needed, {left} are left"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(write: impl FnOnce(&mut Sink<'_>)) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let mut push = |chunk: &[u8]| chunks.push(chunk.to_vec());
        write(&mut Sink::new(&mut push));
        chunks
    }

    fn reading<T>(bytes: &[u8], read: impl FnOnce(&mut Source<'_>) -> T) -> T {
        let mut rest = bytes;
        let mut pull = |len: u32| {
            let (now, later) = rest.split_at(rest.len().min(len as usize));
            rest = later;
            now.to_vec()
        };
        read(&mut Source::new(bytes.len() as u64, &mut pull))
    }

    #[test]
    fn what_goes_in_comes_out_whatever_the_sizes() {
        for len in [
            0,
            1,
            7,
            CHUNK - 13,
            CHUNK - 12,
            CHUNK - 4,
            CHUNK,
            CHUNK + 1,
            3 * CHUNK,
            3 * CHUNK + 5,
        ] {
            let blob: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let chunks = saved(|sink| {
                sink.put_u8(1);
                sink.put_u32(2);
                sink.put_bytes(&blob);
                sink.put_i64(-3);
                sink.put_bytes(b"end");
            });
            assert!(
                chunks
                    .iter()
                    .all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK),
                "blob of {len}"
            );
            reading(&chunks.concat(), |source| {
                assert_eq!(source.take_u8().unwrap(), 1);
                assert_eq!(source.take_u32().unwrap(), 2);
                assert_eq!(source.take_bytes().unwrap(), blob);
                assert_eq!(source.take_i64().unwrap(), -3);
                assert!(source.finish().is_err());
                assert_eq!(source.take_string().unwrap(), "end");
                source.finish().unwrap();
                assert_eq!(source.remaining(), 0);
            });
        }
    }

    #[test]
    fn io_traits_carry_the_same_bytes() {
        let blob = vec![7; CHUNK * 2 + 9];
        let chunks = saved(|sink| {
            sink.write_all(&blob).unwrap();
            sink.flush().unwrap();
        });
        assert_eq!(chunks.concat(), blob);
        let mut back = Vec::new();
        reading(&blob, |source| source.read_to_end(&mut back).unwrap());
        assert_eq!(back, blob);
    }

    #[test]
    fn a_length_beyond_the_end_is_rejected_before_it_is_allocated() {
        let rejection = reading(&u32::MAX.to_le_bytes(), |source| {
            source.take_bytes().unwrap_err()
        });
        assert_eq!(rejection.code, Rejection::BAD_REQUEST);
        assert!(rejection.message.contains("ends early"), "{rejection}");
    }

    #[test]
    fn every_truncation_is_rejected() {
        let whole = saved(|sink| sink.put_bytes(b"skep")).concat();
        for len in 0..whole.len() {
            assert!(
                reading(&whole[..len], |source| source.take_bytes()).is_err(),
                "cut at {len}"
            );
        }
    }

    #[test]
    fn a_host_that_runs_dry_is_rejected() {
        let mut nothing = |_: u32| Vec::new();
        assert!(Source::new(8, &mut nothing).take_u64().is_err());
    }
}
