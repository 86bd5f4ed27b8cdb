use super::*;

fn id(propose: &proto::Propose) -> u128 {
    SessionId::from_bytes(&propose.session).expect("16 bytes").0
}

#[tokio::test]
async fn the_leader_is_followed_and_remembered() {
    let leader = FakeNode::start(|_, request| {
        if is_open(request) {
            opened()
        } else {
            Act::Answer(proposed(request))
        }
    })
    .await;
    let address = leader.address.clone();
    let follower = FakeNode::start(move |_, _| error("not-leader", false, true, &address)).await;
    let client = client(&[&follower]).await;
    let session = client.session(GROUP).await.unwrap();
    for command in ["a", "b", "c"] {
        assert_eq!(
            reply(&session.propose(command.into()).await.unwrap()),
            command
        );
    }
    assert_eq!(
        follower.seen().len(),
        1,
        "the leader is asked directly once it is known"
    );
    let seen = leader.seen();
    assert!(seen.iter().all(|request| request.group == GROUP.0));
    let names: Vec<_> = proposals(&seen)
        .iter()
        .map(|propose| (id(propose), propose.sequence, propose.acknowledged))
        .collect();
    assert_eq!(names, [(77, 1, 0), (77, 2, 1), (77, 3, 2)]);
}

// P-9
#[tokio::test]
async fn a_lost_connection_repeats_the_command_under_its_name() {
    let node = FakeNode::start(|at, request| match at {
        0 => opened(),
        1 => Act::Answer(proposed(request)),
        2 | 3 => Act::Close,
        _ => Act::Answer(proposed(request)),
    })
    .await;
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    session.propose("first".into()).await.unwrap();
    let response = session.propose("second".into()).await.unwrap();
    assert_eq!(
        response.request,
        RequestId {
            session: SessionId(77),
            sequence: 2
        }
    );
    assert_eq!(
        (response.index, reply(&response)),
        (LogIndex(102), Bytes::from("second"))
    );
    let seen = node.seen();
    let names: Vec<_> = proposals(&seen)
        .iter()
        .map(|propose| (id(propose), propose.sequence, &propose.data[..]))
        .collect();
    let second = (77, 2, &b"second"[..]);
    assert_eq!(names, [(77, 1, &b"first"[..]), second, second, second]);
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_left_for_another() {
    let silent = FakeNode::start(|_, request| {
        if is_open(request) {
            opened()
        } else {
            Act::Ignore
        }
    })
    .await;
    let other = FakeNode::start(|_, request| {
        if is_open(request) {
            opened()
        } else {
            Act::Answer(proposed(request))
        }
    })
    .await;
    let config = ClientConfig {
        attempt_timeout: Duration::from_millis(50),
        ..config(&[&silent, &other])
    };
    let session = Client::connect(config)
        .await
        .unwrap()
        .session(GROUP)
        .await
        .unwrap();
    session.propose("x".into()).await.unwrap();
    let (first, second) = (silent.seen(), other.seen());
    assert_eq!(
        proposals(&first)[0].sequence,
        proposals(&second)[0].sequence
    );
}

// P-10
#[tokio::test]
async fn a_refusal_is_certain_unless_an_earlier_try_is_not() {
    let node = FakeNode::start(|at, _| match at {
        0 => opened(),
        1 => error("too-large", false, false, ""),
        2 => Act::Close,
        _ => error("too-large", false, false, ""),
    })
    .await;
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    let refused = session.propose("x".into()).await.unwrap_err();
    assert_eq!(
        (refused.code().name(), refused.is_unknown()),
        ("too-large", false)
    );
    let unknown = session.propose("y".into()).await.unwrap_err();
    assert!(unknown.is_unknown(), "{unknown}");
}

#[tokio::test]
async fn a_command_that_is_not_answered_in_time_is_unknown_and_one_that_was_never_taken_is_not() {
    let node = FakeNode::start(|at, _| if at == 0 { opened() } else { Act::Ignore }).await;
    let limit = Duration::from_millis(200);
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    let session = session.with_timeout(limit);
    assert!(session.propose("x".into()).await.unwrap_err().is_unknown());
    // The command that was given up does not hold the session up.
    let _ = session.propose("y".into()).await;
    assert_eq!(proposals(&node.seen())[1].acknowledged, 1);

    let node = FakeNode::start(|at, _| {
        if at == 0 {
            opened()
        } else {
            error("no-leader", false, true, "")
        }
    })
    .await;
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    let session = session.with_timeout(limit);
    let refused = session.propose("x".into()).await.unwrap_err();
    assert_eq!(
        (
            refused.code().name(),
            refused.is_unknown(),
            refused.is_retryable()
        ),
        ("no-leader", false, true)
    );
}

#[tokio::test]
async fn an_expired_session_says_so_and_can_be_reopened() {
    let node = FakeNode::start(|at, request| match at {
        0 => opened(),
        1 => error("session-expired", false, false, ""),
        2 => Act::Answer(response::Body::SessionOpened(proto::SessionOpened {
            session: SessionId(90).to_bytes(),
            index: 90,
            term: 3,
        })),
        _ => Act::Answer(proposed(request)),
    })
    .await;
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    assert_eq!(
        session.propose("x".into()).await.unwrap_err(),
        ClientError::SessionExpired
    );
    session.reopen().await.unwrap();
    let response = session.propose("x".into()).await.unwrap();
    assert_eq!(
        response.request,
        RequestId {
            session: SessionId(90),
            sequence: 1
        }
    );
}

#[tokio::test]
async fn many_commands_are_in_flight_on_one_connection_and_answered_in_any_order() {
    const COMMANDS: usize = 1000;
    let node = FakeNode::start(|at, request| match at {
        0 => opened(),
        COMMANDS => Act::Release(proposed(request)),
        _ => Act::Keep(proposed(request)),
    })
    .await;
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..COMMANDS {
        let session = session.clone();
        tasks.spawn(async move {
            let command = Bytes::from(at.to_string());
            assert_eq!(
                reply(&session.propose(command.clone()).await.unwrap()),
                command
            );
        });
    }
    tasks.join_all().await;
    let seen = node.seen();
    let mut sequences: Vec<_> = proposals(&seen)
        .iter()
        .map(|propose| propose.sequence)
        .collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=COMMANDS as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn no_command_runs_further_ahead_than_its_session_remembers() {
    // The first command is never answered; all others are.
    let node = FakeNode::start(|at, request| match at {
        0 => opened(),
        _ if propose(request).sequence == 1 => Act::Ignore,
        _ => Act::Answer(proposed(request)),
    })
    .await;
    let session = client(&[&node]).await.session(GROUP).await.unwrap();
    let stuck = tokio::spawn({
        let session = session.clone();
        async move { session.propose("stuck".into()).await }
    });
    while node.seen().len() < 2 {
        tokio::task::yield_now().await;
    }
    for at in 2..=1024_u64 {
        assert_eq!(
            session.propose("x".into()).await.unwrap().request.sequence,
            at
        );
    }
    let refused = session
        .with_timeout(Duration::from_millis(20))
        .propose("x".into())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code().name(), refused.is_unknown()),
        ("busy", false)
    );
    assert!(
        proposals(&node.seen())
            .iter()
            .all(|propose| propose.acknowledged == 0)
    );
    // Once it is given up the session goes on.
    stuck.abort();
    assert!(stuck.await.unwrap_err().is_cancelled());
    assert_eq!(
        session.propose("x".into()).await.unwrap().request.sequence,
        1025
    );
    assert_eq!(proposals(&node.seen()).last().unwrap().acknowledged, 1024);
}
