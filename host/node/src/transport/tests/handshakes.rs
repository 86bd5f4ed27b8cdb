use skep_types::founding::Founding;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_is_found_again() {
    let mut two = Setup::new(2).start().await;
    let address = two.address();
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), address.clone())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    reach(&one.transport, 2, &reporter, &mut two).await;
    two.transport.stop().await;
    drop(two);
    // While it is down every batch is reported, once for its group.
    within(async {
        loop {
            one.transport.send(beat(2, 1), &reporter);
            tokio::select! {
                report = reports.recv() => break assert_eq!(report, Some(Report::Unreachable(NodeId(2), GROUP))),
                () = crate::clock::sleep(Duration::from_millis(5)) => {}
            }
        }
    })
    .await;
    let mut again = Setup::new(2);
    again.address = address;
    let mut two = again.start().await;
    reach(&one.transport, 2, &reporter, &mut two).await;
    let stats = one.transport.stats();
    let lane = stats.lane(Priority::High);
    assert!(lane.connects.load(Ordering::Relaxed) >= 2);
    assert!(lane.disconnects.load(Ordering::Relaxed) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_moves_is_followed() {
    let mut former = Setup::new(2).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), former.address())])
        .start()
        .await;
    let (reporter, _reports) = reporter();
    reach(&one.transport, 2, &reporter, &mut former).await;
    let mut latter = Setup::new(2).start().await;
    one.transport.set_peer(NodeId(2), latter.address());
    reach(&one.transport, 2, &reporter, &mut latter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused() {
    let (one, two) = refused(
        Setup::new(1).with(|config| config.founding = Founding::unfounded("wasps")),
        Setup::new(2),
    )
    .await;
    counted(&two.transport.stats().refused, 1).await;
    counted(&one.transport.stats().refused_by_peer, 1).await;
}

/// Two clusters were founded under one name: they speak of nothing, though ids and name are right.
// P-75
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_the_same_name_is_refused() {
    let founded = |store: u8| Founding::new("bees", [(NodeId(1), [store; 16])].into());
    let (one, two) = refused(
        Setup::new(1).with(|config| config.founding = founded(1)),
        Setup::new(2).with(|config| config.founding = founded(2)),
    )
    .await;
    counted(&two.transport.stats().refused, 1).await;
    counted(&one.transport.stats().refused_by_peer, 1).await;
}

/// A recovery was forced: whoever was given up is told so, and whoever has it still to come is told that.
// P-112
#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_former_life_are_refused_and_told() {
    let survivors = [(NodeId(2), [2; 16]), (NodeId(5), [7; 16])].into();
    let recovered = Founding::unfounded("bees").recovered(survivors, [9; 32]);
    let two = Setup::new(2)
        .with(|config| config.founding = recovered)
        .start()
        .await;
    for (from, told) in [
        (4, "was given up in a forced recovery"),
        (5, "skep recover apply"),
    ] {
        let answer = introduce_as(&two.address(), from, "bees").await;
        assert_eq!(reason(&answer), Some(proto::RefusalReason::GivenUp));
        let proto::hello_ack::Body::Refusal(refusal) = answer else {
            panic!("no refusal");
        };
        assert!(refusal.text.contains(told), "{}", refusal.text);
    }
}

/// Whoever would found a cluster is told of the one that is there, and gets nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_founder_is_told_of_the_cluster() {
    let founding = Founding::new("bees", [(NodeId(2), [2; 16])].into());
    let known = founding.clone();
    let two = Setup::new(2)
        .with(|config| config.founding = known)
        .start()
        .await;
    let (mut connection, answer) =
        introduce(&two.address(), PEER_PROTOCOL, Purpose::Founding).await;
    let proto::hello_ack::Body::Statement(said) = answer else {
        panic!("no statement");
    };
    let said = skep_peer::statement_from_wire(said).unwrap();
    assert_eq!((said.store, said.founded), ([2; 16], Some(founding)));
    assert!(
        within(connection.reader.next(None))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_at_the_address_is_refused() {
    let (one, two) = refused(Setup::new(1), Setup::new(3)).await;
    counted(&two.transport.stats().refused, 1).await;
    counted(&one.transport.stats().refused_by_peer, 1).await;
}

// P-59
#[tokio::test(flavor = "multi_thread")]
async fn another_store_is_refused_by_either_end() {
    let dir = tempfile::tempdir().unwrap();
    let pinned = |node, name: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let mut pins = PeerPins::open(Arc::new(DiskVfs), &dir.path().join(name)).unwrap();
        pins.check(node, skep_log::StoreId([77; 16])).unwrap();
        Arc::new(Mutex::new(pins))
    };
    let listener = pinned(1, "two");
    let (one, two) = refused(
        Setup::new(1),
        Setup::new(2).with(|config| config.check = listener),
    )
    .await;
    counted(&two.transport.stats().refused, 1).await;
    counted(&one.transport.stats().refused_by_peer, 1).await;

    let dialler = pinned(2, "one");
    let (one, _two) = refused(
        Setup::new(1).with(|config| config.check = dialler),
        Setup::new(2),
    )
    .await;
    assert_eq!(
        one.transport
            .stats()
            .refused_by_peer
            .load(Ordering::Relaxed),
        0
    );
}

// P-50
#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_disturbs_nobody() {
    let mut two = Setup::new(2).start().await;
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), two.address())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    reach(&one.transport, 2, &reporter, &mut two).await;
    let mut strangers = Vec::new();
    let mut endless = *b"sk\x01\x00\xff\xff\xff\xff\0\0\0\0";
    endless[3] = skep_wire::codec::header_check(&endless);
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &endless,
        b"sk\x09",
        &[0; 5000],
    ] {
        let mut stranger = TcpStream::connect(two.address()).await.unwrap();
        stranger.write_all(garbage).await.unwrap();
        // It is closed without an answer; with bytes unread the end may be a reset.
        let mut answer = Vec::new();
        let _ = within(stranger.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
        strangers.push(TcpStream::connect(two.address()).await.unwrap());
    }
    counted(&two.transport.stats().refused, 4).await;
    one.transport.send(beat(2, 7), &reporter);
    while index(&two.batch().await) != 7 {}
    assert!(reports.try_recv().is_err());
    // Silent strangers hold nothing up when the node stops.
    within(two.transport.stop()).await;
}

#[tokio::test]
async fn an_address_beyond_the_loopback_needs_consent() {
    let error = TcpTransport::bind("0.0.0.0:0", false).await.unwrap_err();
    assert_eq!(error.code().name(), "plaintext-refused");
    let listener = TcpTransport::bind("0.0.0.0:0", true).await.unwrap();
    let (batches, _batches) = unbounded_channel();
    let (snapshots, _snapshots) = unbounded_channel();
    let inbound: Arc<dyn Inbound> = Arc::new(Inbox {
        batches,
        snapshots,
        store: None,
    });
    let error = TcpTransport::start(Setup::new(1).config, listener, Arc::clone(&inbound))
        .err()
        .unwrap();
    assert_eq!(error.code().name(), "plaintext-refused");
    let listener = TcpTransport::bind("127.0.0.1:0", false).await.unwrap();
    let error = TcpTransport::bind(&listener.local_addr().unwrap().to_string(), false)
        .await
        .unwrap_err();
    assert_eq!(error.code().name(), "address-in-use");
    let error = TcpTransport::start(Setup::new(0).config, listener, inbound)
        .err()
        .unwrap();
    assert_eq!(error.code().name(), "zero-id");
    assert_eq!(
        TcpTransport::bind("nowhere", false)
            .await
            .unwrap_err()
            .code()
            .name(),
        "cannot-listen"
    );

    // Nor is such an address dialled.
    let one = Setup::new(1)
        .with(|config| config.peers = vec![(NodeId(2), "192.0.2.1:9".into())])
        .start()
        .await;
    let (reporter, mut reports) = reporter();
    one.transport.send(beat(2, 1), &reporter);
    assert_eq!(
        within(reports.recv()).await,
        Some(Report::Unreachable(NodeId(2), GROUP))
    );
}

/// Introduces node 1 to the node at the address, by hand.
async fn introduce(
    address: &str,
    protocol: u32,
    purpose: Purpose,
) -> (Connection, proto::hello_ack::Body) {
    introduce_with(address, protocol, purpose, Past::default()).await
}

/// As [`introduce`], with a past of its store.
async fn introduce_with(
    address: &str,
    protocol: u32,
    purpose: Purpose,
    past: Past,
) -> (Connection, proto::hello_ack::Body) {
    let mut connection = Connection::new(TcpStream::connect(address).await.unwrap()).unwrap();
    let hello = Hello {
        protocol,
        cluster: "bees".into(),
        from: NodeId(1),
        to: NodeId(2),
        store: [1; 16],
        purpose,
        identity: Some(Founding::unfounded("bees").identity()),
        list: Default::default(),
        past,
    };
    connection
        .writer
        .send(peer_frame::Body::Hello(hello.into()))
        .await
        .unwrap();
    let Some(peer_frame::Body::HelloAck(ack)) = within(connection.reader.next(None)).await.unwrap()
    else {
        panic!("no answer to the handshake");
    };
    (connection, ack.body.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_version_is_refused_in_words() {
    let two = Setup::new(2).start().await;
    let (mut connection, answer) =
        introduce(&two.address(), 99, Purpose::Lane(Priority::Low)).await;
    let proto::hello_ack::Body::Refusal(refusal) = answer else {
        panic!("welcomed");
    };
    assert_eq!(refusal.reason(), proto::RefusalReason::Protocol);
    assert!(refusal.text.contains("99"), "{}", refusal.text);
    assert!(
        within(connection.reader.next(None))
            .await
            .unwrap()
            .is_none()
    );
}

/// Two processes with copies of one directory: the later life was let in on another lane, and the former one goes on speaking.
// P-94
#[tokio::test(flavor = "multi_thread")]
async fn a_former_life_is_not_heard_once_a_later_one_was_let_in() {
    let mut two = Setup::new(2).start().await;
    let life = |number| Past {
        lives: vec![Life {
            number,
            nonce: number,
            began: Durable(0),
        }],
        durable: Durable(0),
    };
    let at = async |number, priority| {
        let lane = Purpose::Lane(priority);
        let said = introduce_with(&two.address(), PEER_PROTOCOL, lane, life(number)).await;
        said.0
    };
    let mut former = at(1, Priority::High).await;
    let mut later = at(2, Priority::Normal).await;
    let sent = |batch| peer_frame::Body::Batch(batch_to_wire(batch, &mut Vec::new()));
    former.writer.send(sent(beat(2, 1))).await.unwrap();
    let end = within(former.reader.next(None)).await;
    assert!(matches!(end, Ok(None) | Err(_)), "it is cut off");
    later.writer.send(sent(append(2, 7, 1))).await.unwrap();
    assert_eq!(index(&two.batch().await), 7, "nothing came before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dials_again_ends_its_former_connection_first() {
    let mut two = Setup::new(2).start().await;
    let lane = Purpose::Lane(Priority::High);
    let send = async |connection: &mut Connection, at| {
        let batch = batch_to_wire(beat(2, at), &mut Vec::new());
        connection.writer.send(peer_frame::Body::Batch(batch)).await
    };
    let (mut former, _) = introduce(&two.address(), PEER_PROTOCOL, lane).await;
    send(&mut former, 1).await.unwrap();
    assert_eq!(index(&two.batch().await), 1);
    let (mut latter, answer) = introduce(&two.address(), PEER_PROTOCOL, lane).await;
    assert!(matches!(answer, proto::hello_ack::Body::Welcome(_)));
    // Whatever the former still sends is never delivered after the latter was welcomed.
    let _ = send(&mut former, 2).await;
    send(&mut latter, 3).await.unwrap();
    assert_eq!(index(&two.batch().await), 3);
    assert!(!matches!(
        within(former.reader.next(None)).await,
        Ok(Some(_))
    ));
    assert!(two.batches.try_recv().is_err());
    // Another lane of the same node is not concerned.
    let (mut normal, _) = introduce(
        &two.address(),
        PEER_PROTOCOL,
        Purpose::Lane(Priority::Normal),
    )
    .await;
    let batch = batch_to_wire(append(2, 4, 1), &mut Vec::new());
    normal
        .writer
        .send(peer_frame::Body::Batch(batch))
        .await
        .unwrap();
    assert_eq!(index(&two.batch().await), 4);
    send(&mut latter, 5).await.unwrap();
    assert_eq!(index(&two.batch().await), 5);
}

/// Knows the nodes 1 and 2, and learns of node 9 when it asks.
#[derive(Default)]
struct Named {
    inquiries: AtomicU64,
}

impl PeerCheck for Named {
    fn check(&self, node: NodeId, _: [u8; 16], _: &Past) -> Result<(), PeerRefused> {
        let asked = self.inquiries.load(Ordering::Relaxed) > 0;
        match node.0 {
            1 | 2 => Ok(()),
            9 if asked => Ok(()),
            _ => Err(PeerRefused::UnknownNode { node }),
        }
    }

    fn inquire(&self, _node: NodeId) -> futures::future::BoxFuture<'_, ()> {
        self.inquiries.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }
}

async fn introduce_as(address: &str, from: u64, cluster: &str) -> proto::hello_ack::Body {
    let mut connection = Connection::new(TcpStream::connect(address).await.unwrap()).unwrap();
    let hello = Hello {
        protocol: PEER_PROTOCOL,
        cluster: cluster.into(),
        from: NodeId(from),
        to: NodeId(2),
        store: [7; 16],
        purpose: Purpose::Lane(Priority::High),
        identity: Some(Founding::unfounded(cluster).identity()),
        list: Default::default(),
        past: Past::default(),
    };
    connection
        .writer
        .send(peer_frame::Body::Hello(hello.into()))
        .await
        .unwrap();
    match within(connection.reader.next(None)).await.unwrap() {
        Some(peer_frame::Body::HelloAck(ack)) => ack.body.unwrap(),
        other => panic!("no answer to the handshake: {other:?}"),
    }
}

fn reason(answer: &proto::hello_ack::Body) -> Option<proto::RefusalReason> {
    match answer {
        proto::hello_ack::Body::Refusal(refusal) => Some(refusal.reason()),
        proto::hello_ack::Body::Welcome(_) | proto::hello_ack::Body::Statement(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_named_is_refused_and_one_that_others_know_is_asked_about() {
    let named = Arc::<Named>::default();
    let check = Arc::clone(&named) as Arc<dyn PeerCheck>;
    let two = Setup::new(2)
        .with(|config| config.check = check)
        .start()
        .await;
    let address = two.address();
    assert_eq!(reason(&introduce_as(&address, 1, "bees").await), None);
    assert_eq!(named.inquiries.load(Ordering::Relaxed), 0);
    assert_eq!(reason(&introduce_as(&address, 9, "bees").await), None);
    assert_eq!(named.inquiries.load(Ordering::Relaxed), 1);
    let stranger = introduce_as(&address, 6, "bees").await;
    assert_eq!(reason(&stranger), Some(proto::RefusalReason::UnknownNode));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_tell_the_name_of_the_cluster() {
    let two = Setup::new(2).start().await;
    let answer = introduce_as(&two.address(), 1, "wasps").await;
    let proto::hello_ack::Body::Refusal(refusal) = answer else {
        panic!("welcomed");
    };
    assert_eq!(refusal.reason(), proto::RefusalReason::Cluster);
    assert!(!refusal.text.contains("bees"), "{}", refusal.text);
}

/// A thousand silent connections kept every node out for as long as they stayed.
#[tokio::test(flavor = "multi_thread")]
async fn silent_strangers_keep_no_node_out() {
    let two = Setup::new(2)
        .with(|config| config.limits.connections = 8)
        .start()
        .await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(two.address()).await.unwrap());
    }
    counted(&two.transport.stats().accepted, 600).await;
    assert_eq!(reason(&introduce_as(&two.address(), 1, "bees").await), None);
}

/// What was heard over a lane is remembered, and the next handshake is compared with it.
// P-94
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_went_back_is_refused_by_either_end() {
    let dir = tempfile::tempdir().unwrap();
    let directory = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let remembers = |path: &Path| {
        let pins = PeerPins::open(Arc::new(DiskVfs), path).unwrap();
        Arc::new(Mutex::new(pins))
    };
    let (own, peers) = (directory("store"), directory("peers"));
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    let begin = || {
        let store = Store::open(&vfs, &own, "bees", 1).unwrap();
        let (log, _) = store.open_log(&vfs, LogOptions::default()).unwrap();
        (store.account(), log, store)
    };
    let (account, mut log, store) = begin();
    let copy = std::fs::read(own.join("lives")).unwrap();
    let pins = remembers(&peers);
    let check = Arc::clone(&pins);
    let mut two = Setup::new(2)
        .with(|config| config.check = check)
        .start()
        .await;
    let one = Setup::new(1)
        .with(|config| {
            config.account = account;
            config.peers = vec![(NodeId(2), two.address())];
        })
        .start()
        .await;
    let (reporter, _reports) = reporter();
    reach(&one.transport, 2, &reporter, &mut two).await;
    let met = pins.lock().unwrap().known(1).unwrap();
    let record = Record {
        hard_state: Some(Default::default()),
        ..Record::new(GroupKey {
            group: 5,
            incarnation: 1,
        })
    };
    log.append(&record).unwrap();
    log.sync().unwrap();
    reach(&one.transport, 2, &reporter, &mut two).await;
    one.transport.stop().await;
    two.transport.stop().await;
    let known = pins.lock().unwrap().known(1).unwrap();
    assert!(
        known.life == met.life && known.durable > met.durable,
        "{known:?}"
    );
    drop((log, store));

    // As if the start had not been, and all that it wrote.
    std::fs::write(own.join("lives"), &copy).unwrap();
    for file in std::fs::read_dir(own.join("wal")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    std::fs::remove_file(own.join("has-log")).unwrap();
    let (account, _log, _store) = begin();
    let older = Arc::clone(&account);
    let (one, two) = refused(
        Setup::new(1).with(|config| config.account = older),
        Setup::new(2).with(|config| config.check = remembers(&peers)),
    )
    .await;
    counted(&two.transport.stats().refused, 1).await;
    counted(&one.transport.stats().refused_by_peer, 1).await;
    // The other way round it is the listener that went back.
    let listener = directory("listener");
    let mut newer = account.past();
    newer.lives.last_mut().unwrap().nonce ^= 1;
    let dialler = remembers(&listener);
    dialler
        .lock()
        .unwrap()
        .meet(2, skep_log::StoreId([2; 16]), &newer)
        .unwrap();
    let (one, _two) = refused(
        Setup::new(1).with(|config| config.check = dialler),
        Setup::new(2).with(|config| config.account = account),
    )
    .await;
    let told = one.transport.stats();
    assert_eq!(told.refused_by_peer.load(Ordering::Relaxed), 0);
}
