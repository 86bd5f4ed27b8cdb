//! Memory that many share: what strangers have sent of something that is not whole yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes for all together.
#[derive(Debug)]
pub(crate) struct Pot {
    most: usize,
    held: AtomicUsize,
}

/// What one of them holds; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Portion {
    pot: Arc<Pot>,
    bytes: usize,
}

impl Pot {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: AtomicUsize::new(0),
        })
    }

    /// A portion of nothing yet.
    pub(crate) fn portion(self: &Arc<Self>) -> Portion {
        Portion {
            pot: Arc::clone(self),
            bytes: 0,
        }
    }

    /// Bytes that all hold.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Portion {
    /// From now on it holds so many bytes. Says no if all together would hold too much; then it holds what it held.
    #[must_use]
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        if let Some(more) = bytes.checked_sub(self.bytes) {
            let held = self.pot.held.fetch_add(more, Ordering::Relaxed) + more;
            if more > 0 && held > self.pot.most {
                self.pot.held.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            self.pot
                .held
                .fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        self.pot.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_hold_no_more_than_the_pot() {
        let pot = Pot::new(100);
        let (mut one, mut two) = (pot.portion(), pot.portion());
        assert!(one.set(60) && two.set(40));
        assert!(!two.set(41) && !one.set(61));
        assert_eq!(pot.held(), 100);
        // Less is always possible, and so is the same.
        assert!(one.set(60) && one.set(10) && two.set(90));
        drop(two);
        assert_eq!(pot.held(), 10);
        drop(one);
        assert_eq!(pot.held(), 0);
    }
}
