//! Starts replicas again whose machines stopped for a reason of this node: no memory, no descriptor, a file that cannot be
//! read. They go on from their files, as after a restart of the process, and nobody has to ask for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use skep::clock::{self, Stopwatch};
use skep::trouble::Kind;
use skep::{Error, GroupConfig, Peer};
use skep_core::founders::Founding;
use skep_core::id::GroupId;
use skep_core::impasse::DECIDED;

use super::{Host, reconcile, voters};
use crate::catalog::machine::CatalogMachine;
use crate::catalog::{self, Catalog};
use crate::config::Config;
use crate::error::HostError;

use tokio::sync::watch;

/// How often it is looked whether a replica has stopped.
const LOOK: Duration = Duration::from_millis(500);
/// Replicas that are started at once: what they stopped for the lack of is short for all of them.
const AT_ONCE: usize = 16;
/// The pause after a start, which doubles while the replica stops again and again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A replica that ran as long as this is taken for well.
const WELL: Duration = Duration::from_secs(900);

/// The starts of one replica.
#[derive(Clone, Default)]
struct Starts {
    count: u32,
    last: Duration,
    /// One is under way.
    begun: bool,
    /// It was started because its group had decided on what it stopped at.
    has_heard: bool,
}

impl Starts {
    fn pause(&self) -> Duration {
        match self.count {
            0 => Duration::ZERO,
            count => clock::doubled(PAUSE, count),
        }
    }

    /// Whether another start is due, where this is said of the replica. Once its group has decided on what it stopped at it need
    /// not wait; if that comes to nothing, it waits as before.
    fn is_due(&mut self, now: Duration, said: &str) -> bool {
        let is_decided = said.ends_with(DECIDED);
        self.has_heard &= is_decided;
        let may_start = (is_decided && !self.has_heard) || now >= self.last + self.pause();
        let is_due = !self.begun && may_start;
        self.has_heard |= is_due && is_decided;
        is_due
    }

    /// Another one, now.
    fn again(&mut self, now: Duration) {
        if now.saturating_sub(self.last) > WELL {
            self.count = 0;
        }
        self.count += 1;
        self.last = now;
        self.begun = true;
    }
}

/// Runs until it is dropped.
pub(super) async fn run(host: Host) {
    let watch = Stopwatch::start();
    let mut starts: BTreeMap<GroupId, Starts> = BTreeMap::new();
    // One that waits for its component holds back no other.
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(group) = under_way.next() => {
                if let Some(known) = starts.get_mut(&group) {
                    known.begun = false;
                }
                continue;
            }
            () = clock::sleep(LOOK) => {}
        }
        let status = host.inner.node.node_status();
        if status.stopped || status.fault.is_some() {
            return;
        }
        let faulted = status
            .troubled
            .iter()
            .filter(|troubled| troubled.trouble.kind == Kind::Faulted)
            .map(|troubled| (troubled.group, troubled.trouble.text.as_str()));
        // A catalogue that was given up and could not be brought up is nobody else's to bring up.
        let is_gone = !host.inner.node.exists(catalog::GROUP);
        // A node that was removed has none for ever.
        let catalogue =
            (is_gone && host.inner.roster.dismissed().is_none()).then_some((catalog::GROUP, ""));
        for (group, said) in catalogue.into_iter().chain(faulted) {
            let known = starts.entry(group).or_default();
            let has_turn = under_way.len() < AT_ONCE || group == catalog::GROUP;
            if has_turn && known.is_due(watch.elapsed(), said) {
                known.again(watch.elapsed());
                under_way.push(try_restart(&host, group, known.count));
            }
        }
    }
}

/// Gives the group back.
async fn try_restart(host: &Host, group: GroupId, number: u32) -> GroupId {
    match restart(host, group).await {
        Ok(true) => tracing::warn!(%group, number, "the replica was started again from its files"),
        Ok(false) => tracing::debug!(%group, "the replica has left meanwhile"),
        Err(error) => {
            tracing::warn!(%group, number, error = %error.chain(), "the replica cannot be started again yet")
        }
    }
    group
}

/// Starts a replica again if it is still here.
async fn restart(host: &Host, group: GroupId) -> Result<bool, HostError> {
    let (node, config) = (&host.inner.node, &host.inner.config);
    let with = if group == catalog::GROUP {
        catalogue(config, &host.inner.founding, &host.inner.published)
    } else {
        let record = host.catalog().group(group).cloned();
        let record = record.ok_or(Error::NoSuchGroup {
            group,
            node: host.id(),
        })?;
        reconcile::group_config(host, &record).await?
    };
    let incarnation = with.incarnation;
    let restarted = match node.exists(group) {
        true => node.restart_group(with).await,
        false if group == catalog::GROUP => node.create_group(with).await,
        // Whoever compares the node with the catalogue brings it up again, if it still belongs here.
        false => return Ok(false),
    };
    match restarted {
        // Whoever compares the node with the catalogue was faster.
        Err(Error::GroupExists { .. }) => {}
        restarted => restarted?,
    }
    // Whoever took it down meanwhile may have found nothing to take down.
    if group != catalog::GROUP
        && !reconcile::belongs(&host.catalog(), group, incarnation, host.id())
    {
        return match node.remove_group(group).await {
            Ok(()) | Err(Error::NoSuchGroup { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
    Ok(true)
}

/// The configuration of group 0, with a machine that publishes what it is.
pub(super) fn catalogue(
    config: &Config,
    founding: &Founding,
    published: &watch::Sender<Arc<Catalog>>,
) -> GroupConfig {
    let machine = CatalogMachine::publishing(published.clone());
    let founders = &founding.founders;
    // Who is none of them waits to be contacted; so does everybody in a later life of the cluster who has no replica: its
    // catalogue began long ago.
    let founds = founding.recovery.is_none() && founders.contains_key(&config.node_id());
    let members = match founds {
        true => founders.keys().copied().map(Peer::new).collect(),
        false => Vec::new(),
    };
    let mut group = GroupConfig::new(catalog::GROUP, "catalogue", Box::new(machine), members);
    group.founding_voters = voters::wanted(founders.len(), founders.len());
    // Those with the lowest ids vote.
    group.first_leader = founders.keys().min().copied();
    config.tuned(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_spaced_out_and_one_that_was_well_begins_anew() {
        let mut starts = Starts::default();
        assert_eq!(starts.pause(), Duration::ZERO);
        let mut now = Duration::from_secs(10);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            starts.again(now);
            pauses.push(starts.pause().as_secs());
            now += starts.pause();
            assert!(
                !starts.is_due(now, "it failed"),
                "the last one is under way"
            );
            starts.begun = false;
            assert!(starts.is_due(now, "it failed"));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        starts.again(now + WELL + WELL);
        assert_eq!(starts.pause(), PAUSE.0);
    }

    #[test]
    fn whoever_was_decided_on_is_started_at_once_and_only_once() {
        let mut starts = Starts::default();
        let mut now = Duration::from_secs(10);
        for _ in 0..8 {
            starts.again(now);
            now += Duration::from_secs(1);
        }
        starts.begun = false;
        let decided = format!("it failed{DECIDED}");
        assert!(!starts.is_due(now, "it failed"));
        assert!(starts.is_due(now, &decided));
        starts.again(now);
        starts.begun = false;
        let later = now + Duration::from_secs(1);
        assert!(!starts.is_due(later, &decided), "it could not be started");
        assert!(!starts.is_due(later, "it failed again"));
        assert!(starts.is_due(later, &decided), "it was decided anew");
    }
}
