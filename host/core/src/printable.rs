//! Text of strangers, fit to be shown: what a client, a peer or a guest says must not move a terminal, make a log line of
//! its own, or be read in another order than it stands.

use std::borrow::Cow;

/// The text with each character spelled out (`\n`, `\u{202e}`) that is not shown as itself: line ends, other control
/// characters, and those that reorder or hide what is around them.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, shows_itself)
}

/// As [`printable`], for a text of several lines whose ends are our own.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| {
        character == '\n' || shows_itself(character)
    })
}

/// As [`printable`], for JSON: such characters stand within its strings only, as do the escapes they become.
pub fn printable_json(text: &str) -> Cow<'_, str> {
    let whitespace = |character: char| matches!(character, '\n' | '\t' | '\r');
    if text
        .chars()
        .all(|character| whitespace(character) || shows_itself(character))
    {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if whitespace(character) || shows_itself(character) {
            shown.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Cow::Owned(shown)
}

fn escaped(text: &str, passes: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(&passes) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if passes(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
    }
    Cow::Owned(shown)
}

/// Whether a character is seen where it stands, and does nothing else.
fn shows_itself(character: char) -> bool {
    let hidden = matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    !character.is_control() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_terminal_or_forges_a_line_is_spelled_out() {
        for (text, shown) in [
            ("plain é 中 🐝", "plain é 中 🐝"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{9b}1m\u{7}", "\\u{1b}[2J\\u{9b}1m\\u{7}"),
            ("\u{202e}olleh\u{2066}", "\\u{202e}olleh\\u{2066}"),
            ("k\u{200b}v\u{feff}", "k\\u{200b}v\\u{feff}"),
            ("\u{2028}x\u{e0041}", "\\u{2028}x\\u{e0041}"),
        ] {
            assert_eq!(printable(text), shown);
            // What was shown once is shown as it is.
            assert_eq!(printable(shown), shown);
        }
        assert!(matches!(printable("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn line_ends_of_our_own_stay() {
        assert_eq!(printable_lines("a\nb\u{1b}c\n"), "a\nb\\u{1b}c\n");
    }

    #[test]
    fn json_stays_json_of_the_same_value() {
        let text = "{\n  \"name\": \"a\u{202e}b\u{9b}\u{e0041}\"\n}";
        let shown = printable_json(text);
        assert_eq!(
            shown,
            "{\n  \"name\": \"a\\u202eb\\u009b\\udb40\\udc41\"\n}"
        );
        assert!(matches!(printable_json("{}"), Cow::Borrowed("{}")));
    }
}
