//! Machines of groups, and where this node has their components from.

use std::sync::Arc;

use bytes::Bytes;
use skep::MachineFactory;
use skep_core::deployment::Deployment;
use skep_core::id::{ComponentId, LogIndex};
use skep_machine::state_machine::{MachineError, StateMachine};
use skep_machine::wasm::Purpose;
use tokio::runtime::Handle;

use super::{Host, blocking};
use crate::catalog::{Deployed, GroupRecord};
use crate::components::{ComponentStore, StoreError};
use crate::error::HostError;

/// The machine of a group as it is before the first entry.
pub(super) async fn machine(
    host: &Host,
    record: &GroupRecord,
    deployed: &Deployed,
    purpose: Purpose,
) -> Result<Box<dyn StateMachine>, HostError> {
    let bytes = component(host, deployed.component).await?;
    let machines = &host.inner.machines;
    let component = machines
        .component_for(deployed.component, bytes, purpose)
        .await?;
    machines
        .start(record, &deployed.profile, component, purpose)
        .await
}

/// The bytes of a component: from this disk, or from any other node.
pub(super) async fn component(host: &Host, id: ComponentId) -> Result<Bytes, HostError> {
    let store = host.inner.components.clone();
    if let Some(bytes) = blocking(move || store.read(id)).await?? {
        return Ok(bytes);
    }
    let limit = host.inner.config.limits.component_bytes;
    let catalog = host.catalog();
    let mut failure = HostError::UnknownComponent(id);
    for node in catalog.nodes().filter(|node| node.id != host.id()) {
        match host.inner.peers.component(node, id, limit).await {
            Ok(bytes) => {
                let (store, whole) = (host.inner.components.clone(), bytes.clone());
                blocking(move || keep(&store, id, &whole)).await??;
                tracing::info!(component = %id, from = %node.id, bytes = bytes.len(), "component fetched");
                return Ok(bytes);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Keeps a component that was fetched, if the disk has room for it. What needs it was decided long ago, and goes on without.
fn keep(store: &ComponentStore, id: ComponentId, bytes: &[u8]) -> Result<(), StoreError> {
    match store.put(id, bytes) {
        Err(StoreError::NoRoom(short)) => {
            tracing::warn!(component = %id, %short, "a component is used and not kept; it is fetched again when it is needed again");
            Ok(())
        }
        kept => kept,
    }
}

/// Makes the machines of one group of this node.
pub(super) struct GroupMachines {
    pub(super) host: Host,
    pub(super) record: Arc<GroupRecord>,
    pub(super) runtime: Handle,
}

impl GroupMachines {
    fn start(
        &self,
        deployment: &Deployment,
        purpose: Purpose,
    ) -> Result<Box<dyn StateMachine>, MachineError> {
        let local = MachineError::missing;
        let deployed = Deployed::of(deployment)
            .map_err(|error| local(format!("the log holds a profile that is none: {error}")))?;
        let make = machine(&self.host, &self.record, &deployed, purpose);
        match self.runtime.block_on(make) {
            Ok(machine) => Ok(machine),
            // What the component itself is to blame for is the same on every node.
            Err(HostError::Machine(error @ MachineError::Guest { .. })) => Err(error),
            Err(error) => Err(local(error.chain())),
        }
    }
}

impl MachineFactory for GroupMachines {
    fn make(&self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, MachineError> {
        self.start(deployment, Purpose::New)
    }

    fn make_again(&self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, MachineError> {
        self.start(deployment, Purpose::Running)
    }

    fn activated(&self, index: LogIndex, deployment: &Deployment) {
        let (host, record) = (self.host.clone(), Arc::clone(&self.record));
        let Ok(deployed) = Deployed::of(deployment) else {
            return;
        };
        let supervisor = self.host.inner.supervisor.clone();
        let telling = async move {
            let known = host.catalog().group(record.id).is_none_or(|known| {
                known.incarnation != record.incarnation || known.deployed_at >= index
            });
            // Whoever asked for the upgrade says so too, unless it is gone.
            if !known && let Err(error) = host.deployed(&record, index, &deployed).await {
                tracing::warn!(group = %record.id, error = %error.chain(), "the catalogue is not told of an upgrade yet");
            }
        };
        self.runtime
            .spawn(async move { supervisor.once("upgrade-report", telling).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::DiskRoom;

    #[test]
    fn a_component_that_the_disk_has_no_room_for_is_used_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let room = Arc::new(DiskRoom::open(dir.path(), u64::MAX).unwrap());
        let store = ComponentStore::open(dir.path().join("components")).unwrap();
        let store = store.bounded(u64::MAX, room);
        let id = ComponentId::of(b"machine");
        keep(&store, id, b"machine").unwrap();
        assert!(store.read(id).unwrap().is_none(), "the disk is full");
        let damaged = keep(&store, id, b"another").unwrap_err();
        assert!(matches!(damaged, StoreError::Digest { .. }), "{damaged}");
    }
}
