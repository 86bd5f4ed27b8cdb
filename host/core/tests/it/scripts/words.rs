//! The words of a command.

use std::collections::VecDeque;

/// The words of a command: what stands by itself, and `key=value`.
pub struct Words<'a> {
    pub plain: VecDeque<&'a str>,
    pub keyed: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Self {
        let mut words = Self {
            plain: VecDeque::new(),
            keyed: Vec::new(),
        };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some(pair) => words.keyed.push(pair),
                None => words.plain.push_back(word),
            }
        }
        words
    }

    pub fn next(&mut self, what: &str) -> Result<&'a str, String> {
        self.plain
            .pop_front()
            .ok_or_else(|| format!("{what} is missing"))
    }

    pub fn number(&mut self, what: &str) -> Result<u64, String> {
        parse(what, self.next(what)?)
    }

    /// The numbers that are left; none means all.
    pub fn nodes(&mut self, all: impl Iterator<Item = u64>) -> Result<Vec<u64>, String> {
        if self.plain.is_empty() {
            return Ok(all.collect());
        }
        self.plain
            .drain(..)
            .map(|word| parse("a node", word))
            .collect()
    }

    pub fn key(&mut self, key: &str) -> Result<Option<u64>, String> {
        let place = self.keyed.iter().position(|(name, _)| *name == key);
        place
            .map(|place| parse(key, self.keyed.swap_remove(place).1))
            .transpose()
    }

    pub fn end(self) -> Result<(), String> {
        match (self.plain.front(), self.keyed.first()) {
            (Some(word), _) => Err(format!("`{word}` is too much")),
            (_, Some((key, _))) => Err(format!("`{key}` is not known")),
            _ => Ok(()),
        }
    }
}

pub fn parse(what: &str, word: &str) -> Result<u64, String> {
    word.parse()
        .map_err(|_| format!("{what} is a number, not `{word}`"))
}
