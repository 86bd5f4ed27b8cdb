//! Histories as files: one operation a line, in JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::error::CheckerError;
use crate::history::RawOperation;

/// The longest line in bytes: a command and a reply of a mebibyte each, written as arrays of numbers with commas.
pub const MAX_LINE: u64 = 16 << 20;

/// Writes a history to a file, which is replaced.
///
/// # Errors
/// [`CheckerError::Io`].
pub fn write(path: &Path, operations: &[RawOperation]) -> Result<(), CheckerError> {
    let mut file = BufWriter::new(File::create(path)?);
    for operation in operations {
        serde_json::to_writer(&mut file, operation).map_err(std::io::Error::from)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(())
}

/// Reads a history that [`write()`] wrote. Empty lines are skipped.
///
/// # Errors
/// [`CheckerError::Io`], and [`CheckerError::Line`] for a line that is no operation or longer than [`MAX_LINE`].
pub fn read(path: &Path) -> Result<Vec<RawOperation>, CheckerError> {
    let mut file = BufReader::new(File::open(path)?);
    let mut operations = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        file.by_ref()
            .take(MAX_LINE + 1)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        let malformed = |reason: String| CheckerError::Line {
            line: number,
            reason,
        };
        if line.len() as u64 > MAX_LINE {
            return Err(malformed(format!("it is longer than {MAX_LINE} bytes")));
        }
        let text = line.trim_ascii();
        if !text.is_empty() {
            let operation = serde_json::from_slice(text);
            operations.push(operation.map_err(|error| malformed(error.to_string()))?);
        }
    }
    Ok(operations)
}
