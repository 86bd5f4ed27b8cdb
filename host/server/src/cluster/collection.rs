//! Components that nothing uses are removed: from the catalogue first, then from the disks of the nodes.
//!
//! The catalogue keeps a component as long as any group may ever ask for it again: what a group runs, and all that it was
//! ever asked to run, since a replica that is behind still meets those in its log. A new one is kept for a while, so that it
//! can be used. A node keeps what the catalogue names.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use skep::clock::{self, Stopwatch};
use skep_core::id::ComponentId;
use skep_types::admin::Collect;

use super::blocking;
use super::{Host, catalog};
use crate::catalog::command::{Command, Reply};
use crate::catalog::{Catalog, ComponentRecord};
use crate::error::HostError;

/// How long an upload is kept that no group uses, unless somebody says otherwise: time to create a group by hand.
const GRACE: Duration = Duration::from_secs(3600);
/// How often a node looks for what is to be removed, beside when the catalogue drops something.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// As long as something that the catalogue dropped could not be deleted.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Host {
    /// Removes the components from the catalogue that no group uses, or ever did, and that are older than asked. The nodes
    /// delete their files soon after.
    pub async fn collect_components(
        &self,
        asked: Collect,
    ) -> Result<Vec<ComponentRecord>, HostError> {
        let grace = asked.older_than_seconds.map_or(GRACE, Duration::from_secs);
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        // At once means also those of a node whose clock is ahead.
        let before = match grace {
            0 => u64::MAX,
            grace => clock::now().saturating_sub(grace),
        };
        self.refresh().await?;
        if self.catalog().unused(before).is_empty() {
            return Ok(Vec::new());
        }
        match self.change_catalog(&Command::Collect { before }).await? {
            Reply::Collected(components) => {
                for component in &components {
                    tracing::info!(component = %component.id, name = component.name, "a component that no group uses is removed");
                }
                Ok(components)
            }
            _ => Err(HostError::Internal(
                "the catalogue answered without components".into(),
            )),
        }
    }
}

/// Runs until it is dropped.
pub(super) async fn run(host: Host) {
    let mut states = host.inner.catalog.clone();
    let mut files = Files::default();
    loop {
        // One node is enough.
        let leads = host.inner.node.leader(catalog::GROUP).ok().flatten() == Some(host.id());
        if leads && let Err(error) = host.collect_components(Collect::default()).await {
            tracing::debug!(error = %error.chain(), "components are not collected yet");
        }
        if let Err(error) = files.sweep(&host).await {
            tracing::warn!(error = %error.chain(), "components that nothing uses are not deleted yet");
        }
        let pause = if files.dropped.is_empty() {
            LOOK_EVERY
        } else {
            LOOK_AGAIN
        };
        let dropped = states.wait_for(|catalog| files.note(catalog));
        if let Some(Err(_)) = clock::timeout(pause, dropped).await {
            return;
        }
    }
}

/// What a node remembers between two looks at its files.
#[derive(Default)]
struct Files {
    /// What the catalogue names, as far as it was looked at.
    known: BTreeSet<ComponentId>,
    /// What it named before, and names no longer.
    dropped: BTreeSet<ComponentId>,
    /// Files that it does not name, since when.
    strange: HashMap<ComponentId, Stopwatch>,
}

impl Files {
    /// Takes note of what the catalogue names; whether it has dropped anything.
    fn note(&mut self, catalog: &Catalog) -> bool {
        let now: BTreeSet<_> = catalog.components().map(|of| of.id).collect();
        let before = std::mem::replace(&mut self.known, now);
        let mut dropped = before.difference(&self.known).peekable();
        let any = dropped.peek().is_some();
        self.dropped.extend(dropped);
        any
    }

    /// Deletes what the catalogue has dropped, and what it has not named for a while.
    async fn sweep(&mut self, host: &Host) -> Result<(), HostError> {
        self.note(&host.catalog());
        if self.list(host).await?.is_empty() {
            return Ok(());
        }
        // A node that has just started, or was cut off, may not know yet what it needs.
        host.refresh().await?;
        let _nobody_stores = host.inner.storing.write().await;
        let catalog = host.catalog();
        // A group that leaves this node may still ask for its code.
        let leaves = host.hosted().keys().any(|id| catalog.group(*id).is_none());
        if leaves {
            return Ok(());
        }
        for id in self.list(host).await? {
            let since = self.strange.entry(id).or_insert_with(Stopwatch::start);
            if self.dropped.contains(&id) || since.elapsed() > GRACE {
                let (store, machines) = (host.inner.components.clone(), host.clone());
                blocking(move || {
                    store.remove(id)?;
                    machines.inner.machines.forget(id)
                })
                .await??;
                self.strange.remove(&id);
                self.dropped.remove(&id);
                tracing::info!(component = %id, "the files of a component that nothing uses are deleted");
            }
        }
        Ok(())
    }

    /// Components on this disk that the catalogue does not name.
    async fn list(&mut self, host: &Host) -> Result<BTreeSet<ComponentId>, HostError> {
        let (store, of) = (host.inner.components.clone(), host.clone());
        let mut found = blocking(move || {
            let mut found = store.ids()?;
            found.extend(of.inner.machines.cached()?);
            Ok::<_, HostError>(found)
        })
        .await??;
        let catalog = host.catalog();
        found.retain(|id| catalog.component(*id).is_none());
        self.strange.retain(|id, _| found.contains(id));
        self.dropped.retain(|id| found.contains(id));
        Ok(found)
    }
}
