//! The places for connections at one port: how many there are, and who goes when somebody else needs one.
//!
//! A full port refuses at once; but before that it turns out who has a place and does nothing with it: first who has never
//! said anything, then who has been idle longest. So strangers that only hold connections shut nobody out.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep::clock::{self, Stopwatch};
use skep_types::shared::lock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long who has just come may be silent before the place can go to another.
const SILENCE: Duration = Duration::from_millis(250);
/// The same for who has done something before.
const REST: Duration = Duration::from_secs(5);
/// Pause after a failed accept: only time brings descriptors back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a newcomer waits for somebody who was told to go.
const LEAVES_WITHIN: Duration = Duration::from_millis(500);

/// The places of one port.
pub struct Door {
    most: AtomicUsize,
    per_address: AtomicUsize,
    inside: Mutex<Inside>,
    left: Notify,
    refused: AtomicU64,
    turned_out: AtomicU64,
}

#[derive(Default)]
struct Inside {
    next: u64,
    visitors: BTreeMap<u64, Visitor>,
    by_address: HashMap<IpAddr, usize>,
}

struct Visitor {
    /// Where from, if that is another machine; see [`counted`].
    address: Option<IpAddr>,
    doing: Doing,
    since: Stopwatch,
    out: CancellationToken,
}

/// What a visitor does, the most dispensable first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Doing {
    Silent,
    Resting,
    Busy,
}

/// Why nobody comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    /// Everybody inside is busy.
    #[error("this port has as many connections as it may; try again, or ask another node")]
    Port,
    /// One address has as many as it may.
    #[error(
        "your address has as many connections as it may; close some, or use those that are open"
    )]
    Address,
}

/// A place; given back when it is dropped.
pub struct Visit {
    door: Arc<Door>,
    id: u64,
    out: CancellationToken,
}

/// The next connection. While the system gives none, most likely because the process has no descriptor left, it says so
/// once and waits.
pub async fn accept(listener: &TcpListener, port: &'static str) -> (TcpStream, SocketAddr) {
    let mut said = false;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if !said {
                    tracing::warn!(port, %error, "connections cannot be accepted; tried again until they can");
                    said = true;
                }
                clock::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says why nobody is taken in, as far as that takes no time, and closes. Not by tokio's `try_write`: of a connection that has
/// just come it does not know yet that it can be written to.
pub fn refuse(stream: TcpStream, answer: &[u8]) {
    // It fits into the socket's buffer; who is gone already has lost nothing.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(answer);
    }
}

/// Whose places a connection from this address takes: nobody's if it comes from this machine. Of version 6 one machine has a
/// whole network of addresses, which counts as one.
fn counted(from: IpAddr) -> Option<IpAddr> {
    match from.to_canonical() {
        own if own.is_loopback() => None,
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            Some(Ipv6Addr::from_bits(network).into())
        }
        address => Some(address),
    }
}

impl Door {
    /// A door with so many places in all, and for each address of another machine.
    pub fn new(most: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            per_address: AtomicUsize::new(per_address),
            inside: Mutex::default(),
            left: Notify::new(),
            refused: AtomicU64::new(0),
            turned_out: AtomicU64::new(0),
        })
    }

    /// From now on there are so many places. Nobody is turned out for it.
    pub fn set(&self, most: usize, per_address: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.per_address.store(per_address, Ordering::Relaxed);
    }

    /// A place for a connection from this address, made free if that is possible.
    ///
    /// # Errors
    /// [`Full`]; soon, in any case.
    pub async fn admit(self: &Arc<Self>, from: IpAddr) -> Result<Visit, Full> {
        let address = counted(from);
        let admitted = loop {
            let left = self.left.notified();
            match self.try_admit(address) {
                Ok(visit) => break Ok(visit),
                Err((full, false)) => break Err(full),
                Err((full, true)) => {
                    if clock::timeout(LEAVES_WITHIN, left).await.is_none() {
                        break Err(full);
                    }
                }
            }
        };
        if admitted.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Connections inside.
    pub fn inside(&self) -> usize {
        lock(&self.inside).visitors.len()
    }

    /// Connections that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections that had to go for others.
    pub fn turned_out(&self) -> u64 {
        self.turned_out.load(Ordering::Relaxed)
    }

    /// The error says whether somebody is about to leave.
    fn try_admit(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Visit, (Full, bool)> {
        let mut inside = lock(&self.inside);
        if let Some(address) = address {
            let here = inside.by_address.get(&address).copied().unwrap_or_default();
            if here >= self.per_address.load(Ordering::Relaxed) {
                let leaves = self.turn_out(&inside, Some(address));
                return Err((Full::Address, leaves));
            }
        }
        if inside.visitors.len() >= self.most.load(Ordering::Relaxed) {
            let leaves = self.turn_out(&inside, None);
            return Err((Full::Port, leaves));
        }
        let id = inside.next;
        inside.next += 1;
        let out = CancellationToken::new();
        let visitor = Visitor {
            address,
            doing: Doing::Silent,
            since: Stopwatch::start(),
            out: out.clone(),
        };
        inside.visitors.insert(id, visitor);
        if let Some(address) = address {
            *inside.by_address.entry(address).or_default() += 1;
        }
        Ok(Visit {
            door: Arc::clone(self),
            id,
            out,
        })
    }

    /// Tells the most dispensable visitor to go; whether there is one. As long as somebody is silent, nobody goes who has asked
    /// something: a crowd that comes at once must not take the places of those who were there.
    fn turn_out(&self, inside: &Inside, of: Option<IpAddr>) -> bool {
        let here = || {
            inside
                .visitors
                .values()
                .filter(move |visitor| of.is_none() || visitor.address == of)
        };
        let Some(least) = here().map(|visitor| visitor.doing).min() else {
            return false;
        };
        let patience = match least {
            Doing::Silent => SILENCE,
            Doing::Resting => REST,
            Doing::Busy => return false,
        };
        let first = here()
            .filter(|visitor| visitor.doing == least && !visitor.out.is_cancelled())
            .max_by_key(|visitor| visitor.since.elapsed())
            .filter(|visitor| visitor.since.elapsed() >= patience);
        match first {
            Some(visitor) => {
                visitor.out.cancel();
                self.turned_out.fetch_add(1, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }
}

impl Visit {
    /// The visitor asks for something; the place is not taken away until it rests.
    pub fn is_busy(&self) {
        self.does(Doing::Busy);
    }

    /// Everything is answered.
    pub fn rests(&self) {
        self.does(Doing::Resting);
    }

    /// Resolves when somebody else gets the place.
    pub async fn must_go(&self) {
        self.out.cancelled().await;
    }

    fn does(&self, doing: Doing) {
        if let Some(visitor) = lock(&self.door.inside).visitors.get_mut(&self.id) {
            (visitor.doing, visitor.since) = (doing, Stopwatch::start());
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut inside = lock(&self.door.inside);
        let left = inside.visitors.remove(&self.id);
        if let Some(address) = left.and_then(|visitor| visitor.address)
            && let Some(count) = inside.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                inside.by_address.remove(&address);
            }
        }
        drop(inside);
        self.door.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    /// Leaves when it is told to.
    fn obedient(visit: Visit) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { visit.must_go().await })
    }

    async fn admitted(door: &Arc<Door>, from: IpAddr) -> Visit {
        door.admit(from)
            .await
            .unwrap_or_else(|full| panic!("{full}"))
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_goes_first_and_who_is_busy_stays() {
        let door = Door::new(3, 100);
        let busy = admitted(&door, HERE).await;
        busy.is_busy();
        let spoke = admitted(&door, HERE).await;
        spoke.rests();
        let silent = obedient(admitted(&door, HERE).await);
        let spoke = obedient(spoke);
        // Nobody has been silent long enough.
        assert_eq!(door.admit(HERE).await.err(), Some(Full::Port));
        clock::sleep(SILENCE).await;
        let _late = admitted(&door, HERE).await;
        silent.await.expect("it was turned out");
        assert!(!spoke.is_finished());
        assert_eq!(
            (door.inside(), door.refused(), door.turned_out()),
            (3, 1, 1)
        );
        drop(busy);
        let _next = admitted(&door, HERE).await;
        assert_eq!(door.inside(), 3);
        spoke.abort();
    }

    #[tokio::test]
    async fn an_address_of_another_machine_has_its_share_and_the_loopback_has_none() {
        let door = Door::new(4, 2);
        let _two = (admitted(&door, THERE).await, admitted(&door, THERE).await);
        assert_eq!(door.admit(THERE).await.err(), Some(Full::Address));
        let here = (admitted(&door, HERE).await, admitted(&door, HERE).await);
        assert_eq!(door.admit(HERE).await.err(), Some(Full::Port));
        drop(here);
        drop(_two);
        assert_eq!(door.inside(), 0);
        let _again = (admitted(&door, THERE).await, admitted(&door, THERE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_leave_keeps_nobody_waiting_for_long() {
        let door = Door::new(1, 1);
        let _stuck = admitted(&door, HERE).await;
        clock::sleep(SILENCE).await;
        let refused = clock::timeout(Duration::from_secs(20), door.admit(HERE)).await;
        assert_eq!(refused.expect("soon").err(), Some(Full::Port));
    }

    #[test]
    fn an_address_counts_as_its_machine() {
        for (from, counts) in [
            ("127.0.0.9", None),
            ("::1", None),
            ("::ffff:127.0.0.1", None),
            ("10.0.0.1", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("2001:db8:1:2:3:4:5:6", Some("2001:db8:1:2::")),
        ] {
            let counts = counts.map(|counts| counts.parse().expect("an address"));
            assert_eq!(counted(from.parse().expect("an address")), counts, "{from}");
        }
    }

    #[tokio::test]
    async fn who_is_refused_is_told() {
        let listener = TcpListener::bind((HERE, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let (accepted, _) = accept(&listener, "test").await;
        refuse(accepted, b"no place");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("the end");
        assert_eq!(answer, "no place");
    }
}
