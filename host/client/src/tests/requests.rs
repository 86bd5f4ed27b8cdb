use super::*;

#[tokio::test]
async fn a_dead_node_is_passed_over() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let node = FakeNode::start(|_, request| Act::Answer(proposed(request))).await;
    let config = ClientConfig {
        addresses: vec![dead.clone(), node.address.clone()],
        ..config(&[])
    };
    let client = Client::connect(config).await.unwrap();
    client.propose_once(GROUP, "x".into()).await.unwrap();

    let error = Client::connect(ClientConfig::new([dead]))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code().name(), "unreachable");
    assert_eq!(
        Client::connect(ClientConfig::new::<String>([]))
            .await
            .err()
            .unwrap()
            .code()
            .name(),
        "invalid-config"
    );
}

#[test]
fn a_client_outlives_the_runtime_that_it_was_made_in() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let of_the_node = runtime();
    let node = of_the_node.block_on(FakeNode::start(|_, request| Act::Answer(proposed(request))));
    let client = runtime().block_on(client(&[&node]));
    let proposed = runtime().block_on(client.propose_once(GROUP, "x".into()));
    assert_eq!(reply(&proposed.unwrap()), "x");
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let node = FakeNode::start(|_, _| Act::Ignore).await;
    let config = ClientConfig {
        cluster: Some("wasps".into()),
        ..config(&[&node])
    };
    let error = Client::connect(config.clone()).await.err().unwrap();
    assert_eq!(
        (
            error.code().name(),
            error.to_string().contains("here are bees")
        ),
        ("wrong-cluster", true)
    );
    Client::connect(ClientConfig {
        cluster: Some("bees".into()),
        ..config
    })
    .await
    .unwrap();
}

// P-14
#[tokio::test]
async fn an_anonymous_command_is_never_sent_twice_if_it_may_have_been_applied() {
    let node = FakeNode::start(|_, _| Act::Close).await;
    let failed = client(&[&node])
        .await
        .propose_once(GROUP, "x".into())
        .await
        .unwrap_err();
    assert!(failed.is_unknown() && !failed.is_retryable(), "{failed}");
    assert_eq!(node.seen().len(), 1);

    let node = FakeNode::start(|_, _| error("outcome-unknown", true, true, "")).await;
    assert!(
        client(&[&node])
            .await
            .propose_once(GROUP, "x".into())
            .await
            .unwrap_err()
            .is_unknown()
    );
    assert_eq!(node.seen().len(), 1);

    // Certainly not applied: sent again.
    let node = FakeNode::start(|at, request| match at {
        0 => error("no-leader", false, true, ""),
        1 => error("busy", false, true, ""),
        _ => Act::Answer(proposed(request)),
    })
    .await;
    let response = client(&[&node])
        .await
        .propose_once(GROUP, "x".into())
        .await
        .unwrap();
    assert_eq!(response.request, RequestId::ANONYMOUS);
    assert_eq!(node.seen().len(), 3);
}

#[tokio::test]
async fn queries_are_repeated_and_never_unknown() {
    let node = FakeNode::start(|at, request| {
        let Some(request::Body::Query(query)) = &request.body else {
            panic!("no query")
        };
        if at == 0 {
            return Act::Close;
        }
        let outcome = proto::Outcome {
            body: Some(proto::outcome::Body::Reply(query.data.clone())),
        };
        let index = u64::from(query.linearizable);
        Act::Answer(response::Body::Answered(proto::Answered {
            index,
            term: 4,
            outcome: Some(outcome),
        }))
    })
    .await;
    let client = client(&[&node]).await;
    let answer = client
        .query(GROUP, "q".into(), Consistency::Linearizable)
        .await
        .unwrap();
    assert_eq!(
        answer,
        Answer {
            index: LogIndex(1),
            term: Term(4),
            outcome: Outcome::Reply("q".into())
        }
    );
    assert_eq!(
        client
            .query(GROUP, "q".into(), Consistency::Stale)
            .await
            .unwrap()
            .index,
        LogIndex(0)
    );

    let node = FakeNode::start(|_, _| Act::Ignore).await;
    let config = ClientConfig {
        request_timeout: Duration::from_millis(30),
        ..config(&[&node])
    };
    let error = Client::connect(config)
        .await
        .unwrap()
        .query(GROUP, "q".into(), Consistency::Stale)
        .await
        .unwrap_err();
    assert_eq!(
        (error.code().name(), error.is_unknown()),
        ("unreachable", false)
    );
}

#[tokio::test]
async fn a_method_is_called_with_json() {
    let node = FakeNode::start(|at, request| {
        let Some(request::Body::Call(call)) = &request.body else {
            panic!("no call")
        };
        assert_eq!((request.group, call.method.as_str()), (0, "group.create"));
        match at {
            0 => Act::Answer(response::Body::Called(proto::Called {
                body: call.body.clone(),
            })),
            1 => error("group-exists", false, false, ""),
            _ => Act::Answer(response::Body::Called(proto::Called {
                body: Bytes::from_static(b"{"),
            })),
        }
    })
    .await;
    let client = client(&[&node]).await;
    let body = json!({ "name": "kv", "nodes": [1, 2, 3] });
    assert_eq!(client.call("group.create", &body).await.unwrap(), body);
    let refused = client.call("group.create", &body).await.unwrap_err();
    assert_eq!(
        (refused.code().name(), refused.to_string().as_str()),
        ("group-exists", "it is group-exists")
    );
    assert!(
        client
            .call("group.create", &body)
            .await
            .unwrap_err()
            .is_unknown()
    );
}

#[tokio::test]
async fn a_component_is_read_in_pieces_and_verified() {
    let bytes: Vec<u8> = (0..2_500_000_u32).map(|at| (at % 251) as u8).collect();
    let id = ComponentId::of(&bytes);
    let node = FakeNode::start(move |_, request| {
        let Some(request::Body::ComponentRead(read)) = &request.body else {
            panic!("no read")
        };
        let from = (read.offset as usize).min(bytes.len());
        let to = (from + read.length as usize).min(bytes.len());
        let data = Bytes::copy_from_slice(&bytes[from..to]);
        Act::Answer(response::Body::ComponentChunk(proto::ComponentChunk {
            data,
            total: bytes.len() as u64,
        }))
    })
    .await;
    let client = client(&[&node]).await;
    assert_eq!(ComponentId::of(&client.component(id).await.unwrap()), id);
    assert_eq!(node.seen().len(), 3);
    let other = ComponentId::of(b"other");
    assert_eq!(
        client.component(other).await.unwrap_err(),
        ClientError::WrongComponent(other)
    );
}

#[tokio::test]
async fn a_piece_of_a_component_is_sent_once() {
    let id = ComponentId::of(b"abcdef");
    let node = FakeNode::start(|at, request| {
        let Some(request::Body::ComponentWrite(write)) = &request.body else {
            panic!("no write")
        };
        match at {
            0 => Act::Answer(response::Body::ComponentWritten(proto::ComponentWritten {
                received: write.offset + write.data.len() as u64,
                total: write.total,
            })),
            _ => Act::Close,
        }
    })
    .await;
    let client = client(&[&node]).await;
    let write = |offset, data: &'static str| client.component_write(id, offset, 6, data.into());
    assert_eq!(write(0, "abcd").await.unwrap(), 4);
    assert!(write(4, "ef").await.unwrap_err().is_unknown());
    assert_eq!(node.seen().len(), 2);
}

#[tokio::test]
async fn a_request_larger_than_a_frame_is_not_sent() {
    let node = FakeNode::start(|_, _| Act::Ignore).await;
    let client = client(&[&node]).await;
    for size in [MAX_CLIENT_FRAME, MAX_CLIENT_FRAME + 1] {
        let error = client
            .propose_once(GROUP, vec![0; size].into())
            .await
            .unwrap_err();
        assert_eq!(
            (error.code().name(), error.is_unknown()),
            ("too-large", false)
        );
    }
    assert!(node.seen().is_empty());
}

#[tokio::test]
async fn a_node_that_talks_nonsense_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        stream
    });
    let error = Client::connect(ClientConfig::new([address]))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code().name(), "bad-answer");
    drop(task.await);
}
