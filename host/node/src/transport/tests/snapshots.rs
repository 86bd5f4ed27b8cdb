use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_arrives_and_is_reported_once() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = snapshot_file(from.path(), 5 << 20);
    let mut two = Setup::new(2).stored(to.path()).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    one.transport
        .send_snapshot(NodeId(2), snapshot_message(), Arc::clone(&file), &reporter);
    let (sender, message, arrived) = within(two.snapshots.recv()).await.unwrap();
    assert_eq!((sender, message), (NodeId(1), snapshot_message()));
    assert_eq!(arrived.digest(), file.digest());
    assert_eq!(
        arrived.guest().expect("it can be read"),
        file.guest().expect("it can be read")
    );
    assert_eq!(
        within(reports.recv()).await,
        Some(Report::Snapshot(NodeId(2), GROUP, SnapshotStatus::Finish))
    );
    one.transport.stop().await;
    assert!(reports.try_recv().is_err());
    assert_eq!(
        one.transport.stats().snapshots_sent.load(Ordering::Relaxed),
        1
    );
    assert_eq!(
        two.transport
            .stats()
            .snapshots_received
            .load(Ordering::Relaxed),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_arrive_is_reported_once() {
    let from = tempfile::tempdir().unwrap();
    let file = snapshot_file(from.path(), 1000);
    let (reporter, mut reports) = reporter();
    let failure = |node| {
        Some(Report::Snapshot(
            NodeId(node),
            GROUP,
            SnapshotStatus::Failure,
        ))
    };
    // Node 2 takes none; node 3 is not there; node 4 is unknown; node 5 never answers; node 6 dies in the middle.
    let two = Setup::new(2).start().await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let six = tempfile::tempdir().unwrap();
    let dying = Setup::new(6).stored(six.path()).start().await;
    let one = Setup::new(1)
        .with(|config| {
            config.limits.snapshot_rate = 1 << 20;
            config.peers = vec![
                (NodeId(2), two.address()),
                (NodeId(3), gone),
                (NodeId(5), silent.local_addr().unwrap().to_string()),
                (NodeId(6), dying.address()),
            ];
        })
        .start()
        .await;
    for node in [2, 3, 4] {
        one.transport.send_snapshot(
            NodeId(node),
            snapshot_message(),
            Arc::clone(&file),
            &reporter,
        );
        assert_eq!(within(reports.recv()).await, failure(node));
    }
    // A message that is no header of a snapshot.
    let wrong = message(raft(MessageType::MsgHeartbeat, 0));
    one.transport
        .send_snapshot(NodeId(2), wrong, Arc::clone(&file), &reporter);
    assert_eq!(within(reports.recv()).await, failure(2));

    let large = snapshot_file(from.path(), 20 << 20);
    one.transport
        .send_snapshot(NodeId(6), snapshot_message(), large, &reporter);
    counted(&dying.transport.stats().lane(Priority::Low).bytes_in, 1).await;
    dying.transport.stop().await;
    assert_eq!(within(reports.recv()).await, failure(6));
    drop(dying);
    assert!(
        SnapshotStore::open_dir(Arc::new(DiskVfs), six.path())
            .unwrap()
            .list()
            .unwrap()
            .is_empty()
    );

    for _ in 0..6 {
        one.transport
            .send_snapshot(NodeId(5), snapshot_message(), Arc::clone(&file), &reporter);
    }
    one.transport.stop().await;
    for _ in 0..6 {
        assert_eq!(within(reports.recv()).await, failure(5));
    }
    // After the stop the report still comes.
    one.transport
        .send_snapshot(NodeId(2), snapshot_message(), file, &reporter);
    assert_eq!(within(reports.recv()).await, failure(2));
    assert!(reports.try_recv().is_err());
    assert_eq!(
        one.transport
            .stats()
            .lane(Priority::Low)
            .dropped
            .load(Ordering::Relaxed),
        12
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_what_travels_with_low_priority() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = snapshot_file(from.path(), 3 << 20);
    let mut two = Setup::new(2).stored(to.path()).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    for _ in 0..3 {
        one.transport
            .send_snapshot(NodeId(2), snapshot_message(), Arc::clone(&file), &reporter);
        within(two.snapshots.recv()).await.unwrap();
        assert_eq!(
            within(reports.recv()).await,
            Some(Report::Snapshot(NodeId(2), GROUP, SnapshotStatus::Finish))
        );
    }
    let (sent, got) = (one.transport.stats(), two.transport.stats());
    let (sent, got) = (sent.lane(Priority::Low), got.lane(Priority::Low));
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    // One connection each, and none stays.
    assert_eq!((read(&sent.connects), read(&sent.disconnects)), (3, 0));
    let frames = 3 * file.size().div_ceil(skep_wire::MAX_CHUNK as u64);
    assert_eq!(
        (read(&sent.frames_out), read(&got.frames_in)),
        (frames, frames)
    );
    assert_eq!(read(&sent.bytes_out), read(&got.bytes_in));
    assert!(read(&sent.bytes_out) > 3 * file.size());
    // No batch has this priority.
    let strange = batch(
        2,
        Priority::Low,
        message(raft(MessageType::MsgTransferLeader, 1)),
    );
    one.transport.send(strange, &reporter);
    assert_eq!(
        reports.try_recv().unwrap(),
        Report::Unreachable(NodeId(2), GROUP)
    );
    assert_eq!(read(&sent.dropped), 1);
    assert_eq!(read(&sent.connects), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_snapshots_wait_as_the_low_queue_takes() {
    let from = tempfile::tempdir().unwrap();
    let file = snapshot_file(from.path(), 1000);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let one = Setup::new(1)
        .with(|config| {
            config.limits.snapshots_at_once = 1;
            config.limits.low_queue = 3;
            config.peers = vec![(NodeId(2), address)];
        })
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    let send = || {
        one.transport
            .send_snapshot(NodeId(2), snapshot_message(), Arc::clone(&file), &reporter);
    };
    let failed = Report::Snapshot(NodeId(2), GROUP, SnapshotStatus::Failure);
    for _ in 0..3 {
        send();
    }
    // One is on its way and gets no answer, two wait for it; the fourth fails, and so does the fifth.
    for _ in 0..2 {
        send();
        assert_eq!(within(reports.recv()).await.as_ref(), Some(&failed));
    }
    assert!(reports.try_recv().is_err());
    one.transport.stop().await;
    for _ in 0..3 {
        assert_eq!(reports.try_recv().as_ref(), Ok(&failed));
    }
    let stats = one.transport.stats();
    assert_eq!(stats.lane(Priority::Low).dropped.load(Ordering::Relaxed), 5);
}

/// The transfer is throttled so far down that it cannot end before the heartbeats do; all of them pass it.
// P-45
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_on_its_way_delays_no_heartbeat() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = snapshot_file(from.path(), 32 << 20);
    let mut two = Setup::new(2).stored(to.path()).start().await;
    let one = Setup::new(1)
        .with(|config| {
            config.limits.snapshot_rate = 1 << 20;
            config.peers = vec![(NodeId(2), two.address())];
        })
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    one.transport
        .send_snapshot(NodeId(2), snapshot_message(), file, &reporter);
    counted(&two.transport.stats().lane(Priority::Low).bytes_in, 1).await;
    for at in 0..200 {
        one.transport.send(beat(2, at), &reporter);
        assert_eq!(index(&two.batch().await), at);
    }
    assert!(
        reports.try_recv().is_err(),
        "the transfer has ended already"
    );
    one.transport.stop().await;
    assert_eq!(
        reports.recv().await,
        Some(Report::Snapshot(NodeId(2), GROUP, SnapshotStatus::Failure))
    );
}
