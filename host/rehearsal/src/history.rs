//! The requests of a rehearsal, and the file they are written in.

use std::fmt::Write as _;

use bytes::Bytes;
use skep_core::id::NodeId;
use skep_core::outcome::{ChangeKind, ConfChange};

/// The most steps of a history. Each is run some hundred times.
pub const MAX_HISTORY: usize = 10_000;

/// What happens to a machine, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// The bytes a group of it is created with.
    pub init: Bytes,
    /// What comes then, each with its place: the line of the file, or the number of the request.
    pub steps: Vec<(usize, Step)>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a history comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Somebody wrote it.
    Written,
    /// It was guessed from what the machine says.
    Generated,
}

/// One thing that happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A command.
    Command(Bytes),
    /// A query.
    Query(Bytes),
    /// The membership changes.
    Change(ConfChange),
    /// Another node leads.
    Leader(NodeId),
}

/// A line of a history cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// What is wrong with one line.
    #[error("line {line}: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// More than [`MAX_HISTORY`] steps.
    #[error(
        "more than {MAX_HISTORY} requests: each is run some hundred times, so take a part of them"
    )]
    TooLong,
    /// No command at all.
    #[error("there is no command in it: write one request a line")]
    Empty,
}

impl History {
    /// Reads a file: one request a line.
    ///
    /// | line | is |
    /// |---|---|
    /// | `put a 1` | a command |
    /// | `?get a` | a query |
    /// | `!init BYTES` | what the group is created with |
    /// | `!empty` | a command without a byte |
    /// | `!leader NODE` | a change of leader |
    /// | `!member add-voter\|add-learner\|promote\|remove NODE [BYTES]` | a change of membership |
    /// | `# …`, or nothing | nothing |
    ///
    /// In all BYTES `\n`, `\r`, `\t`, `\\` and `\xHH` stand for one byte; `\#`, `\?` and `\!` begin a command with that
    /// character.
    ///
    /// # Errors
    ///
    /// [`HistoryError`], with the line.
    pub fn parse(text: &[u8]) -> Result<Self, HistoryError> {
        let mut history = Self {
            init: Bytes::new(),
            steps: Vec::new(),
            origin: Origin::Written,
        };
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            history
                .line(number, line)
                .map_err(|reason| HistoryError::Line {
                    line: number,
                    reason,
                })?;
            if history.steps.len() > MAX_HISTORY {
                return Err(HistoryError::TooLong);
            }
        }
        if history.commands().next().is_none() {
            return Err(HistoryError::Empty);
        }
        Ok(history)
    }

    /// The commands in it.
    pub fn commands(&self) -> impl Iterator<Item = &Bytes> {
        self.steps.iter().filter_map(|(_, step)| match step {
            Step::Command(command) => Some(command),
            _ => None,
        })
    }

    fn line(&mut self, number: usize, line: &[u8]) -> Result<(), String> {
        let step = match line {
            [] | [b'#', ..] => return Ok(()),
            [b'?', query @ ..] => Step::Query(unescape(query)?),
            [b'!', directive @ ..] => match self.directive(directive)? {
                Some(step) => step,
                None => return Ok(()),
            },
            command => Step::Command(unescape(command)?),
        };
        self.steps.push((number, step));
        Ok(())
    }

    fn directive(&mut self, directive: &[u8]) -> Result<Option<Step>, String> {
        let mut words = directive.splitn(2, |byte| *byte == b' ');
        let name = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default();
        match name {
            b"init" => {
                self.init = unescape(rest)?;
                Ok(None)
            }
            b"empty" => Ok(Some(Step::Command(Bytes::new()))),
            b"leader" => Ok(Some(Step::Leader(node(rest)?))),
            b"member" => {
                let mut words = rest.splitn(3, |byte| *byte == b' ');
                let kind = match words.next() {
                    Some(b"add-voter") => ChangeKind::AddVoter,
                    Some(b"add-learner") => ChangeKind::AddLearner,
                    Some(b"promote") => ChangeKind::Promote,
                    Some(b"remove") => ChangeKind::Remove,
                    _ => {
                        return Err(
                            "say `!member add-voter|add-learner|promote|remove NODE [BYTES]`"
                                .into(),
                        );
                    }
                };
                let node = node(words.next().unwrap_or_default())?;
                let data = unescape(words.next().unwrap_or_default())?;
                Ok(Some(Step::Change(ConfChange { kind, node, data })))
            }
            _ => Err(format!(
                "`!{}` is none of !init, !empty, !leader, !member; a command that begins so is written `\\!…`",
                String::from_utf8_lossy(name)
            )),
        }
    }
}

fn node(word: &[u8]) -> Result<NodeId, String> {
    std::str::from_utf8(word)
        .ok()
        .and_then(|word| word.parse().ok())
        .filter(|node| *node != 0)
        .map(NodeId)
        .ok_or_else(|| {
            format!(
                "`{}` is no node: a number from 1",
                String::from_utf8_lossy(word)
            )
        })
}

/// The bytes that a text with escapes stands for.
///
/// # Errors
///
/// Which escape is not one, in words.
pub fn unescape(text: &[u8]) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, later @ ..] = rest {
        rest = later;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (escaped, later) = match rest {
            [b'n', later @ ..] => (b'\n', later),
            [b'r', later @ ..] => (b'\r', later),
            [b't', later @ ..] => (b'\t', later),
            [escaped @ (b'\\' | b'#' | b'?' | b'!'), later @ ..] => (*escaped, later),
            [b'x', high, low, later @ ..] => {
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                let (high, low) = digit(high)
                    .zip(digit(low))
                    .ok_or("`\\x` wants two hexadecimal digits")?;
                ((high << 4 | low) as u8, later)
            }
            _ => return Err("a backslash is followed by one of n r t \\ # ? ! or by x and two hexadecimal digits".into()),
        };
        bytes.push(escaped);
        rest = later;
    }
    Ok(bytes.into())
}

/// Bytes as one line of text: the inverse of [`unescape`] for what is no printable ASCII.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_line_by_line() {
        let text = b"# a comment\n\n!init a b\nput a 1\r\n?get a\n\\?no query\n!empty\n!leader 2\n!member add-learner 4 x\\x00\n";
        let history = History::parse(text).unwrap();
        assert_eq!(history.init, "a b");
        let change = ConfChange {
            kind: ChangeKind::AddLearner,
            node: NodeId(4),
            data: Bytes::from_static(b"x\0"),
        };
        assert_eq!(
            history.steps,
            [
                (4, Step::Command("put a 1".into())),
                (5, Step::Query("get a".into())),
                (6, Step::Command("?no query".into())),
                (7, Step::Command(Bytes::new())),
                (8, Step::Leader(NodeId(2))),
                (9, Step::Change(change)),
            ]
        );
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, line, word) in [
            ("a\n!frob", 2, "!frob"),
            ("a\\q", 1, "backslash"),
            ("a\\x4", 1, "backslash"),
            ("a\\xzz", 1, "hexadecimal"),
            ("!leader 0", 1, "node"),
            ("!member join 1", 1, "add-voter"),
        ] {
            match History::parse(text.as_bytes()) {
                Err(HistoryError::Line { line: at, reason }) => {
                    assert_eq!(at, line, "{text}");
                    assert!(reason.contains(word), "{text}: {reason}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(History::parse(b"?only a query"), Err(HistoryError::Empty));
        let long = "a\n".repeat(MAX_HISTORY + 1);
        assert_eq!(History::parse(long.as_bytes()), Err(HistoryError::TooLong));
    }

    #[test]
    fn all_bytes_survive_their_escapes() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(escape(&all).as_bytes()).unwrap(), all);
    }
}
