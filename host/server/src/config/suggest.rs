//! "Did you mean …?" for a key that is not known.

/// Adds a suggestion to serde's "unknown field `x`, expected one of `a`, `b`".
pub(super) fn with_suggestion(message: &str) -> String {
    match suggestion(message) {
        Some(name) => format!("{message}\ndid you mean `{name}`?"),
        None => message.to_owned(),
    }
}

fn suggestion(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("unknown field `")?;
    let (wrong, rest) = rest.split_once('`')?;
    let expected = rest.split('`').skip(1).step_by(2);
    // A third of the letters wrong is still a typo; more is another word.
    let tolerance = wrong.len() / 3 + 1;
    expected
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, _)| *distance <= tolerance)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, letter) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expected) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("tik", "tick", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), expected);
            assert_eq!(distance(right, left), expected);
        }
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let message = "unknown field `tik_ms`, expected one of `tick_ms`, `shards`";
        assert!(with_suggestion(message).ends_with("did you mean `tick_ms`?"));
        let message = "unknown field `colour`, expected one of `tick_ms`, `shards`";
        assert_eq!(with_suggestion(message), message);
    }
}
