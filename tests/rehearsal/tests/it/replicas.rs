//! Three replicas of one log with everything that may happen to one of them: restarts, catching up by snapshot, queries
//! on one of them only, commands that exceed the fuel by a hair, commands that meet the memory limit.
//!
//! `SKEP_REHEARSAL_COMMANDS=200000 cargo test --release -p skep-rehearsal-tests replicas -- --nocapture` is the long form.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_core::outcome::{GuestFault, Outcome};
use skep_machine::wasm::{Component, Profile, WasmMachine};
use skep_machine::{Applied, StateMachine, ToEnd};
use skep_rehearsal_tests::HASH_MAP;

use crate::support::{self, Random, compile, context, machine, on_apply_thread, save};

/// Commands of the run unless the environment asks for more.
const COMMANDS: u64 = 6_000;
/// Commands of the run without canonical points: its replicas never let go of their journals, so its cost is quadratic.
const COMMANDS_WITHOUT: u64 = 4_000;
/// Entries between two barriers.
const BARRIER_EVERY: u64 = 40;
/// Of so many barriers one is of the saved form, where there are images.
const SAVED: u64 = 3;
/// Entries between two moments at which something may happen to a replica.
const ROUND: u64 = 20;
const REPLICAS: usize = 3;

/// Small enough that the heap of the keys that are there now and then reaches the memory limit; and `spin` of
/// [`SPINS`] costs the fuel of a command but for a few look-ups more or less.
fn profile() -> Profile {
    Profile {
        command_fuel: 300_000,
        memory_bytes: 42 << 16,
        ..Profile::default()
    }
}

/// One entry of the log: commands, or a barrier where there are none.
type Entry = Vec<Bytes>;

fn log(commands: u64, spins: std::ops::Range<u64>) -> Vec<Entry> {
    let mut random = Random(4711);
    let mut entries = Vec::new();
    let mut made = 0;
    while made < commands {
        if entries.len() as u64 % BARRIER_EVERY == BARRIER_EVERY - 1 {
            entries.push(Vec::new());
            continue;
        }
        let count = if random.below(4) == 0 {
            1 + random.below(24)
        } else {
            1
        };
        let entry = (0..count)
            .map(|_| {
                let key = random.below(512);
                match random.below(1000) {
                    0..440 => format!("put k{key} {}", random.below(11_000)),
                    440..840 => format!("del k{key}"),
                    840..855 => format!(
                        "spin {}",
                        spins.start + random.below(spins.end - spins.start)
                    ),
                    _ => "first 3".into(),
                }
                .into()
            })
            .collect();
        entries.push(entry);
        made += count;
    }
    entries
}

/// What a replica does at a barrier.
#[derive(Clone, Copy, PartialEq)]
enum Barriers {
    /// It saves, and goes on from the bytes.
    Saved,
    /// It takes an image and goes on as it is, but for one of [`SAVED`].
    Images,
    /// It saves and goes on as it is, which is the mistake.
    Uncanonical,
}

/// What a replica has on its disk.
#[derive(Clone, PartialEq)]
struct Snapshot {
    image: bool,
    bytes: Bytes,
}

/// The first replica to apply an entry says what is right; all others are compared with it.
#[derive(Default)]
struct Record {
    applied: Vec<Option<Applied>>,
    /// The newest barriers, and digests of all.
    snapshots: BTreeMap<u64, Snapshot>,
    digests: BTreeMap<u64, [u8; 32]>,
    figures: Figures,
}

#[derive(Default, Debug)]
struct Figures {
    commands: u64,
    barriers: u64,
    compared_entries: u64,
    compared_snapshots: u64,
    out_of_fuel: u64,
    over_memory: u64,
    restarts: u64,
    caught_up: u64,
    /// Replicas that began with an image.
    by_image: u64,
    queries: u64,
    other_replies: u64,
    other_fuel: u64,
    other_snapshots: u64,
    first_difference: Option<u64>,
}

impl Record {
    fn note(&mut self, index: u64, applied: Applied) {
        let slot = &mut self.applied[index as usize];
        let figures = &mut self.figures;
        let Some(right) = slot else {
            for outcome in &applied.outcomes {
                figures.commands += 1;
                match outcome {
                    Outcome::Fault(GuestFault::OutOfFuel) => figures.out_of_fuel += 1,
                    Outcome::Fault(GuestFault::OutOfMemory) => figures.over_memory += 1,
                    _ => {}
                }
            }
            *slot = Some(applied);
            return;
        };
        figures.compared_entries += 1;
        let (replies, fuel) = (
            right.outcomes != applied.outcomes,
            right.fuel != applied.fuel,
        );
        figures.other_replies += u64::from(replies);
        figures.other_fuel += u64::from(fuel);
        if replies || fuel {
            figures.first_difference.get_or_insert(index);
        }
    }

    fn note_snapshot(&mut self, index: u64, snapshot: Snapshot) {
        let digest: [u8; 32] = Sha256::digest(&snapshot.bytes).into();
        match self.digests.insert(index, digest) {
            None => {
                self.figures.barriers += 1;
                self.snapshots.insert(index, snapshot);
            }
            Some(right) => {
                self.figures.compared_snapshots += 1;
                if right != digest {
                    self.figures.other_snapshots += 1;
                    self.figures.first_difference.get_or_insert(index);
                    self.digests.insert(index, right);
                }
            }
        }
    }
}

struct Replica {
    machine: WasmMachine,
    /// The entry it applies next.
    next: u64,
    /// The barrier it has a snapshot of, on its own disk.
    own: Option<(u64, Snapshot)>,
}

struct Run {
    component: Arc<Component>,
    entries: Vec<Entry>,
    barriers: Barriers,
    replicas: Vec<Replica>,
    record: Record,
    random: Random,
}

impl Run {
    fn new(component: Arc<Component>, entries: Vec<Entry>, barriers: Barriers) -> Self {
        let replica = |_| Replica {
            machine: machine(&component, &profile()),
            next: 0,
            own: None,
        };
        let record = Record {
            applied: vec![None; entries.len()],
            ..Record::default()
        };
        Self {
            replicas: (0..REPLICAS).map(replica).collect(),
            component,
            entries,
            barriers,
            record,
            random: Random(7),
        }
    }

    fn run(mut self) -> Figures {
        let end = self.entries.len() as u64;
        let mut now = 0;
        while now < end {
            now = (now + ROUND).min(end);
            for at in 0..REPLICAS {
                match self.random.below(20) {
                    0 => self.restart(at),
                    // It is away and lags behind.
                    1..3 if now < end => continue,
                    3 => self.catch_up(at),
                    _ => {}
                }
                self.advance(at, now);
            }
        }
        self.record.figures
    }

    /// The process dies and comes back with what is on its disk.
    fn restart(&mut self, at: usize) {
        self.record.figures.restarts += 1;
        let from = self.replicas[at].own.clone();
        self.start(at, from);
    }

    /// The log that the replica lacks is gone: it gets the newest snapshot of its peers.
    fn catch_up(&mut self, at: usize) {
        let newest = self.record.snapshots.last_key_value();
        let Some((index, snapshot)) = newest.map(|(index, newest)| (*index, newest.clone())) else {
            return;
        };
        if index >= self.replicas[at].next {
            self.record.figures.caught_up += 1;
            self.start(at, Some((index, snapshot)));
        }
    }

    fn start(&mut self, at: usize, from: Option<(u64, Snapshot)>) {
        let mut machine = machine(&self.component, &profile());
        if let Some((index, Snapshot { image, bytes })) = &from {
            let context = context(*index + 1);
            if *image {
                self.record.figures.by_image += 1;
                let resumed = machine.resume(&context, bytes.clone());
                resumed.to_end().unwrap();
            } else {
                let restored = machine.restore(&context, 1, bytes.clone());
                restored.to_end().unwrap();
            }
        }
        self.replicas[at] = Replica {
            machine,
            next: from.as_ref().map_or(0, |(index, _)| index + 1),
            own: from,
        };
    }

    fn advance(&mut self, at: usize, to: u64) {
        let replica = &mut self.replicas[at];
        while replica.next < to {
            let index = replica.next;
            replica.next += 1;
            let (context, entry) = (context(index + 1), &self.entries[index as usize]);
            if entry.is_empty() {
                let saved = (index / BARRIER_EVERY).is_multiple_of(SAVED);
                let image = self.barriers == Barriers::Images && !saved;
                let bytes = match image {
                    true => support::image(&mut replica.machine, &context).expect("it has images"),
                    false => save(&mut replica.machine, &context),
                };
                if !image && self.barriers != Barriers::Uncanonical {
                    let restored = replica.machine.restore(&context, 1, bytes.clone());
                    restored.to_end().unwrap();
                }
                let snapshot = Snapshot { image, bytes };
                replica.own = Some((index, snapshot.clone()));
                self.record.note_snapshot(index, snapshot);
                // Like the log, snapshots before the last few are not kept.
                while self.record.snapshots.len() > 3 {
                    self.record.snapshots.pop_first();
                }
                continue;
            }
            self.record.note(
                index,
                replica.machine.apply(&context, entry).to_end().unwrap(),
            );
            if at == 1 && self.random.below(10) == 0 {
                self.record.figures.queries += 1;
                let answer = replica
                    .machine
                    .query(&Bytes::from_static(b"first 100"))
                    .to_end()
                    .unwrap();
                assert!(matches!(answer, Outcome::Reply(_)), "{answer:?}");
            }
        }
    }
}

/// Finds how many look-ups cost about the fuel of a command in a machine of about the usual size, and so which
/// commands pass or fail by a hair.
fn marginal_spins(component: &Arc<Component>) -> std::ops::Range<u64> {
    let mut machine = machine(component, &profile());
    let mut index = 0;
    let mut apply = |command: String| {
        index += 1;
        let applied = machine
            .apply(&context(index), &[Bytes::from(command)])
            .to_end()
            .unwrap();
        matches!(applied.outcomes[0], Outcome::Reply(_))
    };
    for key in 0..256 {
        assert!(apply(format!("put k{} 10", key * 2)));
    }
    let (mut passes, mut fails) = (0, 100_000);
    while fails - passes > 1 {
        let middle = (passes + fails) / 2;
        if apply(format!("spin {middle}")) {
            passes = middle;
        } else {
            fails = middle;
        }
    }
    passes - passes / 100..fails + fails / 100
}

fn commands() -> u64 {
    match std::env::var("SKEP_REHEARSAL_COMMANDS") {
        Ok(commands) => commands.parse().expect("a number of commands"),
        Err(_) => COMMANDS,
    }
}

// P-21
#[test]
fn replicas_agree_in_everything_whatever_happens_to_each() {
    agree(Barriers::Saved);
}

// P-21
#[test]
fn replicas_with_images_agree_in_everything_whatever_happens_to_each() {
    let figures = agree(Barriers::Images);
    assert!(figures.by_image >= 5, "too few: {figures:?}");
}

fn agree(barriers: Barriers) -> Figures {
    let figures = on_apply_thread(move || {
        let component = compile(HASH_MAP);
        let entries = log(commands(), marginal_spins(&component));
        Run::new(component, entries, barriers).run()
    });
    println!("{figures:#?}");
    assert!(figures.commands >= commands());
    for (what, count) in [
        ("out of fuel", figures.out_of_fuel),
        ("over the memory limit", figures.over_memory),
        ("restarts", figures.restarts),
        ("catch-ups", figures.caught_up),
        ("queries", figures.queries),
        ("compared snapshots", figures.compared_snapshots),
    ] {
        assert!(count >= 5, "too few to mean anything: {what}, {figures:?}");
    }
    let differences = figures.other_replies + figures.other_fuel + figures.other_snapshots;
    assert_eq!(differences, 0, "{figures:?}");
    figures
}

// P-21
#[test]
fn replicas_diverge_without_canonical_points() {
    let figures = on_apply_thread(|| {
        let component = compile(HASH_MAP);
        let mut entries = log(commands(), marginal_spins(&component));
        let mut made = 0;
        entries.retain(|entry| {
            made += entry.len() as u64;
            made <= COMMANDS_WITHOUT
        });
        Run::new(component, entries, Barriers::Uncanonical).run()
    });
    println!("without canonical points: {figures:#?}");
    assert!(figures.other_replies > 0, "{figures:?}");
    assert!(figures.other_fuel > 0, "{figures:?}");
}
