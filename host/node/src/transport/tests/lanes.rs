use super::*;
use crate::supervisor::Supervisor;

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_every_lane_arrive_in_order() {
    let mut two = Setup::new(2).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    for at in 0..100 {
        one.transport.send(beat(2, at), &reporter);
        one.transport.send(append(2, at, 1000), &reporter);
    }
    let mut arrived = BTreeMap::<_, Vec<_>>::new();
    for _ in 0..200 {
        let batch = two.batch().await;
        assert_eq!((batch.from, batch.to), (NodeId(1), NodeId(2)));
        arrived.entry(batch.priority).or_default().push(batch);
    }
    assert_eq!(
        arrived[&Priority::High],
        (0..100).map(|at| beat(2, at)).collect::<Vec<_>>()
    );
    assert_eq!(
        arrived[&Priority::Normal],
        (0..100).map(|at| append(2, at, 1000)).collect::<Vec<_>>()
    );
    assert!(reports.try_recv().is_err());
    let (sent, got) = (one.transport.stats(), two.transport.stats());
    for priority in [Priority::High, Priority::Normal] {
        assert_eq!(got.lane(priority).frames_in.load(Ordering::Relaxed), 100);
        counted(&sent.lane(priority).frames_out, 100).await;
        assert_eq!(sent.lane(priority).connects.load(Ordering::Relaxed), 1);
        assert_eq!(
            sent.lane(priority).bytes_out.load(Ordering::Relaxed),
            got.lane(priority).bytes_in.load(Ordering::Relaxed)
        );
    }
    one.transport.stop().await;
    two.transport.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_larger_than_a_frame_arrives_whole() {
    let mut two = Setup::new(2).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, _reports) = reporter();
    let mut large = append(2, 0, 8 << 20);
    let messages = large.messages.get_mut(&GROUP).unwrap();
    for at in 1..12 {
        messages.extend(append(2, at, 8 << 20).messages.remove(&GROUP).unwrap());
    }
    let sent = messages.clone();
    one.transport.send(large, &reporter);
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        arrived.extend(two.batch().await.messages.remove(&GROUP).unwrap());
    }
    assert!(arrived == sent, "the messages differ");
    assert!(
        two.transport
            .stats()
            .lane(Priority::Normal)
            .frames_in
            .load(Ordering::Relaxed)
            >= 6
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_to_a_node_without_address_is_reported_at_once() {
    let one = Setup::new(1).start().await;
    let (reporter, mut reports) = reporter();
    let mut two_groups = beat(9, 1);
    two_groups.messages.insert(
        GroupId(8),
        vec![message(raft(MessageType::MsgHeartbeat, 1)); 3],
    );
    one.transport.send(two_groups, &reporter);
    assert_eq!(
        reports.try_recv().unwrap(),
        Report::Unreachable(NodeId(9), GROUP)
    );
    assert_eq!(
        reports.try_recv().unwrap(),
        Report::Unreachable(NodeId(9), GroupId(8))
    );
    assert!(reports.try_recv().is_err());
    assert_eq!(
        one.transport.stats().without_lane.load(Ordering::Relaxed),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_delivers_only_what_is_addressed_right() {
    let mut two = Setup::new(2).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, _reports) = reporter();
    one.transport.send(
        Batch {
            from: NodeId(3),
            ..beat(2, 1)
        },
        &reporter,
    );
    one.transport.send(beat(2, 2), &reporter);
    assert_eq!(index(&two.batch().await), 2);
    assert_eq!(
        two.transport.stats().misaddressed.load(Ordering::Relaxed),
        1
    );
}

/// A peer that answers late: the queues fill meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_drops_new_appends_but_old_heartbeats() {
    let late = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = TcpLimits {
        high_queue: 4000,
        normal_queue: 50_000,
        ..TcpLimits::default()
    };
    let one = Setup::new(1)
        .with(|config| {
            config.limits = limits;
            config.peers = vec![(NodeId(2), late.local_addr().unwrap().to_string())];
        })
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    for at in 0..10 {
        one.transport.send(append(2, at, 10_000), &reporter);
    }
    for at in 0..100 {
        one.transport.send(beat(2, at), &reporter);
    }
    let stats = one.transport.stats();
    let lost = |priority| stats.lane(priority).dropped.load(Ordering::Relaxed);
    assert_eq!(lost(Priority::Normal), 6);
    let beats = 100 - lost(Priority::High);
    assert_eq!(
        beats,
        4000 / beat(2, 0).messages[&GROUP][0].body.size() as u64
    );
    for _ in 0..lost(Priority::Normal) + lost(Priority::High) {
        assert_eq!(
            reports.try_recv().unwrap(),
            Report::Unreachable(NodeId(2), GROUP)
        );
    }
    assert!(reports.try_recv().is_err());

    let (mut appended, mut beaten) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (stream, _) = within(late.accept()).await.unwrap();
        let mut connection = Connection::new(stream).unwrap();
        let Some(peer_frame::Body::Hello(hello)) =
            within(connection.reader.next(None)).await.unwrap()
        else {
            panic!("no handshake");
        };
        connection.reader.trust(skep_wire::MAX_FRAME);
        let welcome = proto::Welcome {
            store: Bytes::from_static(&[2; 16]),
            past: None,
        };
        let ack = proto::HelloAck {
            body: Some(proto::hello_ack::Body::Welcome(welcome)),
        };
        connection
            .writer
            .send(peer_frame::Body::HelloAck(ack))
            .await
            .unwrap();
        let (indices, count) = match Hello::try_from(hello).unwrap().purpose {
            Purpose::Lane(Priority::Normal) => (&mut appended, 4),
            Purpose::Lane(Priority::High) => (&mut beaten, beats),
            purpose => panic!("{purpose:?}"),
        };
        for _ in 0..count {
            let Some(peer_frame::Body::Batch(batch)) =
                within(connection.reader.next(None)).await.unwrap()
            else {
                panic!("no batch");
            };
            indices.push(index(&batch_from_wire(batch, &mut Vec::new()).unwrap()));
        }
    }
    assert_eq!(appended, [0, 1, 2, 3]);
    assert_eq!(beaten, (100 - beats..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_is_reported_when_the_transport_stops() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), address)])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    one.transport.send(append(2, 1, 10), &reporter);
    one.transport.send(beat(2, 1), &reporter);
    within(one.transport.stop()).await;
    for _ in 0..2 {
        assert_eq!(
            reports.try_recv().unwrap(),
            Report::Unreachable(NodeId(2), GROUP)
        );
    }
    // And so is what comes later.
    one.transport.send(beat(2, 1), &reporter);
    assert_eq!(
        reports.try_recv().unwrap(),
        Report::Unreachable(NodeId(2), GROUP)
    );
    assert!(reports.try_recv().is_err());
    within(one.transport.stop()).await;
}

/// Panics when it is first told of something, as a bug of the host would.
struct Panicking(std::sync::atomic::AtomicBool);

impl Reporter for Panicking {
    fn report_unreachable(&self, _: GroupId, _: NodeId) -> Result<(), Error> {
        assert!(self.0.swap(true, Ordering::Relaxed), "on purpose");
        Ok(())
    }

    fn report_snapshot(&self, _: GroupId, _: NodeId, _: SnapshotStatus) -> Result<(), Error> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_panics_begins_again() {
    let mut two = Setup::new(2).start().await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = dead.local_addr().unwrap().to_string();
    drop(dead);
    let supervisor = Supervisor::default();
    let one = Setup::new(1)
        .with(|config| {
            config.peers = vec![(NodeId(2), nowhere)];
            config.supervisor = supervisor.clone();
        })
        .start()
        .await;
    // The lane dials in vain, and panics while it reports what it loses by that.
    let panicking: Arc<dyn Reporter> = Arc::new(Panicking(Default::default()));
    one.transport.send(append(2, 1, 10), &panicking);
    let panics = || supervisor.all().get("lane").map_or(0, |lane| lane.panics);
    timeout(LIMIT, async {
        while panics() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the lane panics");
    one.transport.set_peer(NodeId(2), two.address());
    let (reporter, _reports) = reporter();
    let arrived = timeout(LIMIT, async {
        // What is sent while the lane cannot reach the node is dropped.
        loop {
            one.transport.send(append(2, 2, 10), &reporter);
            if let Some(batch) = timeout(Duration::from_millis(50), two.batch()).await {
                return batch;
            }
        }
    });
    assert_eq!(arrived.await.expect("the lane is back"), append(2, 2, 10));
    one.transport.stop().await;
    two.transport.stop().await;
}

/// A process that ends closes its connections, and its system refuses others. Anything less says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_process_that_has_ended_is_gone() {
    let two = Setup::new(2).start().await;
    let address = two.address();
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), address.clone())])
        .start()
        .await;
    let stats = one.transport.stats();
    let (reporter, _reports) = reporter();
    one.transport.send(beat(2, 1), &reporter);
    counted(&stats.lane(Priority::High).connects, 1).await;
    two.transport.stop().await;
    counted(&stats.gone, 1).await;
    // Somebody listens there who closes each connection: a process lives.
    let listener = TcpListener::bind(&address)
        .await
        .expect("the port is free again");
    let failures = stats.dial_failures.load(Ordering::Relaxed);
    let closing = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    counted(&stats.dial_failures, failures + 2).await;
    assert_eq!(stats.gone.load(Ordering::Relaxed), 1);
    closing.abort();
    one.transport.stop().await;
}
