//! A history for a machine nobody has said anything about.
//!
//! Machines tell a stranger what they take: in the messages of their rejections. So the requests are made of the words
//! found there, and those that are answered with a reply are varied further. It is a guess; a history that somebody
//! wrote is worth more.

use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::Outcome;
use skep_machine::wasm::{Component, Profile};

use crate::error::RehearsalError;
use crate::history::{History, Origin, Step};
use crate::lived::Lived;
use crate::script::{Script, Subject};
use crate::world::{Random, World};

/// Requests tried on the machine before the history is made.
const TRIES: usize = 600;
/// Commands of the history.
const COMMANDS: usize = 400;
/// Words that are kept of what a machine says.
const WORDS_MAX: usize = 64;
/// Characters of the longest of them.
const WORD_CHARS: usize = 24;
/// Faults after which no more is tried: each costs a rebuild.
const FAULTS_MAX: usize = 32;
/// Keys, so that requests meet each other's.
const KEYS: [&str; 8] = ["a", "b", "key", "k1", "k2", "k3", "user/1", "x"];

/// Makes a history out of what the machine says to requests. The same component and profile give the same one.
///
/// # Errors
///
/// As [`rehearse`](crate::rehearse).
pub fn generate(component: &Arc<Component>, profile: &Profile) -> Result<History, RehearsalError> {
    let mut random = Random::new(1);
    let mut guesses = Guesses::default();
    for batch in 0..TRIES / 100 {
        let requests: Vec<Bytes> = match batch {
            0 => (0..100).map(|at| blind(&mut random, at)).collect(),
            _ => (0..100).map(|_| guesses.request(&mut random)).collect(),
        };
        guesses.ask(component, profile, requests)?;
    }
    let steps = (1..=COMMANDS)
        .map(|at| {
            let request = match random.below(10) {
                0 => blind(&mut random, at),
                _ => guesses.request(&mut random),
            };
            (at, Step::Command(request))
        })
        .collect();
    Ok(History {
        init: Bytes::new(),
        steps,
        origin: Origin::Generated,
    })
}

/// What was learnt.
#[derive(Default)]
struct Guesses {
    words: Vec<Vec<u8>>,
    /// Requests that were answered with a reply.
    understood: Vec<Bytes>,
}

impl Guesses {
    fn ask(
        &mut self,
        component: &Arc<Component>,
        profile: &Profile,
        requests: Vec<Bytes>,
    ) -> Result<(), RehearsalError> {
        let steps = requests
            .iter()
            .map(|request| (0, Step::Command(request.clone())))
            .collect();
        let history = History {
            init: Bytes::new(),
            steps,
            origin: Origin::Generated,
        };
        let subject = Subject {
            component: component.clone(),
            profile: profile.clone(),
            script: Script::new(component, &history),
        };
        let mut lived = Lived::start(&subject, World::default())?;
        let mut faults = 0;
        for event in 0..subject.script.len() {
            let seen = lived.run(event)?;
            match (seen.outcome, subject.script.command(event)) {
                (Outcome::Reply(_), Some(request)) if !self.understood.contains(request) => {
                    self.understood.push(request.clone());
                }
                (Outcome::Rejected { message, .. }, _) => self.learn(message.as_bytes()),
                (Outcome::Fault(_), _) => faults += 1,
                _ => {}
            }
            if faults >= FAULTS_MAX {
                break;
            }
        }
        Ok(())
    }

    fn learn(&mut self, text: &[u8]) {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-';
        for word in text.split(|byte| !is_word(byte)) {
            if (1..=WORD_CHARS).contains(&word.len())
                && self.words.len() < WORDS_MAX
                && !self.words.iter().any(|known| known == word)
            {
                self.words.push(word.to_vec());
            }
        }
    }

    fn request(&self, random: &mut Random) -> Bytes {
        if !self.understood.is_empty() && random.below(3) > 0 {
            let request = random.pick(&self.understood).clone();
            return vary(random, &request);
        }
        if self.words.is_empty() {
            return blind(random, 0);
        }
        let mut request = random.pick(&self.words).clone();
        for _ in 0..random.below(4) {
            request.push(b' ');
            request.extend(argument(random));
        }
        request.into()
    }
}

/// Another request of the same form: its words but the first are exchanged now and then.
fn vary(random: &mut Random, request: &Bytes) -> Bytes {
    let mut words = request.split(|byte| *byte == b' ');
    let mut varied = words.next().unwrap_or_default().to_vec();
    for word in words {
        varied.push(b' ');
        match random.below(2) {
            0 => varied.extend_from_slice(word),
            _ => varied.extend(argument(random)),
        }
    }
    varied.into()
}

fn argument(random: &mut Random) -> Vec<u8> {
    match random.below(6) {
        0..3 => random.pick(&KEYS).as_bytes().to_vec(),
        3 => random.below(10).to_string().into_bytes(),
        4 => random.word().to_string().into_bytes(),
        _ => vec![b'v'; random.below(300)],
    }
}

/// What can be said to a machine nothing is known of.
fn blind(random: &mut Random, at: usize) -> Bytes {
    let usual: [&[u8]; 14] = [
        b"",
        b"\0",
        b"\n",
        b" ",
        b"0",
        b"-1",
        b"help",
        b"get",
        b"ping",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        "ä€😀".as_bytes(),
    ];
    match usual.get(at) {
        Some(bytes) => Bytes::from_static(bytes),
        None if at.is_multiple_of(3) => {
            let bytes = (0..1 + random.below(64)).map(|_| random.word() as u8);
            bytes.collect()
        }
        None if at % 3 == 1 => vec![b'a' + random.below(26) as u8; 1 + random.below(4096)].into(),
        None => argument(random).into(),
    }
}
