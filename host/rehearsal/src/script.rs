//! A history as a machine sees it: the calls of the log in order, and the queries beside them.

use std::sync::Arc;

use bytes::Bytes;
use skep_core::id::NodeId;
use skep_core::outcome::{ConfChange, LeaderChanged};
use skep_machine::wasm::{Component, Profile};

use crate::history::{History, Origin, Step, escape};
use crate::report::Place;
use crate::world::TERM;

/// Characters of a request that a report shows.
const SHOWN_CHARS: usize = 80;

/// A history of fewer commands is short: they are repeated until there are so many. Three commands seldom show the order of a
/// hash map, and no barrier comes where it would.
const SHORT: usize = 48;

/// The most different queries that are asked.
const QUERIES_MAX: usize = 64;

/// What is rehearsed.
pub(crate) struct Subject {
    pub(crate) component: Arc<Component>,
    pub(crate) profile: Profile,
    pub(crate) script: Script,
}

/// One call of the log.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Init(Bytes),
    Command(Bytes),
    Change(ConfChange),
    Leader(LeaderChanged),
}

/// The calls of the log, in order.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) events: Vec<(usize, Event)>,
    /// Events of the history as it is written; behind them its commands come again, if it is short.
    once: usize,
    /// Asked at any time; empty if the machine answers none.
    pub(crate) queries: Vec<Bytes>,
    pub(crate) origin: Origin,
}

impl Script {
    pub(crate) fn new(component: &Component, history: &History) -> Self {
        let interfaces = component.inspection().interfaces;
        let mut leader = NodeId(1);
        // As in a group: its first leader's first entry initialises the machine and tells it who leads.
        let mut events = Vec::with_capacity(history.steps.len() + 2);
        if interfaces.initializer {
            events.push((0, Event::Init(history.init.clone())));
        }
        events.push((
            0,
            Event::Leader(LeaderChanged {
                old: NodeId(0),
                new: leader,
                term: TERM,
            }),
        ));
        let mut queries = Vec::new();
        let ask = |queries: &mut Vec<Bytes>, query: &Bytes| {
            if !queries.contains(query) && queries.len() < QUERIES_MAX {
                queries.push(query.clone());
            }
        };
        for (at, step) in &history.steps {
            let event = match step {
                Step::Command(command) => Event::Command(command.clone()),
                Step::Change(change) => Event::Change(change.clone()),
                Step::Leader(new) => Event::Leader(LeaderChanged {
                    old: std::mem::replace(&mut leader, *new),
                    new: *new,
                    term: TERM,
                }),
                Step::Query(query) => {
                    ask(&mut queries, query);
                    continue;
                }
            };
            events.push((*at, event));
        }
        if !interfaces.queries {
            queries.clear();
        } else if queries.is_empty() {
            // Many machines take as a query what they take as a command.
            history
                .commands()
                .for_each(|command| ask(&mut queries, command));
        }
        let once = events.len();
        repeat(&mut events);
        Self {
            events,
            once,
            queries,
            origin: history.origin,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// Events that were run of the history as it is written.
    pub(crate) fn once(&self) -> usize {
        self.once.min(self.len())
    }

    /// How often the history is gone through, a part of the last time counted in.
    pub(crate) fn rounds(&self) -> usize {
        self.round(self.len().saturating_sub(1))
    }

    /// The round that an event is of, from 1.
    fn round(&self, event: usize) -> usize {
        match event.checked_sub(self.once) {
            None => 1,
            Some(later) => 2 + later / self.commands().count().max(1),
        }
    }

    /// The events of the history as it is written that are commands.
    pub(crate) fn commands(&self) -> impl Iterator<Item = usize> {
        (0..self.once()).filter(|event| self.command(*event).is_some())
    }

    pub(crate) fn command(&self, event: usize) -> Option<&Bytes> {
        match &self.events[event].1 {
            Event::Command(command) => Some(command),
            _ => None,
        }
    }

    /// Where an event is, for the reader.
    pub(crate) fn place(&self, event: usize) -> Place {
        let round = self.round(event);
        let (at, event) = &self.events[event];
        let text = match event {
            Event::Init(config) => format!("!init {}", escape(config)),
            Event::Command(command) => escape(command),
            Event::Change(change) => format!("!member {:?} {}", change.kind, change.node),
            Event::Leader(change) => format!("!leader {}", change.new),
        };
        Place {
            line: *at,
            round,
            request: cut(text),
        }
    }
}

/// Appends the commands of a short history once more, until it is no longer short.
fn repeat(events: &mut Vec<(usize, Event)>) {
    let commands = events
        .iter()
        .filter(|(_, event)| matches!(event, Event::Command(_)));
    let commands: Vec<_> = commands.cloned().collect();
    let mut there = commands.len();
    while !commands.is_empty() && there < SHORT {
        events.extend_from_slice(&commands);
        there += commands.len();
    }
}

/// As much of a text as a report shows.
pub(crate) fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}
