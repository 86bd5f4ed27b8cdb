//! A client whose commands fail costs the others no more than its share.

use skep_core::id::{NodeId, SessionId};
use skep_core::input::{Input, Waiter};
use skep_core::outcome::{GuestFault, Outcome};
use skep_core::proposal::{Proposal, ProposalError};
use skep_core::status::HeldBack;

use crate::cluster::{Cluster, anonymous, in_session};

/// What the machine fails on.
const POISON: &str = "fault";

fn session(cluster: &mut Cluster, id: u64) -> SessionId {
    cluster
        .ask(id, Proposal::OpenSession)
        .expect("a session")
        .session()
}

/// A client that has one command under way at a time, through `node`.
struct Client {
    session: SessionId,
    node: u64,
    command: &'static str,
    sequence: u64,
    waiting: Option<Waiter>,
    done: u64,
}

impl Client {
    fn new(cluster: &mut Cluster, node: u64, command: &'static str) -> Self {
        Self {
            session: session(cluster, node),
            node,
            command,
            sequence: 0,
            waiting: None,
            done: 0,
        }
    }

    fn step(&mut self, cluster: &mut Cluster) {
        if let Some(waiter) = self.waiting {
            match cluster.reply(self.node, waiter) {
                None => return,
                Some(Ok(_)) => self.done += 1,
                Some(Err(ProposalError::Busy | ProposalError::Unknown)) => {}
                Some(Err(error)) => panic!("{error}"),
            }
        }
        self.sequence += 1;
        let proposal = in_session(self.session, self.sequence, self.command);
        self.waiting = Some(cluster.propose(self.node, proposal));
    }
}

/// Runs clients for so many ticks on a leader, node 1, whose machine needs `rebuild` ticks for every entry with a failing
/// command and none for others. Gives the ticks that it spent on those.
fn run(cluster: &mut Cluster, clients: &mut [Client], ticks: u64, rebuild: u64) -> u64 {
    let (mut spent, mut left) = (0, 0);
    cluster.node(1).machine_stuck = true;
    for _ in 0..ticks {
        for client in clients.iter_mut() {
            client.step(cluster);
        }
        cluster.tick(1);
        loop {
            let fails = cluster.node(1).next_work_has(POISON);
            match fails {
                None => break,
                Some(false) => {}
                Some(true) => {
                    if left == 0 {
                        left = rebuild;
                        break;
                    }
                    left -= 1;
                    spent += 1;
                    if left > 0 {
                        break;
                    }
                }
            }
            cluster.node(1).machine_stuck = false;
            cluster.turn(1, usize::MAX, 1);
            cluster.node(1).machine_stuck = true;
        }
        cluster.run();
    }
    cluster.node(1).machine_stuck = false;
    cluster.run();
    spent
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::with(3, |config| {
        // Neither barriers nor the pause are looked at here.
        config.limits.barrier_rebuilds = u64::MAX;
        config.limits.pause_faults = 0;
    });
    cluster.elect(1);
    cluster.tick(2);
    cluster
}

#[test]
fn a_status_names_what_clients_wait_for_whose_commands_failed() {
    let mut cluster = cluster();
    let held_back = |cluster: &mut Cluster| cluster.status(1).expect("leads").held_back;
    let session = session(&mut cluster, 1);
    let failed = cluster.ask(1, in_session(session, 1, POISON));
    assert!(failed.is_ok(), "{failed:?}");
    assert_eq!(held_back(&mut cluster), []);
    // Others are there to be protected.
    cluster.ask(1, anonymous("good")).expect("committed");
    let waiter = cluster.propose(1, in_session(session, 2, "good"));
    cluster.run();
    assert_eq!(held_back(&mut cluster), [HeldBack::Suspects]);
    cluster.until("it is answered", |cluster| {
        cluster.reply(1, waiter).is_some()
    });
    assert_eq!(held_back(&mut cluster), []);
}

// P-39
#[test]
fn clients_whose_commands_fail_take_a_quarter_of_the_time_at_most() {
    const TICKS: u64 = 2_000;
    for rebuild in [1, 2, 5, 20] {
        let mut cluster = cluster();
        let mut clients = vec![Client::new(&mut cluster, 1, "good")];
        for node in [1, 2, 3, 3] {
            clients.push(Client::new(&mut cluster, node, POISON));
        }
        let spent = run(&mut cluster, &mut clients, TICKS, rebuild);
        // Before its first failure nobody is a suspect.
        let at_first = 4 * rebuild;
        assert!(
            spent <= TICKS / 4 + at_first,
            "rebuilds of {rebuild} ticks took {spent}"
        );
        let good = clients[0].done;
        assert!(good >= TICKS / 2, "{good} good commands beside {spent}");
        assert!(spent >= TICKS / 20, "they are starved: {spent}");
        println!("rebuilds of {rebuild:>2} ticks: {spent} of {TICKS} ticks, {good} good commands");
    }
}

#[test]
fn clients_without_a_session_answer_for_each_other_on_their_node_and_nobody_else() {
    let mut cluster = cluster();
    let fault = Outcome::Fault(GuestFault::Unreachable);
    let failed = cluster.ask(3, anonymous(POISON)).expect("answered");
    assert_eq!(failed.outcome, fault);
    cluster.tick(5);
    cluster.node(1).machine_stuck = true;
    let last = cluster.status(1).expect("runs").last;
    let suspects: Vec<_> = (0..4)
        .map(|n| cluster.command(3, &format!("suspect {n}")))
        .collect();
    let own: Vec<_> = (0..4)
        .map(|n| cluster.command(1, &format!("own {n}")))
        .collect();
    cluster.run();
    // Those of node 1 share an entry. Of node 3 one goes, and the rest waits for it.
    let packed = |cluster: &mut Cluster| cluster.status(1).expect("runs").last.0 - last.0;
    assert_eq!(packed(&mut cluster), 2);
    cluster.tick(10);
    assert_eq!(packed(&mut cluster), 2);
    assert_eq!(cluster.status(1).expect("runs").queued, 3);
    cluster.node(1).machine_stuck = false;
    cluster.run();
    // It did not fail, so two go, and then all others.
    assert_eq!(packed(&mut cluster), 4);
    for (node, waiters) in [(1, own), (3, suspects)] {
        for waiter in waiters {
            let reply = cluster.reply(node, waiter).expect("answered");
            assert!(reply.is_ok(), "{reply:?}");
        }
    }
}

/// A command of a kilobyte that finds no room, and one for which there is room again.
fn large(word: &str) -> Proposal {
    anonymous(&format!("{word} {}", "-".repeat(1024)))
}

#[test]
fn what_found_no_room_is_refused_with_the_reason_while_small_commands_pass() {
    let mut cluster = cluster();
    let fault = Outcome::Fault(GuestFault::OutOfMemory);
    // Writers at every node: each is known by one failure.
    for node in 1..=3 {
        let failed = cluster.ask(node, large("full")).expect("answered");
        assert_eq!(failed.outcome, fault, "node {node}");
    }
    cluster.tick(5);
    let entries = cluster.status(1).expect("runs").last;
    for _ in 0..20 {
        for node in 1..=3 {
            let refused = cluster.ask(node, large("full"));
            assert_eq!(refused, Err(ProposalError::OutOfMemory), "node {node}");
        }
    }
    assert_eq!(
        cluster.status(1).expect("runs").last,
        entries,
        "no replica is rebuilt for any of these"
    );
    // Whoever makes room is not kept from it.
    for node in 1..=3 {
        cluster.ask(node, anonymous("delete")).expect("answered");
    }
    // In five seconds one may try, in vain, and none beside it.
    cluster.tick(60);
    assert_eq!(cluster.ask(2, large("full")).expect("tried").outcome, fault);
    assert_eq!(
        cluster.ask(3, large("full")),
        Err(ProposalError::OutOfMemory)
    );
    // There is room again: one finds out, and then everybody writes.
    cluster.tick(60);
    cluster.ask(3, large("echo")).expect("tried");
    for node in 1..=3 {
        cluster.ask(node, large("echo")).expect("answered");
    }
}

#[test]
fn one_that_finds_no_room_keeps_nobody_else_from_writing() {
    let mut cluster = cluster();
    let stubborn = session(&mut cluster, 1);
    let failing = |sequence| match large("full") {
        Proposal::Command(command) => in_session(
            stubborn,
            sequence,
            std::str::from_utf8(&command.data).expect("text"),
        ),
        other => other,
    };
    let failed = cluster.ask(1, failing(1)).expect("answered");
    assert_eq!(failed.outcome, Outcome::Fault(GuestFault::OutOfMemory));
    assert_eq!(cluster.ask(1, failing(2)), Err(ProposalError::OutOfMemory));
    // Others overwrite what they have with as much.
    for node in 1..=3 {
        cluster.ask(node, large("echo")).expect("answered");
    }
}

#[test]
fn a_suspect_that_fails_no_more_is_like_any_other() {
    let mut cluster = cluster();
    let session = session(&mut cluster, 1);
    cluster
        .ask(1, in_session(session, 1, POISON))
        .expect("answered");
    cluster.tick(5);
    let entries = |cluster: &mut Cluster, first: u64| {
        let last = cluster.status(1).expect("runs").last.0;
        for n in 0..3 {
            cluster.propose(1, in_session(session, first + n, "good"));
            cluster.command(1, "another");
        }
        cluster.run();
        cluster.status(1).expect("runs").last.0 - last
    };
    assert_eq!(entries(&mut cluster, 2), 3, "theirs, then one, then two");
    cluster.tick(110);
    assert_eq!(entries(&mut cluster, 5), 1);
}

#[test]
fn what_waits_too_long_is_refused_and_not_applied() {
    let mut cluster = cluster();
    cluster.ask(1, anonymous(POISON)).expect("answered");
    cluster.tick(5);
    cluster.node(1).machine_stuck = true;
    let first = cluster.command(1, "first");
    let second = cluster.command(1, "second");
    cluster.until("an answer", |cluster| cluster.reply(1, second).is_some());
    assert_eq!(cluster.reply(1, first), Some(Err(ProposalError::Unknown)));
    assert_eq!(cluster.reply(1, second), Some(Err(ProposalError::Busy)));
    cluster.node(1).machine_stuck = false;
    cluster.tick(10);
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), ["first"]);
    }
}

#[test]
fn a_leader_that_gives_way_hands_over_what_it_let_wait() {
    let mut cluster = cluster();
    cluster.ask(1, anonymous(POISON)).expect("answered");
    cluster.tick(5);
    cluster.node(1).machine_stuck = true;
    let waiters: Vec<_> = (0..5).map(|n| cluster.command(1, &n.to_string())).collect();
    cluster.run();
    let to = NodeId(2);
    cluster.input(1, Input::Transfer { to });
    cluster.until("another leads", |cluster| cluster.leader() == Some(2));
    cluster.node(1).machine_stuck = false;
    cluster.tick(5);
    for waiter in waiters {
        let reply = cluster.reply(1, waiter).expect("answered");
        assert!(reply.is_ok(), "{reply:?}");
    }
    assert_eq!(cluster.commands(3), ["0", "1", "2", "3", "4"]);
}
