//! What a group runs, exchanged while it serves; and what an operator decides of a group that has stopped.
//!
//! An upgrade goes in four steps. Every member fetches and compiles the component, and says so: nothing is proposed that a
//! member would have to wait for. The node that is asked tries the new machine on the group's snapshot, beside the group, if
//! it hosts a replica: what does not take the state costs the group nothing. The group's own log activates it, at one index
//! on every replica, if the new machine takes the state; otherwise everybody goes on with the old one. Then the catalogue is told, for whoever looks and for members that
//! join later. The log alone decides what a replica runs, so nothing is lost between the last two.

use std::sync::Arc;
use std::time::Duration;

use skep::clock::{self, Stopwatch};
use skep::status::{Rehearsal, Verdict};
use skep::{Extent, Rehearsable};
use skep_core::id::{ComponentId, GroupId, LogIndex, NodeId};
use skep_core::outcome::Outcome;
use skep_core::proposal::Response;
use skep_machine::state_machine::Descriptor;
use skep_types::admin::{
    OfGroup, OfGroupAndNode, Placed, Prepare, Prepared, Rehearsed, Upgrade, Upgraded, method,
};

use super::Host;
use super::machines::component;
use super::requests::Reach;
use crate::catalog::command::Command;
use crate::catalog::{Deployed, GroupRecord, NodeRecord};
use crate::error::HostError;

/// How long a member may take to fetch and compile a component; the largest take a minute on one core.
const PREPARED_WITHIN: Duration = Duration::from_secs(300);
/// How long one question for it waits. Less than any timeout between nodes.
const PREPARE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a snapshot that a rehearsal begins with may take to be there, and how often it is looked for.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(5);
const SNAPSHOT_POLL: Duration = Duration::from_millis(20);

impl Host {
    /// Exchanges the component, the profile or the quota of a group.
    pub async fn upgrade_group(&self, request: Upgrade) -> Result<Upgraded, HostError> {
        let record = self.find(&request.group).await?;
        let deployed = self.wanted(&record, request).await?;
        let component = deployed.component;
        self.deploying(&record, component).await?;
        let descriptor = self.prepare_members(&record, component).await?;
        self.must_take(&record, &deployed).await?;
        let activate = Activate {
            group: record.id.to_string(),
            deployed: deployed.clone(),
        };
        let placed = self.activate(&activate, Reach::Cluster).await?;
        let index = placed.index;
        self.deployed(&record, index, &deployed).await?;
        tracing::info!(group = %record.id, name = %record.name, %component, %index, "group upgraded");
        Ok(Upgraded {
            group: record.id,
            component,
            machine: descriptor,
            index: placed.index,
            term: placed.term,
        })
    }

    /// Makes the catalogue keep the component for as long as the group's log may name it.
    async fn deploying(
        &self,
        record: &GroupRecord,
        component: ComponentId,
    ) -> Result<(), HostError> {
        if record.uses(component) {
            return Ok(());
        }
        let command = Command::Deploying {
            group: record.id,
            incarnation: record.incarnation,
            component,
        };
        self.change_catalog(&command).await.map(drop)
    }

    /// Tries an upgrade beside the group, on this node, and changes nothing. Takes a snapshot of the group first if none is at
    /// hand.
    pub async fn rehearse_upgrade(&self, request: Upgrade) -> Result<Rehearsed, HostError> {
        let record = self.find(&request.group).await?;
        self.here_or_elsewhere(record.id).await?;
        let deployed = self.wanted(&record, request).await?;
        let (machine, rehearsal) = self
            .rehearse(&record, &deployed, Extent::Replay)
            .await?
            .ok_or_else(|| HostError::NotRehearsed(record.id))?;
        Ok(Rehearsed {
            group: record.id,
            node: self.id(),
            component: deployed.component,
            machine,
            rehearsal,
        })
    }

    async fn wanted(&self, record: &GroupRecord, request: Upgrade) -> Result<Deployed, HostError> {
        // What the group has already, it keeps.
        if let Some(profile) = request
            .profile
            .as_ref()
            .filter(|new| **new != record.profile)
        {
            self.check_profile(profile)?;
        }
        let component = match &request.component {
            Some(name) => self.component_named(name).await?,
            None => record.component,
        };
        Ok(Deployed {
            component,
            profile: request.profile.unwrap_or_else(|| record.profile.clone()),
            quota: request.quota.of(record.quota),
            barriers: request.barriers.unwrap_or(record.barriers),
        })
    }

    /// Makes sure that the new machine takes the state, as far as this node can tell before it is proposed.
    async fn must_take(&self, record: &GroupRecord, deployed: &Deployed) -> Result<(), HostError> {
        let current = record.current();
        let same = deployed.component == current.component && deployed.profile == current.profile;
        if same || self.place(record.id, Reach::Cluster).await?.is_some() {
            return Ok(());
        }
        let Some((_, rehearsal)) = self.rehearse(record, deployed, Extent::State).await? else {
            // What runs cannot save itself, which the log finds out at once.
            return Ok(());
        };
        match rehearsal.verdict {
            Verdict::Takes | Verdict::Differs => Ok(()),
            Verdict::Refuses { call, fault, .. } => Err(HostError::NotUpgraded(format!(
                "the new machine failed in {call} when node {} tried it: {fault}. Nothing was proposed",
                self.id()
            ))),
        }
    }

    /// Tries a machine on what the group did last here; none if there is no snapshot to begin with, and the group cannot take
    /// one.
    async fn rehearse(
        &self,
        record: &GroupRecord,
        deployed: &Deployed,
        extent: Extent,
    ) -> Result<Option<(Descriptor, Rehearsal)>, HostError> {
        let bytes = component(self, deployed.component).await?;
        let machines = &self.inner.machines;
        let component = machines.component(deployed.component, bytes).await?;
        let Some(past) = self.rehearsable(record.id).await? else {
            return Ok(None);
        };
        let descriptor = component.descriptor().clone();
        let rehearsal = machines
            .rehearse(record, &deployed.profile, component, past, extent)
            .await?;
        Ok(Some((descriptor, rehearsal)))
    }

    async fn rehearsable(&self, id: GroupId) -> Result<Option<Rehearsable>, HostError> {
        let node = &self.inner.node;
        if let Some(past) = node.rehearsable(id).await? {
            return Ok(Some(past));
        }
        if !matches!(node.snapshot(id).await?.outcome, Outcome::Reply(_)) {
            return Ok(None);
        }
        // Another replica may have answered, and this one come to that entry a little later.
        let watch = Stopwatch::start();
        while watch.elapsed() < SNAPSHOT_WITHIN {
            if let Some(past) = node.rehearsable(id).await? {
                return Ok(Some(past));
            }
            clock::sleep(SNAPSHOT_POLL).await;
        }
        Ok(None)
    }

    /// Asks every member to fetch and compile a component, until all have; what it says of itself.
    async fn prepare_members(
        &self,
        record: &GroupRecord,
        component: ComponentId,
    ) -> Result<Descriptor, HostError> {
        let asked = Prepare { component };
        let watch = Stopwatch::start();
        let mut descriptor = Descriptor::default();
        for member in &record.members {
            loop {
                let prepared = if *member == self.id() {
                    self.prepare_component(&asked).await?
                } else {
                    let node = self.node_record(*member)?;
                    self.ask(&node, method::COMPONENT_PREPARE, &asked)
                        .await
                        .map_err(|error| not_prepared(*member, &error))?
                };
                if let Some(machine) = prepared.machine {
                    descriptor = machine;
                    break;
                }
                if watch.elapsed() > PREPARED_WITHIN {
                    return Err(HostError::Invalid(format!(
                        "node {member} has not compiled component {component} within {} s; nothing was changed, try again",
                        PREPARED_WITHIN.as_secs()
                    )));
                }
            }
        }
        Ok(descriptor)
    }

    /// Fetches and compiles a component, and starts it once in a scratch instance. Answers after a while in any case.
    pub async fn prepare_component(&self, asked: &Prepare) -> Result<Prepared, HostError> {
        let (host, id) = (self.clone(), asked.component);
        // Goes on although nobody waits; asked again, it is found compiled.
        let preparing = tokio::spawn(async move {
            let bytes = component(&host, id).await?;
            let component = host.inner.machines.component(id, bytes).await?;
            Ok::<_, HostError>(component.descriptor().clone())
        });
        tokio::select! {
            prepared = preparing => match prepared {
                Ok(descriptor) => Ok(Prepared { machine: Some(descriptor?) }),
                Err(error) => Err(HostError::Internal(error.to_string())),
            },
            () = clock::sleep(PREPARE_PATIENCE) => Ok(Prepared { machine: None }),
        }
    }

    /// Puts an activation into the group's log, by a node that hosts a replica.
    pub async fn activate(&self, asked: &Activate, reach: Reach) -> Result<Placed, HostError> {
        let record = self.find(&asked.group).await?;
        self.must_be_known(&record, asked.deployed.component)
            .await?;
        let id = record.id;
        let here = async || {
            let activated = self.inner.node.activate(id, asked.deployed.deployment());
            activated.await.map(placed)
        };
        let there = |member: Arc<NodeRecord>| async move {
            self.ask(&member, method::GROUP_ACTIVATE, asked)
                .await
                .map(Ok)
        };
        let activated = self.served(id, reach, here, there).await?;
        activated.map_err(HostError::NotUpgraded)
    }

    /// Makes sure that the catalogue keeps the component for the group: nobody could fetch what no catalogue ever named.
    async fn must_be_known(
        &self,
        record: &GroupRecord,
        component: ComponentId,
    ) -> Result<(), HostError> {
        if record.uses(component) {
            return Ok(());
        }
        // Another node may have announced it a moment ago.
        self.refresh().await?;
        let catalog = self.catalog();
        match catalog.group(record.id) {
            Some(record) if record.uses(component) => Ok(()),
            _ => Err(HostError::UnknownComponent(component)),
        }
    }

    /// Gives up an upgrade that the group's replicas wait for; they go on with what they ran.
    pub async fn abort_upgrade(&self, group: &str, reach: Reach) -> Result<Placed, HostError> {
        let id = self.find(group).await?.id;
        let asked = &OfGroup::from(id);
        let here = async || self.inner.node.abort_activation(id).await.map(placed);
        let there = |member: Arc<NodeRecord>| async move {
            self.ask(&member, method::GROUP_ABORT_UPGRADE, asked)
                .await
                .map(Ok)
        };
        let aborted = self.served(id, reach, here, there).await?;
        aborted.map_err(HostError::NotAborted)
    }

    /// Lets a paused group take commands again.
    pub async fn resume(&self, group: &str, reach: Reach) -> Result<Placed, HostError> {
        let id = self.find(group).await?.id;
        let here = async || self.inner.node.resume(id).await.map(place_of);
        let asked = OfGroup::from(id);
        self.administered(id, reach, method::GROUP_RESUME, &asked, here)
            .await
    }

    /// Decides for a suspended group that the replica of `node` is right.
    pub async fn trust(
        &self,
        group: &str,
        node: NodeId,
        reach: Reach,
    ) -> Result<Placed, HostError> {
        let id = self.find(group).await?.id;
        let here = async || self.inner.node.trust(id, node).await.map(place_of);
        let asked = OfGroupAndNode::new(id, node);
        self.administered(id, reach, method::GROUP_TRUST, &asked, here)
            .await
    }

    /// Tells the catalogue what the group runs since an index of its log.
    pub(super) async fn deployed(
        &self,
        record: &GroupRecord,
        index: LogIndex,
        deployed: &Deployed,
    ) -> Result<(), HostError> {
        let command = Command::Deployed {
            group: record.id,
            incarnation: record.incarnation,
            index,
            deployed: deployed.clone(),
        };
        self.change_group(&command).await.map(drop)
    }
}

/// Asks a member to put an activation into the group's log.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// The group's name, or its id in digits.
    pub group: String,
    /// What it is to run.
    pub deployed: Deployed,
}

pub(super) fn place_of(response: Response) -> Placed {
    Placed {
        index: response.index,
        term: response.term,
    }
}

/// Where an activation stands in the log; or why every replica goes on with what it ran.
fn placed(response: Response) -> Result<Placed, String> {
    match response.outcome {
        Outcome::Reply(_) => Ok(place_of(response)),
        Outcome::Rejected { message, .. } | Outcome::Refused { message, .. } => Err(message),
        Outcome::Fault(fault) => Err(fault.to_string()),
    }
}

fn not_prepared(node: NodeId, error: &HostError) -> HostError {
    HostError::Invalid(format!(
        "node {node} cannot prepare the component, so nothing was changed: {}",
        error.chain()
    ))
}
