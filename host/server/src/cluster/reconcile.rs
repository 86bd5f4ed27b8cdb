//! Makes this node host what the catalogue says it should, and nothing else.
//!
//! Bringing a group up needs no agreement: a stale catalogue can only bring up what was once right, and a replica that
//! was removed stays removed by its tombstone. Taking a group down destroys data, so it is done only after the
//! catalogue was confirmed by a majority.

use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use skep_core::id::{GroupId, Incarnation, NodeId};
use skep_machine::wasm::Purpose;

use skep::Exchange;
use skep::clock::{self, Stopwatch};
use skep::memory;
use skep::{Error, GroupConfig, Peer};
use tokio::runtime::Handle;

use super::machines::{GroupMachines, machine};
use super::{Host, Hosted, blocking};
use crate::catalog::{Catalog, GroupRecord};
use crate::error::HostError;

/// First and longest pause between attempts at something that depends on other nodes.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often the node is compared with the catalogue although nothing is known to have changed: a replica that was
/// removed from its group goes by itself, and may be wanted again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The pause after so many attempts before this one.
pub(super) fn backoff(attempt: u32) -> Duration {
    clock::doubled(BACKOFF, attempt.saturating_add(1))
}

/// Runs until it is dropped.
pub(super) async fn run(host: Host) {
    let mut states = host.inner.catalog.clone();
    host.keep("sweep", sweep);
    let mut learned = None;
    loop {
        let catalog = states.borrow_and_update().clone();
        // Before anything of it is brought up: whoever the catalogue knows is known by its store from here on.
        if learned != Some(catalog.version) {
            host.connect(&catalog);
            let (roster, own, known) = (host.inner.roster.clone(), host.id(), catalog.clone());
            if let Err(error) = blocking(move || roster.learn(own, &known)).await {
                tracing::error!(%error, "stores of peers are not noted");
            }
            let is_group = |group| catalog.group(group).is_some();
            host.inner.peers.retain(is_group);
            learned = Some(catalog.version);
        }
        step(&host, &catalog);
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = host.inner.changed.notified() => {}
            () = clock::sleep(LOOK_AGAIN) => {
                // Not at once: what a group leaves on other threads ends a little later.
                if host.inner.emptied.swap(false, Ordering::AcqRel)
                    && let Err(error) = blocking(memory::give_back).await
                {
                    tracing::warn!(%error, "the memory of removed groups is not given back");
                }
            }
        }
    }
}

/// Starts whatever is to be begun; each group has at most one task at a time.
fn step(host: &Host, catalog: &Catalog) {
    let own = host.id();
    let mut hosted = host.hosted();
    for record in catalog
        .groups()
        .filter(|record| record.members.contains(&own))
    {
        if let Entry::Vacant(place) = hosted.entry(record.id) {
            place.insert(Hosted::Starting {
                incarnation: record.incarnation,
                fails: None,
                reason: None,
            });
            keep_bringing_up(host, record);
        }
    }
    for (id, state) in hosted.iter_mut() {
        let Hosted::Running { incarnation } = *state else {
            continue;
        };
        if !belongs(catalog, *id, incarnation, own) {
            *state = Hosted::Stopping {
                incarnation,
                reason: None,
            };
            let id = *id;
            host.keep("take-down", move |host| take_down(host, id, incarnation));
        } else if let Some(record) = catalog.group(*id)
            && !host.inner.node.exists(*id)
        {
            *state = Hosted::Starting {
                incarnation,
                fails: None,
                reason: None,
            };
            keep_bringing_up(host, record);
        }
    }
}

fn keep_bringing_up(host: &Host, record: &Arc<GroupRecord>) {
    let record = Arc::clone(record);
    host.keep("bring-up", move |host| bring_up(host, Arc::clone(&record)));
}

/// Whether the catalogue places this life of a group on a node.
pub(super) fn belongs(
    catalog: &Catalog,
    id: GroupId,
    incarnation: Incarnation,
    node: NodeId,
) -> bool {
    catalog
        .group(id)
        .is_some_and(|record| record.incarnation == incarnation && record.members.contains(&node))
}

/// Tries until the group runs or belongs here no longer.
async fn bring_up(host: Host, record: Arc<GroupRecord>) {
    let (id, incarnation) = (record.id, record.incarnation);
    let (mut attempt, mut fails) = (0, None);
    while belongs(&host.catalog(), id, incarnation, host.id()) {
        match try_bring_up(&host, &record).await {
            Ok(()) => {
                tracing::info!(group = %id, name = %record.name, "group is up");
                host.hosted().insert(id, Hosted::Running { incarnation });
                host.inner.changed.notify_one();
                return;
            }
            Err(error) => {
                let reason = error.chain();
                // Once at the level people look at, then quietly: the status says it too.
                if attempt == 0 {
                    tracing::warn!(group = %id, name = %record.name, %reason, "group cannot be brought up yet");
                } else {
                    tracing::debug!(group = %id, name = %record.name, %reason, attempt, "group cannot be brought up yet");
                }
                host.hosted().insert(
                    id,
                    Hosted::Starting {
                        incarnation,
                        fails: Some(*fails.get_or_insert_with(Stopwatch::start)),
                        reason: Some(reason),
                    },
                );
            }
        }
        clock::sleep(backoff(attempt)).await;
        attempt += 1;
    }
    host.hosted().remove(&id);
    host.inner.changed.notify_one();
}

async fn try_bring_up(host: &Host, record: &Arc<GroupRecord>) -> Result<(), HostError> {
    let config = group_config(host, record).await?;
    match host.inner.node.create_group(config).await {
        Ok(()) => Ok(()),
        // An attempt before this one got through and was cut off while it waited.
        Err(Error::GroupExists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The configuration of a group, with a machine of its own.
pub(super) async fn group_config(
    host: &Host,
    record: &Arc<GroupRecord>,
) -> Result<GroupConfig, HostError> {
    let current = record.current();
    // After a restart, too, what this node carries is not refused for want of budget.
    let purpose = match host.inner.node.carries(record.id, record.incarnation) {
        true => Purpose::Running,
        false => Purpose::New,
    };
    let machine = machine(host, record, &current, purpose).await?;
    let joins = record.joiners.contains(&host.id());
    let founders = if joins {
        Vec::new()
    } else {
        record.founders.iter().copied().map(Peer::new).collect()
    };
    let mut config = GroupConfig::new(record.id, record.name.clone(), machine, founders);
    config.first_leader = (!joins).then(|| record.first_leader()).flatten();
    config.component = current.component;
    config.exchange = Some(Exchange {
        founding: record.founding().deployment(),
        current: current.deployment(),
        factory: Arc::new(GroupMachines {
            host: host.clone(),
            record: Arc::clone(record),
            runtime: Handle::current(),
        }),
    });
    config.incarnation = record.incarnation;
    config.init = record.init.clone().into();
    Ok(host.inner.config.tuned(config))
}

/// Has the catalogue confirmed, then removes what is on disk of groups that were removed, or moved away, while this node was
/// down.
async fn sweep(host: Host) {
    let mut attempt = 0;
    while host.refresh().await.is_err() {
        clock::sleep(backoff(attempt)).await;
        attempt += 1;
    }
    host.inner.confirmed.store(true, Ordering::Release);
    let catalog = host.catalog();
    for (id, incarnation) in host.inner.node.dormant_groups() {
        // Under the same id another life may belong here; bringing that up is what ends the former one.
        let belongs = catalog
            .group(id)
            .is_some_and(|record| record.members.contains(&host.id()));
        if belongs || id == crate::catalog::GROUP {
            continue;
        }
        match host.inner.node.remove_group(id).await {
            Ok(()) => {
                tracing::info!(group = %id, %incarnation, "a group that left while this node was down is removed")
            }
            Err(error) => {
                tracing::warn!(group = %id, %incarnation, %error, "a group that left cannot be removed yet")
            }
        }
    }
}

/// Removes a replica with its data, once a majority has confirmed that it belongs here no longer.
async fn take_down(host: Host, id: GroupId, incarnation: Incarnation) {
    let mut attempt = 0;
    loop {
        match try_take_down(&host, id, incarnation).await {
            Ok(removed) => {
                if removed {
                    tracing::info!(group = %id, "group removed from this node");
                    host.inner.emptied.store(true, Ordering::Release);
                    host.hosted().remove(&id);
                } else {
                    host.hosted().insert(id, Hosted::Running { incarnation });
                }
                host.inner.changed.notify_one();
                return;
            }
            Err(error) => {
                let reason = Some(error.chain());
                host.hosted().insert(
                    id,
                    Hosted::Stopping {
                        incarnation,
                        reason,
                    },
                );
            }
        }
        clock::sleep(backoff(attempt)).await;
        attempt += 1;
    }
}

async fn try_take_down(
    host: &Host,
    id: GroupId,
    incarnation: Incarnation,
) -> Result<bool, HostError> {
    host.refresh().await?;
    if belongs(&host.catalog(), id, incarnation, host.id()) {
        return Ok(false);
    }
    match host.inner.node.remove_group(id).await {
        // The replica has removed itself when it learnt of its own removal.
        Ok(()) | Err(Error::NoSuchGroup { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        assert_eq!(backoff(0), BACKOFF.0);
        assert_eq!(backoff(1), BACKOFF.0 * 2);
        assert_eq!(backoff(9), BACKOFF.1);
        assert_eq!(backoff(u32::MAX), BACKOFF.1);
    }
}
