//! The past of a store, as it tells it and as others remember it. By that a data directory is found out that was set back to an
//! older copy, or that is used twice.
//!
//! Each start of a node is a *life* of its store: it has the next number, a number drawn at random, and the place in the log that
//! it began at, all of them durable before the node speaks to anybody. Places only grow, and a node tells others only of such as
//! are on its disk. So a life that goes on from what another node has heard of began at that place or behind it:
//!
//! * a copy that was made in the same life begins its next one before the place that others heard of;
//! * a copy that was made in an earlier life, and a directory that is used twice, draw other numbers than the others know.
//!
//! Whoever heard nothing since the copy was made cannot tell, and neither can anybody if all nodes went back alike.

use std::fmt;

/// What to do about a store that went back, for people.
pub const ADVICE: &str = "was its data directory set back to an older copy, or is it used twice? Remove the node (`skep node remove`) and \
     let it join as a new one, with an empty data directory (`skep node invite`). If all nodes were set back on purpose, stop them all and \
     remove the files `peers` and `went-back` of each data directory";

/// Lives that a store remembers and tells others of. A node that heard nothing of another for more of its starts than that judges it
/// by its place in the log alone.
pub const LIVES_TOLD: usize = 128;

/// One start of a node from its data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// Which one it is, from 1.
    pub number: u64,
    /// Drawn at random.
    pub nonce: u64,
    /// Where its log ended when it began.
    pub began: Durable,
}

/// How far a log is on stable storage: the number of its segment in the high half, the bytes of that in the low one. It never goes
/// back, whatever is collected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Durable(pub u64);

/// What a store says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Past {
    /// Its last lives, without a gap, the present one last. Empty if it keeps none, as where a program brings a store of its own.
    pub lives: Vec<Life>,
    /// How far its log is durable.
    pub durable: Durable,
}

/// What another node remembers of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The newest life that it heard of.
    pub life: u64,
    /// What was drawn for that.
    pub nonce: u64,
    /// How far the log was durable, as it heard in that life or before.
    pub durable: Durable,
}

/// Why a store is not the one that is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WentBack {
    /// It tells of earlier lives only.
    Earlier {
        /// The life that is known.
        known: u64,
        /// The one that it is in.
        said: u64,
    },
    /// Another number was drawn for a life.
    Another {
        /// That life.
        life: u64,
    },
    /// It went on from less than it had.
    Shorter {
        /// How far it was durable.
        known: Durable,
        /// Where it went on.
        said: Durable,
    },
}

impl Past {
    /// The present life.
    pub fn present(&self) -> Option<Life> {
        self.lives.last().copied()
    }

    /// Whether the lives are as many as may be told, and without a gap.
    pub fn is_sound(&self) -> bool {
        let follow = |pair: &[Life]| {
            pair[0].number.checked_add(1) == Some(pair[1].number) && pair[0].began <= pair[1].began
        };
        self.lives.len() <= LIVES_TOLD
            && self.lives.windows(2).all(follow)
            && self.lives.first().is_none_or(|life| life.number > 0)
    }

    fn life(&self, number: u64) -> Option<Life> {
        let first = self.lives.first()?.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.lives.get(at).copied()
    }
}

impl Known {
    /// What is remembered of a store that nothing was known of.
    pub fn first(said: &Past) -> Option<Self> {
        said.present().map(|life| Self {
            life: life.number,
            nonce: life.nonce,
            durable: said.durable,
        })
    }

    /// What is remembered from now on, if the store that says this of itself goes on from what is known.
    ///
    /// # Errors
    /// How it does not.
    pub fn meet(self, said: &Past) -> Result<Self, WentBack> {
        let present = said.present().filter(|life| life.number >= self.life);
        let Some(present) = present else {
            let said = said.present().map_or(0, |life| life.number);
            return Err(WentBack::Earlier {
                known: self.life,
                said,
            });
        };
        let went_on_at = match said.life(self.life) {
            Some(life) if life.nonce != self.nonce => {
                return Err(WentBack::Another { life: self.life });
            }
            // What a life says out of order is no news.
            Some(_) if present.number == self.life => None,
            Some(_) => said.life(self.life + 1).map(|next| next.began),
            // It has had more lives since than it tells of.
            None => Some(said.durable),
        };
        if let Some(said) = went_on_at.filter(|at| *at < self.durable) {
            return Err(WentBack::Shorter {
                known: self.durable,
                said,
            });
        }
        Ok(Self {
            life: present.number,
            nonce: present.nonce,
            durable: self.durable.max(said.durable),
        })
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segment, bytes) = (self.0 >> 32, self.0 & u64::from(u32::MAX));
        write!(f, "segment {segment}, byte {bytes}")
    }
}

impl fmt::Display for WentBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earlier { known, said } => {
                write!(f, "it is in its life {said} and had a life {known} before")
            }
            Self::Another { life } => {
                write!(f, "its life {life} is another one than it was")
            }
            Self::Shorter { known, said } => write!(
                f,
                "its log goes on at {said} and had been durable up to {known}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with a disk, as far as its past goes.
    #[derive(Clone)]
    struct Node(Past);

    impl Node {
        fn new(nonce: u64) -> Self {
            let mut node = Self(Past::default());
            node.start(nonce);
            node
        }

        fn start(&mut self, nonce: u64) {
            let past = &mut self.0;
            past.lives.push(Life {
                number: past.present().map_or(0, |life| life.number) + 1,
                nonce,
                began: past.durable,
            });
            if past.lives.len() > LIVES_TOLD {
                past.lives.remove(0);
            }
            // Each start goes on in a segment of its own.
            past.durable = Durable(((past.durable.0 >> 32) + 1) << 32 | 64);
        }

        fn write(&mut self) {
            self.0.durable.0 += 8;
        }
    }

    #[test]
    fn a_store_that_goes_on_is_known_however_often_it_starts() {
        let mut node = Node::new(1);
        let mut known = Known::first(&node.0).expect("a life");
        for nonce in 2..3 * LIVES_TOLD as u64 {
            node.write();
            // Not every life is heard of.
            if nonce % 7 == 0 {
                known = known.meet(&node.0).expect("the same store");
                assert_eq!(known.durable, node.0.durable);
            }
            node.start(nonce);
            assert!(node.0.is_sound());
        }
        assert!(known.meet(&node.0).is_ok());
    }

    #[test]
    fn a_copy_of_the_same_life_is_found_by_its_place() {
        let mut node = Node::new(1);
        node.write();
        let mut copy = node.clone();
        node.write();
        let known = Known::first(&node.0).expect("a life");
        copy.start(2);
        assert!(matches!(known.meet(&copy.0), Err(WentBack::Shorter { .. })));
        // Further starts take the log far beyond what was heard, and change nothing of it.
        for nonce in 3..20 {
            copy.write();
            copy.start(nonce);
        }
        assert!(copy.0.durable > known.durable);
        assert!(matches!(known.meet(&copy.0), Err(WentBack::Shorter { .. })));
    }

    #[test]
    fn a_copy_of_an_earlier_life_is_found_by_what_was_drawn() {
        let mut node = Node::new(1);
        let mut copy = node.clone();
        node.start(2);
        node.start(3);
        let known = Known::first(&node.0).expect("a life");
        let two = WentBack::Earlier { known: 3, said: 2 };
        copy.start(22);
        assert_eq!(known.meet(&copy.0), Err(two));
        let another = WentBack::Another { life: 3 };
        for nonce in 23..40 {
            copy.write();
            copy.start(nonce);
            assert_eq!(known.meet(&copy.0), Err(another));
        }
    }

    #[test]
    fn of_a_directory_that_is_used_twice_the_second_is_found() {
        let node = Node::new(1);
        let (mut one, mut other) = (node.clone(), node);
        one.start(2);
        other.start(3);
        let known = Known::first(&one.0).expect("a life");
        let another = WentBack::Another { life: 2 };
        assert_eq!(known.meet(&other.0), Err(another));
        one.write();
        assert!(known.meet(&one.0).is_ok());
    }

    #[test]
    fn what_one_life_says_out_of_order_is_no_lie() {
        let mut node = Node::new(1);
        let before = node.0.clone();
        node.write();
        let known = Known::first(&node.0).expect("a life");
        assert_eq!(known.meet(&before), Ok(known));
    }

    #[test]
    fn a_store_that_has_lost_its_lives_is_refused_where_they_are_known() {
        let known = Known::first(&Node::new(1).0).expect("a life");
        let none = WentBack::Earlier { known: 1, said: 0 };
        assert_eq!(known.meet(&Past::default()), Err(none));
        assert_eq!(Known::first(&Past::default()), None);
    }

    #[test]
    fn beyond_the_lives_that_are_told_the_place_decides() {
        let mut node = Node::new(1);
        let mut known = Known::first(&node.0).expect("a life");
        for nonce in 2..2 * LIVES_TOLD as u64 {
            node.start(nonce);
        }
        assert!(known.meet(&node.0).is_ok());
        known.durable = Durable(u64::MAX);
        assert!(matches!(known.meet(&node.0), Err(WentBack::Shorter { .. })));
    }

    #[test]
    fn lives_with_a_gap_make_no_sense() {
        let mut past = Node::new(1).0;
        past.lives.push(Life {
            number: 3,
            ..past.lives[0]
        });
        assert!(!past.is_sound());
        past.lives[1].number = 2;
        assert!(past.is_sound());
        past.lives[0].began = Durable(1);
        assert!(!past.is_sound());
    }
}
