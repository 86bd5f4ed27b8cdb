//! Sessions whose machines run at their own pace.

use bytes::Bytes;
use skep_core::deployment::{Deployment, Quota};
use skep_core::id::{ComponentId, LogIndex, NodeId, RequestId, SessionId};
use skep_core::input::{Input, Waiter};
use skep_core::outcome::Outcome;
use skep_core::proposal::{Command, Proposal, ProposalError};
use skep_core::sessions::KEPT_BYTES_MAX;
use skep_core::status::Health;

use crate::cluster::{Cluster, REFUSED, in_session};

/// Replies of a command that takes them back: half of what one may be to be kept.
const REPLY: usize = 32_000;

fn command(session: SessionId, sequence: u64, acknowledged: u64) -> Proposal {
    let mut data = format!("echo {sequence} ").into_bytes();
    data.resize(REPLY, b'.');
    Proposal::Command(Command {
        request: RequestId { session, sequence },
        acknowledged,
        data: data.into(),
    })
}

/// The host's section of the newest snapshot of a node.
fn section(cluster: &mut Cluster, node: u64, index: LogIndex) -> Bytes {
    cluster.node(node).disk.files[&index].1.clone()
}

/// What became of a command: where it was applied, or why not.
fn outcome(cluster: &mut Cluster, node: u64, waiter: Waiter) -> Result<LogIndex, ProposalError> {
    cluster.until("an answer", |cluster| cluster.reply(node, waiter).is_some());
    let reply = cluster.reply(node, waiter).expect("just seen");
    reply.map(|response| response.index)
}

fn lead(cluster: &mut Cluster, node: u64) {
    cluster.until("another leader", |cluster| {
        let leader = cluster.leader();
        if let Some(leader) = leader.filter(|leader| *leader != node) {
            let to = NodeId(node);
            cluster.input(leader, Input::Transfer { to });
        }
        leader == Some(node)
    });
}

/// Three sessions send twice what may be kept, one of them most of it; one acknowledges, all repeat some. Meanwhile the
/// machines of the replicas stand still in turns, each for another time, so that what is planned on one is complete on
/// another.
// P-5
#[test]
fn machines_that_lag_by_different_amounts_keep_the_same_answers() {
    let mut cluster = Cluster::with(3, |config| {
        config.limits.request_ticks = 100_000;
        config.limits.barrier_log_bytes_min = 1 << 40;
        config.limits.barrier_log_bytes_max = 1 << 40;
        config.limits.unapplied_bytes = 1 << 40;
    });
    cluster.elect(1);
    let sessions: Vec<SessionId> = (0..3)
        .map(|_| {
            let opened = cluster.ask(1, Proposal::OpenSession);
            opened.expect("opened").session()
        })
        .collect();
    let rounds = 2 * KEPT_BYTES_MAX / (10 * REPLY as u64);
    let mut sent = [0; 3];
    let mut most_kept = 0;
    for round in 0..rounds {
        // Node 1 is never far behind, the others for up to 6 and up to 30 rounds.
        cluster.node(2).machine_stuck = round % 7 != 0;
        cluster.node(3).machine_stuck = round % 31 != 0;
        for (of, session) in sessions.iter().enumerate() {
            for _ in 0..[7, 2, 1][of] {
                sent[of] += 1;
                let acknowledged = if of == 1 { sent[of] - 1 } else { 0 };
                cluster.propose(1, command(*session, sent[of], acknowledged));
            }
            // A retry of what has been answered long ago, or was never sent.
            let again = (round * 5 + 1).min(sent[of]);
            cluster.propose(1, command(*session, again, 0));
        }
        cluster.run();
        let kept = cluster.status(1).expect("runs").session_bytes;
        most_kept = most_kept.max(kept);
    }
    assert!(most_kept <= KEPT_BYTES_MAX);
    assert!(most_kept > KEPT_BYTES_MAX * 9 / 10, "{most_kept} were kept");
    let barrier = cluster.propose(1, Proposal::Barrier);
    cluster.run();
    for node in [2, 3] {
        let lag = cluster.status(node).expect("runs");
        assert!(lag.applied < lag.commit, "node {node} is behind");
        cluster.node(node).machine_stuck = false;
        cluster.run();
    }
    let barrier = outcome(&mut cluster, 1, barrier).expect("a barrier");
    cluster.tick(3);
    let sections = [1, 2, 3].map(|node| section(&mut cluster, node, barrier));
    assert!(sections[0] == sections[1] && sections[1] == sections[2]);
    assert!(sections[0].len() as u64 <= skep_core::state::BYTES_MAX);

    // What each of them says, from its memory and from its snapshot.
    let mut told = Vec::new();
    for restarts in [false, true] {
        for leader in [2, 3, 1] {
            if restarts {
                cluster.crash(leader);
                cluster.restart(leader);
            }
            lead(&mut cluster, leader);
            let waiters: Vec<_> = sessions
                .iter()
                .zip(sent)
                .flat_map(|(session, sent)| (1..=sent).map(|sequence| (*session, sequence)))
                .map(|(session, sequence)| cluster.propose(leader, command(session, sequence, 0)))
                .collect();
            cluster.run();
            let outcomes: Vec<_> = waiters
                .into_iter()
                .map(|waiter| outcome(&mut cluster, leader, waiter))
                .collect();
            told.push(outcomes);
        }
    }
    for outcomes in &told {
        assert!(*outcomes == told[0]);
    }
    let count = |such: fn(&Result<LogIndex, ProposalError>) -> bool| {
        told[0].iter().filter(|outcome| such(outcome)).count()
    };
    assert!(count(|outcome| outcome.is_ok()) > 500);
    assert!(count(|outcome| *outcome == Err(ProposalError::AnswerExpired)) > 500);
    // One session has acknowledged.
    let closed = count(|outcome| *outcome == Err(ProposalError::SequenceClosed));
    assert_eq!(closed as u64, sent[1] - 1);
    assert_eq!(
        told[0].iter().filter(|outcome| outcome.is_err()).count(),
        count(|outcome| *outcome == Err(ProposalError::AnswerExpired)) + closed
    );
}

/// Three releases that say the same in other words.
// P-23
#[test]
fn the_words_of_the_host_are_in_no_hash_and_no_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    for (node, words) in [(1, "no"), (2, "nay"), (3, "expected value at line 1")] {
        cluster.node(node).machine.words = words;
    }
    let opened = cluster.ask(1, Proposal::OpenSession);
    let session = opened.expect("opened").session();
    let refused = |message: &str| Outcome::Refused {
        code: 9,
        message: message.to_owned(),
    };
    let first = cluster.ask(1, in_session(session, 1, "refuse"));
    assert_eq!(first.expect("applied").outcome, refused("no"));
    let activation = Proposal::Activate(Deployment {
        component: ComponentId([REFUSED; 32]),
        profile: Bytes::new(),
        quota: Quota::default(),
        barriers: Default::default(),
    });
    let activated = cluster.ask(1, activation).expect("applied").outcome;
    assert!(matches!(activated, Outcome::Refused { code: 422, .. }));
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a barrier").index;
    cluster.until("the replicas agree", |cluster| {
        cluster.status(1).expect("runs").verified >= barrier
    });
    let sections = [1, 2, 3].map(|node| section(&mut cluster, node, barrier));
    assert!(sections[0] == sections[1] && sections[1] == sections[2]);
    for node in 1..=3 {
        assert!(cluster.node(node).diverged.is_empty());
        assert_eq!(cluster.status(node).expect("runs").health, Health::Healthy);
        // Nobody tells another's words.
        let again = cluster.ask(node, in_session(session, 1, "refuse"));
        assert_eq!(again.expect("applied before").outcome, refused(""));
    }
}
