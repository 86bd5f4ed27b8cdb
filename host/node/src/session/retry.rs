//! Proposals that are repeated until they have an answer, and applied once.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use skep_core::id::GroupId;
use skep_core::proposal::{Command, ProposalError, Response};
use skep_types::retry::doubled;

use crate::clock;
use crate::error::Error;
use crate::multinode::MultiNode;
use crate::session::Ticket;
use crate::shards::route::Route;

impl MultiNode {
    /// Proposes a command until it has an answer, under one request id of a session that the node keeps, so the machine
    /// applies it once. Each try takes at most `timeout`, and `max_retries` tries may follow the first one: `Some(0)` is one
    /// try, and `None` (-1 in the seed package) goes on until there is an answer.
    ///
    /// # Errors
    /// As [`MultiNode::propose`]. When the tries are used up: the last error, or `Unknown` if any try may have been
    /// applied.
    pub async fn propose_retry(
        &self,
        group: GroupId,
        command: Bytes,
        timeout: Duration,
        max_retries: Option<u32>,
    ) -> Result<Response, Error> {
        let route = self.inner.router.route(group)?;
        let mut tries = Tries::new(group, timeout, max_retries);
        loop {
            let ticket = self.ticket(&route, &mut tries).await?;
            let error = loop {
                let data = command.clone();
                let command = Command {
                    request: ticket.request,
                    acknowledged: ticket.acknowledged(),
                    data,
                };
                let error = match tries.attempt(self.propose_as(group, command)).await {
                    Ok(response) => return Ok(response),
                    Err(error) => error,
                };
                if matches!(
                    &error,
                    Error::Proposal {
                        source: ProposalError::SessionExpired,
                        ..
                    }
                ) {
                    break error;
                }
                tries.after(error).await?;
            };
            route.session.expired(ticket.request.session);
            // Under a lost session nobody can tell what became of an earlier try. Without one the command was certainly
            // never applied, so it may go by a new name.
            tries.after_expiry(error).await?;
        }
    }

    /// Names a command in the node's own session of the group, which is opened if need be. Waits for other callers, but
    /// never longer than its own tries allow.
    async fn ticket<'a>(&self, route: &'a Route, tries: &mut Tries) -> Result<Ticket<'a>, Error> {
        loop {
            match clock::timeout(tries.timeout, route.session.slot()).await {
                Some(slot) => match route.session.begin(slot) {
                    Ok(ticket) => return Ok(ticket),
                    Err(slot) => drop(slot),
                },
                None => {
                    tries.after(Error::Busy { node: self.id() }).await?;
                    continue;
                }
            }
            if let Err(error) = self.open_node_session(route, tries.timeout).await {
                tries.after_unopened(error).await?;
            }
        }
    }

    /// Opens the node's own session in the group, unless another caller has by then.
    async fn open_node_session(&self, route: &Route, timeout: Duration) -> Result<(), Error> {
        let group = GroupId(route.key.group);
        let opening = async {
            let _opening = route.session.opening.lock().await;
            if !route.session.is_open() {
                route
                    .session
                    .opened(self.open_session(group).await?.session());
            }
            Ok(())
        };
        let too_late = Error::proposal(group, ProposalError::NoLeader);
        clock::timeout(timeout, opening)
            .await
            .unwrap_or(Err(too_late))
    }
}

/// The tries of one command.
struct Tries {
    group: GroupId,
    timeout: Duration,
    /// Tries that may still be begun; `None` is for ever.
    left: Option<u32>,
    /// Some try may have been applied, or may yet be.
    maybe_applied: bool,
    /// The session was lost once and opened again.
    reopened: bool,
    failures: u32,
}

/// First and longest pause between two tries, so that a group that is busy or without a leader is not asked in a loop.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

impl Tries {
    fn new(group: GroupId, timeout: Duration, max_retries: Option<u32>) -> Self {
        Self {
            group,
            timeout,
            left: max_retries,
            maybe_applied: false,
            reopened: false,
            failures: 0,
        }
    }

    async fn attempt(
        &mut self,
        attempt: impl Future<Output = Result<Response, Error>>,
    ) -> Result<Response, Error> {
        let result = clock::timeout(self.timeout, attempt)
            .await
            .unwrap_or(Err(Error::proposal(self.group, ProposalError::Unknown)));
        self.maybe_applied |= result.as_ref().is_err_and(Error::is_unknown);
        result
    }

    /// Waits for the next try, or gives up.
    async fn after(&mut self, error: Error) -> Result<(), Error> {
        let (used_up, may_repeat) = (self.left == Some(0), error.is_retryable());
        if used_up || !may_repeat {
            return Err(self.verdict(error));
        }
        self.left = self.left.map(|left| left - 1);
        self.failures = self.failures.saturating_add(1);
        clock::sleep(doubled(PAUSE, self.failures).min(self.timeout)).await;
        Ok(())
    }

    /// As [`Tries::after`], when no session could be opened, which leaves nothing in doubt.
    async fn after_unopened(&mut self, error: Error) -> Result<(), Error> {
        let no_leader = Error::proposal(self.group, ProposalError::NoLeader);
        self.after(if error.is_unknown() && error.is_retryable() {
            no_leader
        } else {
            error
        })
        .await
    }

    /// As [`Tries::after`], when the session is lost. The first loss costs no try: it only shows that the node was idle.
    async fn after_expiry(&mut self, error: Error) -> Result<(), Error> {
        if self.maybe_applied || self.left == Some(0) && self.reopened {
            return Err(self.verdict(error));
        }
        if self.reopened {
            self.left = self.left.map(|left| left - 1);
        }
        self.reopened = true;
        Ok(())
    }

    /// The last error, made honest about the tries before.
    fn verdict(&self, error: Error) -> Error {
        match error {
            Error::Stopped { node } if self.maybe_applied => Error::StoppedInFlight { node },
            // That is certain.
            Error::Proposal {
                source: ProposalError::AnswerExpired,
                ..
            } => error,
            error if self.maybe_applied && !error.is_unknown() => {
                Error::proposal(self.group, ProposalError::Unknown)
            }
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn failed(source: ProposalError) -> Error {
        Error::Proposal {
            group: GROUP,
            source,
        }
    }

    async fn try_with(tries: &mut Tries, source: ProposalError) -> Result<(), Error> {
        let error = tries
            .attempt(async { Err(failed(source)) })
            .await
            .expect_err("it fails");
        tries.after(error).await
    }

    fn code(result: Result<(), Error>) -> Option<&'static str> {
        result.err().map(|error| error.code().name())
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_counted_and_without_one_there_is_one_try() {
        for retries in [0, 1, 3] {
            let mut tries = Tries::new(GROUP, Duration::from_secs(1), Some(retries));
            for _ in 0..retries {
                assert_eq!(
                    code(try_with(&mut tries, ProposalError::NoLeader).await),
                    None
                );
            }
            assert_eq!(
                code(try_with(&mut tries, ProposalError::NoLeader).await),
                Some("no-leader")
            );
        }
        let mut for_ever = Tries::new(GROUP, Duration::from_secs(1), None);
        for _ in 0..1000 {
            assert_eq!(
                code(try_with(&mut for_ever, ProposalError::NoLeader).await),
                None
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_doubtful_try_makes_every_later_failure_doubtful() {
        let mut tries = Tries::new(GROUP, Duration::from_secs(1), Some(1));
        assert_eq!(
            code(try_with(&mut tries, ProposalError::Unknown).await),
            None
        );
        assert_eq!(
            code(try_with(&mut tries, ProposalError::NoLeader).await),
            Some("outcome-unknown")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_without_an_answer_is_doubtful() {
        let mut tries = Tries::new(GROUP, Duration::from_millis(1), Some(0));
        let error = tries
            .attempt(std::future::pending())
            .await
            .expect_err("there is no answer");
        assert!(error.is_unknown());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_session_is_replaced_only_while_nothing_is_in_doubt() {
        let expired = || failed(ProposalError::SessionExpired);
        let mut tries = Tries::new(GROUP, Duration::from_secs(1), Some(0));
        assert_eq!(
            code(tries.after_expiry(expired()).await),
            None,
            "the first loss costs no try"
        );
        assert_eq!(
            code(tries.after_expiry(expired()).await),
            Some("session-expired")
        );
        let mut tries = Tries::new(GROUP, Duration::from_secs(1), None);
        assert_eq!(
            code(try_with(&mut tries, ProposalError::Unknown).await),
            None
        );
        assert_eq!(
            code(tries.after_expiry(expired()).await),
            Some("outcome-unknown")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn that_an_earlier_try_was_applied_is_no_doubt() {
        let mut tries = Tries::new(GROUP, Duration::from_secs(1), None);
        assert_eq!(
            code(try_with(&mut tries, ProposalError::Unknown).await),
            None
        );
        assert_eq!(
            code(try_with(&mut tries, ProposalError::AnswerExpired).await),
            Some("answer-expired")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_makes_no_sense_is_not_repeated() {
        let mut tries = Tries::new(GROUP, Duration::from_secs(1), None);
        let too_large = ProposalError::TooLarge { size: 2, limit: 1 };
        assert_eq!(
            code(try_with(&mut tries, too_large).await),
            Some("too-large")
        );
    }
}
