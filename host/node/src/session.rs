//! The session a node keeps in each group for the retries it makes on behalf of its callers.

pub(crate) mod retry;

use std::sync::Mutex;

use skep_core::id::{RequestId, SessionId};
use skep_types::retry::Commands;
use skep_types::shared::lock;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Commands of one node-owned session in flight. Far below the window of answers the core keeps for a session, so an
/// answer is never forgotten while somebody retries for it.
const IN_FLIGHT_MAX: usize = 256;

/// One group's session of this node; opened when it is first needed.
pub(crate) struct NodeSession {
    open: Mutex<Option<Commands>>,
    /// Held by the one caller that opens the session.
    pub(crate) opening: tokio::sync::Mutex<()>,
    window: Semaphore,
}

/// One command under way; when it is dropped, nobody retries it any more.
pub(crate) struct Ticket<'a> {
    session: &'a NodeSession,
    pub(crate) request: RequestId,
    _slot: SemaphorePermit<'a>,
}

impl NodeSession {
    pub(crate) fn new() -> Self {
        Self {
            open: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
            window: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// A place in the window, waiting for one; to be given to [`NodeSession::begin`].
    pub(crate) async fn slot(&self) -> SemaphorePermit<'_> {
        self.window
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }

    /// Names the next command, or gives the slot back if no session is open.
    pub(crate) fn begin<'a>(
        &'a self,
        slot: SemaphorePermit<'a>,
    ) -> Result<Ticket<'a>, SemaphorePermit<'a>> {
        match lock(&self.open).as_mut() {
            Some(commands) => Ok(Ticket {
                session: self,
                request: commands.begin(),
                _slot: slot,
            }),
            None => Err(slot),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    pub(crate) fn opened(&self, id: SessionId) {
        *lock(&self.open) = Some(Commands::new(id));
    }

    /// The group has forgotten the session.
    pub(crate) fn expired(&self, id: SessionId) {
        lock(&self.open).take_if(|open| open.session() == id);
    }
}

impl Ticket<'_> {
    /// Everything up to here has its answer.
    pub(crate) fn acknowledged(&self) -> u64 {
        let open = lock(&self.session.open);
        open.as_ref()
            .map_or(0, |open| open.acknowledged(self.request))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.session.open).as_mut() {
            open.settle(self.request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_answered_is_acknowledged() {
        let session = NodeSession::new();
        let slot = session
            .begin(session.slot().await)
            .map(drop)
            .expect_err("no session is open");
        session.opened(SessionId(9));
        let first = session.begin(slot).expect("the session is open");
        let second = session
            .begin(session.slot().await)
            .expect("the session is open");
        assert_eq!((first.request.sequence, second.request.sequence), (1, 2));
        assert_eq!(second.acknowledged(), 0);
        drop(first);
        assert_eq!(second.acknowledged(), 1);
        session.expired(SessionId(8));
        assert!(session.is_open());
        session.expired(SessionId(9));
        assert!(!session.is_open());
        session.opened(SessionId(10));
        assert_eq!(
            second.acknowledged(),
            0,
            "a ticket of the former session knows nothing of this one"
        );
    }
}
