//! Components from the text format: what no compiler of a guest would make.
//!
//! A file begins with comments (`;;`) that say what it tries. Then follow the places of `tests/guests/src/machine.wat` that
//! it fills, each a line `⟨place⟩` and the text for it; or a whole `(component …)`. In either, `⟦N|text⟧` is the text, N
//! times. Three places are not of the machine but of the bytes around it:
//!
//! - `⟨custom-section⟩ N` puts a custom section of N bytes behind the rest;
//! - `⟨nested⟩ N` puts a component behind the rest that holds a component, that holds another, N deep;
//! - `⟨cut⟩ N` takes N bytes off the end.

/// A counter that behaves, with places for attacks.
const MACHINE: &str = include_str!("../../guests/src/machine.wat");

const MAGIC: &[u8] = b"\0asm\x0d\0\x01\0";
const SECTION_CUSTOM: u8 = 0;
const SECTION_COMPONENT: u8 = 4;

/// The component of a file.
///
/// # Panics
/// If the file is not of the form that the module describes, which is a mistake in the test.
pub fn component(name: &str, text: &str) -> Vec<u8> {
    let code = code_of(text);
    if code.starts_with('(') {
        return parse(name, &repeated(code));
    }
    let mut machine = MACHINE.to_owned();
    let mut after = Vec::new();
    for (place, fill) in places(code) {
        match place {
            "custom-section" | "nested" | "cut" => after.push((place, number(name, fill))),
            place => {
                let marker = format!("⟨{place}⟩");
                assert!(machine.contains(&marker), "{name}: no place {marker}");
                machine = machine.replace(&marker, &repeated(fill));
            }
        }
    }
    let mut bytes = parse(name, &without_markers(&machine));
    for (place, count) in after {
        match place {
            "custom-section" => {
                let body = [&[1, b'x'], vec![b'-'; count].as_slice()].concat();
                push_section(&mut bytes, SECTION_CUSTOM, &body);
            }
            "nested" => {
                let mut nested = MAGIC.to_vec();
                for _ in 0..count {
                    let inner = std::mem::replace(&mut nested, MAGIC.to_vec());
                    push_section(&mut nested, SECTION_COMPONENT, &inner);
                }
                push_section(&mut bytes, SECTION_COMPONENT, &nested);
            }
            _ => bytes.truncate(bytes.len().saturating_sub(count)),
        }
    }
    bytes
}

/// What is behind the comments at the head of a file.
fn code_of(text: &str) -> &str {
    let mut rest = text;
    while let Some(line) = rest.lines().next() {
        if !line.is_empty() && !line.starts_with(";;") {
            break;
        }
        rest = rest.get(line.len() + 1..).unwrap_or("");
    }
    rest
}

/// Each place with its text.
fn places(code: &str) -> Vec<(&str, &str)> {
    let mut places = Vec::new();
    for part in code
        .split("\n⟨")
        .flat_map(|part| part.strip_prefix('⟨').or(Some(part)))
    {
        if let Some((place, fill)) = part.split_once('⟩') {
            places.push((place, fill.trim()));
        }
    }
    places
}

/// `⟦N|text⟧`, written out. In what it repeats `#` is the number of the repetition.
fn repeated(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('⟦') {
        let (repetition, after) = from.split_once('⟧').expect("a repetition has an end");
        let (count, text) = repetition
            .split_once('|')
            .expect("a repetition has a number and a text");
        out.push_str(before);
        for number in 0..count.parse().expect("a number of repetitions") {
            let number: u32 = number;
            out.push_str(&text.replace('#', &number.to_string()));
        }
        rest = after;
    }
    out + rest
}

/// Without the places that were not filled.
fn without_markers(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('⟨') {
        let (_, after) = from.split_once('⟩').expect("a place has an end");
        out.push_str(before);
        rest = after;
    }
    out + rest
}

fn number(name: &str, text: &str) -> usize {
    text.parse()
        .unwrap_or_else(|_| panic!("{name}: `{text}` is no number"))
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn push_section(out: &mut Vec<u8>, id: u8, body: &[u8]) {
    out.push(id);
    let mut len = body.len();
    loop {
        let byte = (len & 0x7f) as u8;
        len >>= 7;
        if len == 0 {
            out.push(byte);
            break;
        }
        out.push(byte | 0x80);
    }
    out.extend_from_slice(body);
}
