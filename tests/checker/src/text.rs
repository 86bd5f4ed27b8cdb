//! Histories as people write them: one operation a line.
//!
//! ```text
//! # CLIENT CALL..RETURN [VIA[@INDEX[.OFFSET]]] REQUEST OUTCOME
//! 1 0..3 log@7 put a 1   -> OK 1
//! 2 4..5 read@7 get a -> 1
//! 2 6..7 stale get b !! 404 there is no key "b"
//! 1 8..9 incr a ??
//! 1 8..9 put a 2 xx
//! ```
//!
//! VIA is `log` (also where there is none), `read` or `stale`. The outcome is `-> REPLY`, `!! CODE MESSAGE` for a
//! rejection, `??` where nobody knows, and `xx` for certainly not applied. `#7` in front of the client is the id of the
//! operation, which is otherwise counted from 1; any other line that begins with `#` is a comment. The first outcome mark
//! with a space before it ends the request, so what holds such a mark or a line break goes into [`crate::jsonl`]. Printed
//! operations have this form.

use crate::blob::Blob;
use crate::error::CheckerError;
use crate::history::{Operation, Outcome, Place, RawOperation, Reply, Via};

/// Parses a history.
///
/// # Errors
/// [`CheckerError::Line`] for the first line that is neither empty, a comment nor an operation.
pub fn parse(text: &str) -> Result<Vec<RawOperation>, CheckerError> {
    let mut operations = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let comment = line
            .strip_prefix('#')
            .is_some_and(|rest| !rest.starts_with(|char: char| char.is_ascii_digit()));
        if line.trim().is_empty() || comment {
            continue;
        }
        let id = operations.len() as u64 + 1;
        operations.push(operation(id, line).map_err(|reason| CheckerError::Line {
            line: number,
            reason,
        })?);
    }
    Ok(operations)
}

fn operation(id: u64, line: &str) -> Result<RawOperation, String> {
    let mut rest = line;
    let mut id = id;
    if let Some(after) = rest.strip_prefix('#') {
        rest = after;
        id = number(word(&mut rest)?, "an id")?;
    }
    let client = number(word(&mut rest)?, "a client")?;
    let times = word(&mut rest)?;
    let (call, ret) = times
        .split_once("..")
        .ok_or_else(|| format!("`{times}` is not of the form CALL..RETURN"))?;
    let (call, ret) = (number(call, "a time")?, number(ret, "a time")?);
    let (via, place) = via(&mut rest)?;
    let (input, outcome) = outcome(rest.trim_start())?;
    Ok(Operation {
        id,
        client,
        via,
        input,
        call,
        ret,
        outcome,
        place,
    })
}

/// Takes the next word and the spaces around it.
fn word<'a>(rest: &mut &'a str) -> Result<&'a str, String> {
    let line = rest.trim_start();
    let (word, after) = line.split_once(' ').unwrap_or((line, ""));
    *rest = after;
    if word.is_empty() {
        return Err("it ends too early".to_owned());
    }
    Ok(word)
}

fn number<N: std::str::FromStr>(word: &str, what: &str) -> Result<N, String> {
    word.parse()
        .map_err(|_| format!("`{word}` is not {what}, which is a number"))
}

fn via(rest: &mut &str) -> Result<(Via, Option<Place>), String> {
    let mut after = *rest;
    let first = word(&mut after)?;
    let (name, place) = match first.split_once('@') {
        Some((name, place)) => (name, Some(place)),
        None => (first, None),
    };
    let via = match name {
        "log" => Via::Log,
        "read" => Via::Read,
        "stale" => Via::Stale,
        // It is the request already.
        _ => return Ok((Via::Log, None)),
    };
    *rest = after;
    let Some(place) = place else {
        return Ok((via, None));
    };
    let place = match place.split_once('.') {
        Some((index, offset)) => {
            Place::new(number(index, "an index")?, number(offset, "an offset")?)
        }
        None => Place::of_index(number(place, "an index")?),
    };
    Ok((via, Some(place)))
}

fn outcome(text: &str) -> Result<(Blob, Outcome<Reply>), String> {
    let marks = [" -> ", " !! ", " ??", " xx"];
    let first = |mark: &&'static str| text.find(*mark).map(|at| (at, *mark));
    // A reply may be empty and its line trimmed.
    let bare = text.strip_suffix(" ->").map(|_| (text.len() - 3, " ->"));
    let (at, mark) = marks
        .iter()
        .filter_map(first)
        .chain(bare)
        .min()
        .ok_or_else(|| {
            "it has no outcome: `-> REPLY`, `!! CODE MESSAGE`, `??` or `xx`".to_owned()
        })?;
    let request = Blob::from(text[..at].to_owned());
    let rest = &text[at + mark.len()..];
    let outcome = match mark {
        " !! " => {
            let (code, message) = rest.split_once(' ').unwrap_or((rest, ""));
            Outcome::Ok(Reply::rejected(number(code, "a code")?, message))
        }
        " ??" | " xx" if !rest.trim().is_empty() => {
            return Err(format!(
                "nothing follows `{}`, but here does `{rest}`",
                mark.trim()
            ));
        }
        " ??" => Outcome::Unknown,
        " xx" => Outcome::Failed,
        _ => Outcome::Ok(Reply::ok(rest.to_owned())),
    };
    Ok((request, outcome))
}
