//! The hostile guests of `tests/guests`: every file of that directory, by name.

mod text;

include!(concat!(env!("OUT_DIR"), "/guests.rs"));
include!(concat!(env!("OUT_DIR"), "/guest_texts.rs"));

/// The names of all guests, sorted: one for each file.
pub fn names() -> Vec<&'static str> {
    let built = ALL.iter().map(|(name, _)| *name);
    let texts = TEXTS.iter().map(|(name, _)| *name);
    let mut names: Vec<_> = built.chain(texts).collect();
    names.sort_unstable();
    names
}

/// The component of a guest. Those in the text format are assembled anew each time: some are large.
///
/// # Panics
/// If there is no such guest, or its text has a mistake.
pub fn component(name: &str) -> Vec<u8> {
    if let Some((_, bytes)) = ALL.iter().find(|(known, _)| *known == name) {
        return bytes.to_vec();
    }
    match TEXTS.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => text::component(name, text),
        None => panic!("there is no guest {name} in tests/guests"),
    }
}

/// The component of a text as a file of `tests/guests` would have it.
///
/// # Panics
/// If the text has a mistake.
pub fn of_text(name: &str, text: &str) -> Vec<u8> {
    text::component(name, text)
}
