//! Ports for nodes.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// An address on the loopback nobody listens on.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A port nobody listens on, never handed out twice by this process. It lies below the range that the kernel takes
/// outgoing connections' ports from: those would otherwise take the port of a node that is down, or connect to
/// themselves on it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two test processes begin in different places.
    let start = (std::process::id() % 400) as u16 * 50;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}
