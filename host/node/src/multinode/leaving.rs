//! A node that is to end: others lead, and nobody waits.

use std::time::Duration;

use futures::future::join_all;
use skep_core::id::GroupId;
use skep_core::input::Input;

use super::MultiNode;
use crate::clock::{Stopwatch, sleep};
use crate::error::Error;
use crate::shards::replica::Replica;

/// Pause between two looks at how far groups are that are handed over, or answers that are owed.
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl MultiNode {
    /// If this node leads the group, asks the member to lead that is best fit for it, should there be one.
    ///
    /// # Errors
    /// As [`MultiNode::campaign`].
    pub async fn hand_over(&self, group: GroupId) -> Result<(), Error> {
        self.act(group, |replica| replica.handle(Input::HandOver))
            .await
    }

    /// Hands over the leadership of every group that this node leads, and waits until others lead, at most so long. Answers how
    /// many groups it leads then: those of which nobody else could, and those for which the time was too short.
    pub async fn hand_over_all(&self, within: Duration) -> usize {
        let watch = Stopwatch::start();
        loop {
            let led = self.led();
            let begun = led.iter().map(|group| self.act(*group, Replica::hand_over));
            let begun = join_all(begun).await;
            let waits = begun.iter().any(|begun| matches!(begun, Ok(true)));
            if !waits || watch.elapsed() >= within {
                return led.len();
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until nobody waits for an answer of this node, at most so long. Whether nobody does. Whoever calls it sees to it that
    /// nothing new is asked.
    pub async fn settle(&self, within: Duration) -> bool {
        let watch = Stopwatch::start();
        loop {
            let router = &self.inner.router;
            let held: usize = router.mailboxes().iter().map(|of| of.held()).sum();
            let owes = self.groups().into_iter();
            let owes = owes.map(|group| self.look(group, Replica::owes_answers));
            let owes = join_all(owes).await;
            if held == 0 && !owes.iter().any(|owes| matches!(owes, Ok(true))) {
                return true;
            }
            if watch.elapsed() >= within {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn led(&self) -> Vec<GroupId> {
        let router = &self.inner.router;
        let routes = router.routes();
        let led = routes.iter().filter(|route| route.leader() == router.node);
        led.map(|route| GroupId(route.key.group)).collect()
    }
}
