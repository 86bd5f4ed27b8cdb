//! A bad network between the nodes of a cluster: a TCP proxy on each directed link, which does what it is told.
//!
//! The link from one node to another carries the connections that the first one dials. Nodes send only on connections
//! they have dialled, so a fault of one link is a one-way fault; what comes back on it are answers to handshakes and to
//! snapshots.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::clock::{Stopwatch, pause};
use crate::cluster::free_port;
use crate::seed::Seed;

/// Bytes taken from a connection at once.
const CHUNK: usize = 16 << 10;

/// Chunks of one direction of one connection that may be on their way; as many bytes as a long link holds.
const ON_THE_WAY: usize = 256;

/// What is wrong with a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every chunk arrives later, between these bounds; their order stays.
    Delay(Duration, Duration),
    /// A black hole, as of a cable that was pulled: nothing arrives, nothing is refused. What TCP has taken arrives when
    /// the link is mended, however old it is by then; a connection attempt hangs until then.
    Drop,
    /// Connections are closed at once, those that exist and new ones.
    Refuse,
    /// The receiver's end of each connection is closed and the sender's stays open: what it sends vanishes, and it is
    /// not told until the link is mended. New connections are taken and lead nowhere.
    HalfOpen,
    /// One bit is flipped in one of so many chunks.
    Corrupt {
        /// Of how many chunks one is damaged, on average.
        one_in: u64,
    },
}

/// All links of a cluster. Dropping it cuts them.
#[derive(Debug)]
pub struct Proxy {
    links: BTreeMap<(u64, u64), Arc<Link>>,
    _tasks: JoinSet<()>,
}

/// What a proxy did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Damage {
    /// Connections made.
    pub connections: u64,
    /// Chunks that arrived late.
    pub delayed: u64,
    /// Bits flipped.
    pub corrupted: u64,
    /// Bytes that were taken and never arrived.
    pub swallowed: u64,
    /// Times that a black hole or a refusal stood in somebody's way.
    pub hindered: u64,
}

#[derive(Debug)]
struct Link {
    target: String,
    address: String,
    fault: watch::Sender<Fault>,
    seed: u64,
    connections: AtomicU64,
    delayed: AtomicU64,
    corrupted: AtomicU64,
    swallowed: AtomicU64,
    hindered: AtomicU64,
}

impl Proxy {
    /// Listens for every ordered pair of nodes; `nodes` says where each of them listens itself.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(nodes: &BTreeMap<u64, String>) -> Self {
        let mut links = BTreeMap::new();
        let mut tasks = JoinSet::new();
        for from in nodes.keys() {
            for (to, target) in nodes.iter().filter(|(to, _)| *to != from) {
                let address = format!("127.0.0.1:{}", free_port());
                let listener = TcpListener::bind(&address).await;
                let listener =
                    listener.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
                let link = Arc::new(Link {
                    target: target.clone(),
                    address,
                    fault: watch::Sender::new(Fault::None),
                    seed: from << 32 | to,
                    connections: AtomicU64::new(0),
                    delayed: AtomicU64::new(0),
                    corrupted: AtomicU64::new(0),
                    swallowed: AtomicU64::new(0),
                    hindered: AtomicU64::new(0),
                });
                tasks.spawn(accept(Arc::clone(&link), listener));
                links.insert((*from, *to), link);
            }
        }
        Self {
            links,
            _tasks: tasks,
        }
    }

    /// Where `from` finds `to`.
    pub fn address(&self, from: u64, to: u64) -> &str {
        &self.link(from, to).address
    }

    /// What is wrong from now on with the link from one node to another.
    pub fn set(&self, from: u64, to: u64, fault: Fault) {
        self.link(from, to).fault.send_replace(fault);
    }

    /// What is wrong from now on with every link.
    pub fn set_all(&self, fault: Fault) {
        for link in self.links.values() {
            link.fault.send_replace(fault);
        }
    }

    /// What is wrong from now on with all links that go to a node, and with those that come from it.
    pub fn set_around(&self, node: u64, fault: Fault) {
        self.set_from(node, fault);
        self.set_to(node, fault);
    }

    /// What is wrong from now on with all links that come from a node: it hears others and is not heard.
    pub fn set_from(&self, node: u64, fault: Fault) {
        for (_, link) in self.links.iter().filter(|((from, _), _)| *from == node) {
            link.fault.send_replace(fault);
        }
    }

    /// What is wrong from now on with all links that go to a node: it is heard and does not hear.
    pub fn set_to(&self, node: u64, fault: Fault) {
        for (_, link) in self.links.iter().filter(|((_, to), _)| *to == node) {
            link.fault.send_replace(fault);
        }
    }

    /// Mends every link.
    pub fn heal(&self) {
        self.set_all(Fault::None);
    }

    /// What was done so far on all links together.
    pub fn damage(&self) -> Damage {
        let mut damage = Damage::default();
        for link in self.links.values() {
            damage.connections += link.connections.load(Ordering::Relaxed);
            damage.delayed += link.delayed.load(Ordering::Relaxed);
            damage.corrupted += link.corrupted.load(Ordering::Relaxed);
            damage.swallowed += link.swallowed.load(Ordering::Relaxed);
            damage.hindered += link.hindered.load(Ordering::Relaxed);
        }
        damage
    }

    fn link(&self, from: u64, to: u64) -> &Link {
        let link = self.links.get(&(from, to));
        link.unwrap_or_else(|| panic!("there is no link from node {from} to node {to}"))
    }
}

/// Takes connections until the proxy is dropped, which ends them with it.
async fn accept(link: Arc<Link>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((near, _)) = accepted {
                    let number = link.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(Arc::clone(&link).carry(near, number));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Link {
    /// One connection, from its beginning to its end.
    async fn carry(self: Arc<Self>, mut near: TcpStream, number: u64) {
        let mut fault = self.fault.subscribe();
        let now = self.mended(&mut fault).await;
        if now == Fault::Refuse {
            self.hindered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if now != Fault::HalfOpen {
            // A node that does not run refuses; whoever dials it sees the end of the connection.
            let Ok(mut far) = TcpStream::connect(&self.target).await else {
                return;
            };
            if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
                return;
            }
            let broken = {
                let (near_reads, near_writes) = near.split();
                let (far_reads, far_writes) = far.split();
                let breaks = |fault: &Fault| matches!(fault, Fault::Refuse | Fault::HalfOpen);
                tokio::select! {
                    _ = self.pump(near_reads, far_writes, number * 2) => return,
                    _ = self.pump(far_reads, near_writes, number * 2 + 1) => return,
                    broken = fault.wait_for(breaks) => broken.map(|fault| *fault),
                }
            };
            if !matches!(broken, Ok(Fault::HalfOpen)) {
                self.hindered.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        tokio::select! {
            _ = self.swallow(&mut near) => {}
            _ = fault.wait_for(|fault| *fault != Fault::HalfOpen) => {}
        }
    }

    /// Carries one direction until it ends.
    async fn pump(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        number: u64,
    ) -> io::Result<()> {
        let (queue, mut due) = mpsc::channel::<(Stopwatch, Duration, BytesMut)>(ON_THE_WAY);
        let take = async move {
            let mut fault = self.fault.subscribe();
            let mut seed = Seed::new(self.seed ^ number.rotate_left(17));
            loop {
                let mut chunk = BytesMut::with_capacity(CHUNK);
                if from.read_buf(&mut chunk).await? == 0 {
                    return Ok(());
                }
                let taken = Stopwatch::start();
                let delay = match self.mended(&mut fault).await {
                    Fault::Delay(least, most) => {
                        self.delayed.fetch_add(1, Ordering::Relaxed);
                        let spread = most.saturating_sub(least).as_micros() as u64;
                        least + Duration::from_micros(seed.below(spread + 1))
                    }
                    Fault::Corrupt { one_in } if seed.below(one_in) == 0 => {
                        self.corrupted.fetch_add(1, Ordering::Relaxed);
                        let at = seed.below(chunk.len() as u64) as usize;
                        chunk[at] ^= 1 << seed.below(8);
                        Duration::ZERO
                    }
                    _ => Duration::ZERO,
                };
                if queue.send((taken, delay, chunk)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let give = async move {
            let mut fault = self.fault.subscribe();
            while let Some((taken, delay, chunk)) = due.recv().await {
                pause(delay.saturating_sub(taken.elapsed())).await;
                self.mended(&mut fault).await;
                to.write_all(&chunk).await?;
            }
            Ok(())
        };
        tokio::try_join!(take, give).map(|((), ())| ())
    }

    /// Reads and forgets.
    async fn swallow(&self, near: &mut TcpStream) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match near.read(&mut chunk).await? {
                0 => return Ok(()),
                read => self.swallowed.fetch_add(read as u64, Ordering::Relaxed),
            };
        }
    }

    /// Waits while the link is a black hole; what is wrong with it otherwise.
    async fn mended(&self, fault: &mut watch::Receiver<Fault>) -> Fault {
        let now = *fault.borrow();
        if now != Fault::Drop {
            return now;
        }
        self.hindered.fetch_add(1, Ordering::Relaxed);
        match fault.wait_for(|fault| *fault != Fault::Drop).await {
            Ok(fault) => *fault,
            // The proxy is gone, and this with it.
            Err(_) => Fault::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{eventually, within};

    const LIMIT: Duration = Duration::from_secs(20);

    /// A proxy between nodes 1 and 2, and where node 2 listens.
    async fn pair() -> (Proxy, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address").to_string();
        let nodes = BTreeMap::from([(1, "127.0.0.1:1".to_owned()), (2, address)]);
        (Proxy::start(&nodes).await, listener)
    }

    async fn connected(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(proxy.address(1, 2)).await.expect("near");
        let (far, _) = within(LIMIT, "far", listener.accept()).await.expect("far");
        (near, far)
    }

    async fn arrives(far: &mut TcpStream, expected: &[u8]) {
        let mut seen = vec![0; expected.len()];
        let read = within(LIMIT, "bytes arrive", far.read_exact(&mut seen)).await;
        read.expect("bytes");
        assert_eq!(seen, expected);
    }

    async fn ends(stream: &mut TcpStream) {
        let mut byte = [0];
        let read = within(LIMIT, "the connection ends", stream.read(&mut byte)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }

    #[tokio::test]
    async fn a_sound_link_carries_both_ways_and_its_end() {
        let (proxy, listener) = pair().await;
        let (mut near, mut far) = connected(&proxy, &listener).await;
        near.write_all(b"there").await.expect("sent");
        arrives(&mut far, b"there").await;
        far.write_all(b"back").await.expect("sent");
        arrives(&mut near, b"back").await;
        drop(near);
        ends(&mut far).await;
    }

    #[tokio::test]
    async fn a_black_hole_holds_bytes_until_it_is_mended_and_a_delay_keeps_their_order() {
        let (proxy, listener) = pair().await;
        let (mut near, mut far) = connected(&proxy, &listener).await;
        proxy.set(1, 2, Fault::Drop);
        near.write_all(b"old").await.expect("taken");
        eventually("the link is in the way", async || {
            match proxy.damage().hindered {
                0 => Err("nothing was hindered".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        let mut byte = [0];
        let nothing = far.try_read(&mut byte).expect_err("nothing arrives");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        proxy.set(
            1,
            2,
            Fault::Delay(Duration::ZERO, Duration::from_millis(20)),
        );
        arrives(&mut far, b"old").await;
        for number in 0..20_u8 {
            near.write_all(&[number]).await.expect("sent");
        }
        arrives(&mut far, &(0..20).collect::<Vec<u8>>()).await;
    }

    #[tokio::test]
    async fn a_half_open_connection_ends_for_the_receiver_alone_until_it_is_mended() {
        let (proxy, listener) = pair().await;
        let (mut near, mut far) = connected(&proxy, &listener).await;
        proxy.set_around(2, Fault::HalfOpen);
        ends(&mut far).await;
        near.write_all(b"vanishes").await.expect("taken");
        eventually("it is swallowed", async || match proxy.damage().swallowed {
            8 => Ok(()),
            other => Err(format!("{other} bytes")),
        })
        .await;
        proxy.heal();
        ends(&mut near).await;
    }

    #[tokio::test]
    async fn a_corrupting_link_flips_one_bit_and_a_refusing_one_closes() {
        let (proxy, listener) = pair().await;
        let (mut near, mut far) = connected(&proxy, &listener).await;
        proxy.set_to(2, Fault::Corrupt { one_in: 1 });
        near.write_all(&[0; 8]).await.expect("sent");
        let mut seen = [0; 8];
        let read = within(LIMIT, "bytes arrive", far.read_exact(&mut seen)).await;
        read.expect("bytes");
        let bits: u32 = seen.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(u64::from(bits), proxy.damage().corrupted);
        assert!(bits >= 1);
        proxy.set_all(Fault::Refuse);
        ends(&mut near).await;
        ends(&mut far).await;
        let mut again = TcpStream::connect(proxy.address(1, 2))
            .await
            .expect("taken");
        ends(&mut again).await;
    }
}
