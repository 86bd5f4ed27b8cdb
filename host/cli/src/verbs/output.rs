//! Data on stdout.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;
use skep_core::printable::{printable, printable_json, printable_lines};

use super::{Form, Output};

/// Prints a value: as JSON, or as the text made of it.
pub fn print<T: Serialize>(
    form: Form,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match form.output {
        Output::Json => {
            let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
            printable_json(&text).into_owned()
        }
        Output::Text => printable_lines(&text(value)).into_owned(),
    };
    write(text.as_bytes(), true)
}

/// Prints bytes as they are; a terminal gets a line end after them.
pub fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    write(bytes, std::io::stdout().is_terminal())
}

fn write(bytes: &[u8], line: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let end: &[u8] = if line && !bytes.ends_with(b"\n") {
        b"\n"
    } else {
        b""
    };
    match out
        .write_all(bytes)
        .and_then(|()| out.write_all(end))
        .and_then(|()| out.flush())
    {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to stdout"),
    }
}

/// Columns, as wide as their widest cell.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let cells = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rows = rows
        .iter()
        .map(|row| line(&row.iter().map(|cell| &**cell).collect::<Vec<_>>()));
    std::iter::once(line(header)).chain(rows).collect()
}

/// Items with commas between them; `-` for none.
pub fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(",")
    }
}

/// A value, or `-`.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["1".into(), "a long name".into()],
            vec!["22".into(), "b".into()],
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows),
            "ID  NAME\n1   a long name\n22  b\n"
        );
        let rows = [vec!["a\u{202e}b\n".into(), "c".into()]];
        assert_eq!(
            table(&["A", "B"], &rows),
            "A             B\na\\u{202e}b\\n  c\n"
        );
        assert_eq!(list([1, 2]), "1,2");
        assert_eq!(list(Vec::<u8>::new()), "-");
    }
}
