//! Creating, removing and steering groups; storing components.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep::NoRoom;
use skep::clock::{self, Stopwatch};
use skep::status::GroupStatus;
use skep::trouble::Kind;
use skep_core::id::{ComponentId, GroupId, NodeId};
use skep_core::proposal::ProposalError;
use skep_machine::wasm::{ComponentError, Profile};
use skep_types::admin::{
    CreateGroup, Done, GROUPS_AT_ONCE, GroupInfo, OfGroup, OfGroupAndNode, Placed, method,
};

use super::blocking;
use super::requests::Reach;
use super::upgrades::place_of;
use super::{Host, catalog};
use crate::catalog::command::{Command, NewGroup, Reply};
use crate::catalog::{ComponentRecord, GroupRecord};
use crate::components::{StoreError, Upload};
use crate::error::HostError;

/// Members of a group for which no number is asked.
const REPLICAS: usize = 3;
/// How long the creation of a group waits for its first leader. The group exists whether or not it comes in time: its
/// members may still be fetching and compiling a large component.
const LEADER_WITHIN: Duration = Duration::from_secs(15);
/// First and longest pause between two looks for the leader. Most groups have one within some milliseconds.
const LEADER_POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How old the catalogue's word of an upload may be until the same upload is announced anew, so that it is not collected
/// before it is used: a small part of the time that is left for that.
const ANNOUNCED_AGAIN: Duration = Duration::from_secs(60);
/// Bytes that a group takes in the catalogue, about, without what its machine is created with.
const NEW_GROUP_BYTES: u64 = 1024;
/// The name of the machine that is built in.
const BUILT_IN: &str = "kv";

/// What a name may not be although the catalogue takes it: logs of old have such names, and only new ones are refused. Browsers
/// and proxies fold `.` and `..` away, and a leading `-` is a flag of a command line.
fn takes_name(name: &str) -> Result<(), HostError> {
    if matches!(name, "." | "..") || name.starts_with('-') {
        let name: String = name.chars().take(catalog::NAME_MAX).collect();
        return Err(HostError::Invalid(format!(
            "the group name `{name}` cannot be written into a path or a command line; begin it with a letter or digit"
        )));
    }
    Ok(())
}

/// Where new groups are to be.
enum Placement {
    /// On these nodes.
    Given(Vec<BTreeSet<NodeId>>),
    /// On as many nodes as that, those with the fewest replicas.
    Chosen {
        count: usize,
        replicas: Option<usize>,
    },
}

impl Placement {
    fn of(request: &CreateGroup, count: usize) -> Result<Self, HostError> {
        match (&request.members, request.replicas) {
            (Some(_), Some(_)) => Err(HostError::Invalid(
                "give either the members or the number of replicas, not both".into(),
            )),
            (Some(members), None) => Ok(Self::Given(vec![members.clone(); count])),
            (None, replicas) => Ok(Self::Chosen { count, replicas }),
        }
    }
}

fn other_answer() -> HostError {
    HostError::Internal("the catalogue answered something else than it was asked".into())
}

impl Host {
    /// Creates a group and waits, within bounds, until it has a leader.
    pub async fn create_group(&self, request: CreateGroup) -> Result<GroupInfo, HostError> {
        let placement = Placement::of(&request, 1)?;
        let mut new = self.new_group(request).await?;
        let members = self.placed(placement).await?.pop();
        new.members = members.unwrap_or_default();
        self.check_new_groups(&new, 1, new.members.contains(&self.id()))?;
        let record = self.change_group(&Command::CreateGroup(new)).await?;
        tracing::info!(group = %record.id, name = %record.name, members = ?record.members, "group created");
        self.await_leader(&record, Stopwatch::start()).await
    }

    /// Creates many groups by one change of the catalogue, and waits, within bounds, until each has a leader.
    pub async fn create_groups(
        &self,
        count: usize,
        request: CreateGroup,
    ) -> Result<Vec<GroupInfo>, HostError> {
        if !(1..=GROUPS_AT_ONCE).contains(&count) {
            return Err(HostError::Invalid(format!(
                "1 to {GROUPS_AT_ONCE} groups are created at once, not {count}"
            )));
        }
        if request.id.is_some() {
            return Err(HostError::Invalid(
                "groups that are created at once get their ids from the cluster".into(),
            ));
        }
        let placement = Placement::of(&request, count)?;
        let like = self.new_group(request).await?;
        let placed = self.placed(placement).await?;
        let hosts_here = placed.iter().any(|members| members.contains(&self.id()));
        self.check_new_groups(&like, count, hosts_here)?;
        let names = (1..).map(|number: usize| format!("{}-{number:04}", like.name));
        let each = names.zip(placed).collect();
        let ids = match self
            .change_catalog(&Command::CreateGroups { like, each })
            .await?
        {
            Reply::Created(ids) => ids,
            _ => return Err(other_answer()),
        };
        tracing::info!(groups = ids.len(), first = ?ids.first(), "groups created");
        let (watch, catalog) = (Stopwatch::start(), self.catalog());
        let mut groups = Vec::new();
        // A group that was removed again meanwhile is not waited for.
        for record in ids.iter().filter_map(|id| catalog.group(*id)) {
            groups.push(self.await_leader(record, watch).await?);
        }
        Ok(groups)
    }

    /// The group that is asked for, but for its members.
    async fn new_group(&self, request: CreateGroup) -> Result<NewGroup, HostError> {
        let name = match (request.name, request.id) {
            (Some(name), _) => name,
            (None, Some(id)) => format!("group-{id}"),
            (None, None) => {
                return Err(HostError::Invalid(
                    "a group needs a name, or at least an id".into(),
                ));
            }
        };
        takes_name(&name)?;
        self.check_profile(&request.profile)?;
        let component = self
            .component_named(request.component.as_deref().unwrap_or(BUILT_IN))
            .await?;
        Ok(NewGroup {
            id: request.id,
            name,
            component,
            members: BTreeSet::new(),
            init: request.init.unwrap_or_default().into_bytes(),
            profile: request.profile,
            quota: request.quota,
            barriers: request.barriers,
        })
    }

    /// The members of each new group.
    async fn placed(&self, placement: Placement) -> Result<Vec<BTreeSet<NodeId>>, HostError> {
        let (count, replicas) = match placement {
            Placement::Given(placed) => return Ok(placed),
            Placement::Chosen { count, replicas } => (count, replicas),
        };
        self.refresh().await?;
        let size = replicas.unwrap_or(REPLICAS);
        let placed = self
            .catalog()
            .least_loaded(size, count, &self.silent().await);
        let nodes = placed.first().map_or(0, BTreeSet::len);
        if replicas.is_some() && nodes < size {
            return Err(HostError::Invalid(format!(
                "{size} replicas need {size} nodes; the cluster has {nodes}"
            )));
        }
        Ok(placed)
    }

    /// The nodes that do not answer the leader of the catalogue; nobody where it cannot be asked.
    async fn silent(&self) -> BTreeSet<NodeId> {
        let views = self.nodes(Reach::Cluster).await.unwrap_or_default();
        let silent = views.into_iter().filter(|view| view.alive == Some(false));
        silent.map(|view| view.node.id).collect()
    }

    /// Refuses a profile that asks for more than anybody may have here.
    pub(super) fn check_profile(&self, profile: &Profile) -> Result<(), HostError> {
        match profile.above(&self.inner.config.limits.profile_ceiling()) {
            None => Ok(()),
            Some((key, value, most)) => Err(HostError::AboveCeiling { key, value, most }),
        }
    }

    /// Refuses groups that there is no room for. Only here, at the door: what is in the catalogue's log is carried out, since no two
    /// replicas of it need have the same limits. So groups that are created at the same time may each find the last room, and
    /// exceed a limit by as much as is under way.
    fn check_new_groups(
        &self,
        like: &NewGroup,
        count: usize,
        hosts_here: bool,
    ) -> Result<(), HostError> {
        let (catalog, limits) = (self.catalog(), &self.inner.config.limits);
        let (init, count) = (like.init.len() as u64, count as u64);
        for (would, most, what, key) in [
            (
                catalog.groups().len() as u64 + count,
                limits.groups as u64,
                "groups of this cluster",
                "groups",
            ),
            (
                catalog.init_bytes().saturating_add(count * init),
                limits.init_total_bytes,
                "bytes that groups were created with (`init`)",
                "init_total_bytes",
            ),
            (
                catalog
                    .bytes()
                    .saturating_add(count * (NEW_GROUP_BYTES + 2 * init)),
                limits.catalogue_bytes,
                "bytes of the catalogue",
                "catalogue_bytes",
            ),
        ] {
            NoRoom::above(would, most, what, key, "delete groups that are not needed")?;
        }
        if hosts_here {
            self.inner.room.check(0)?;
            self.machine_budget().has_room()?;
        }
        Ok(())
    }

    /// Refuses a component that is new to the cluster and that there is no room for.
    async fn check_new_component(&self, id: ComponentId, size: u64) -> Result<(), HostError> {
        let catalog = self.catalog();
        if catalog.component(id).is_some() {
            return Ok(());
        }
        let store = self.inner.components.clone();
        // Those that were stored and are not in the catalogue yet, or no longer, are on the disk.
        let here = blocking(move || store.bytes()).await??;
        Ok(NoRoom::above(
            catalog.component_bytes().max(here).saturating_add(size),
            self.inner.config.limits.components_total_bytes,
            "bytes of all components of this cluster",
            "components_total_bytes",
            "`skep component collect` removes those that nothing uses",
        )?)
    }

    /// Removes a group with all its data; its replicas go as their nodes learn of it.
    pub async fn remove_group(&self, group: &str) -> Result<GroupInfo, HostError> {
        let record = self.find(group).await?;
        let record = self
            .change_group(&Command::RemoveGroup { group: record.id })
            .await?;
        tracing::info!(group = %record.id, name = %record.name, "group removed");
        Ok(record.info())
    }

    /// The status of this node's replica, or of a member's if there is none here.
    pub async fn group_status(&self, group: &str, reach: Reach) -> Result<GroupStatus, HostError> {
        let id = if group == "0" {
            catalog::GROUP
        } else {
            self.find(group).await?.id
        };
        let here = async || {
            let mut status = self.inner.node.status(id).await?;
            let trouble = status.trouble.take();
            status.trouble = trouble.map(|trouble| self.judged(id, trouble));
            Ok(status)
        };
        let asked = OfGroup::from(id);
        self.administered(id, reach, method::GROUP_STATUS, &asked, here)
            .await
    }

    /// Makes a replica stand for election: this node's, or a member's if there is none here.
    pub async fn campaign(&self, group: &str, reach: Reach) -> Result<Done, HostError> {
        let id = self.find(group).await?.id;
        let here = async || self.inner.node.campaign(id).await.map(|()| Done::DONE);
        let asked = OfGroup::from(id);
        self.administered(id, reach, method::GROUP_CAMPAIGN, &asked, here)
            .await
    }

    /// Asks the leader to hand over to another member.
    pub async fn transfer_leader(
        &self,
        group: &str,
        to: NodeId,
        reach: Reach,
    ) -> Result<Done, HostError> {
        let record = self.find(group).await?;
        let id = record.id;
        if !record.members.contains(&to) {
            return Err(HostError::Invalid(format!(
                "node {to} is not a member of group {id}; see `skep member list {id}`"
            )));
        }
        let leader = self
            .group_status(&id.to_string(), reach)
            .await?
            .replica
            .leader;
        let Some(leader) = leader else {
            let source = ProposalError::NoLeader;
            return Err(skep::Error::Proposal { group: id, source }.into());
        };
        if leader != self.id() && reach == Reach::Cluster {
            let node = self.node_record(leader)?;
            let asked = OfGroupAndNode::new(id, to);
            return self.ask(&node, method::GROUP_TRANSFER, &asked).await;
        }
        self.inner.node.transfer_leader(id, to).await?;
        self.await_transfer(id, to).await
    }

    /// Waits until the member leads. Raft gives a transfer up after an election timeout.
    async fn await_transfer(&self, group: GroupId, to: NodeId) -> Result<Done, HostError> {
        let (watch, config) = (Stopwatch::start(), &self.inner.config);
        let within = config.tick() * 2 * config.raft.election_ticks;
        for looks in 1.. {
            if self.inner.node.leader(group)? == Some(to) {
                return Ok(Done::DONE);
            }
            if watch.elapsed() > within {
                break;
            }
            clock::sleep(clock::doubled(LEADER_POLL, looks)).await;
        }
        Err(HostError::NotTransferred { group, to })
    }

    /// Makes every replica of the group take a snapshot at one index, now.
    pub async fn snapshot(&self, group: &str, reach: Reach) -> Result<Placed, HostError> {
        let id = self.find(group).await?.id;
        let here = async || self.inner.node.snapshot(id).await.map(place_of);
        let asked = OfGroup::from(id);
        self.administered(id, reach, method::GROUP_SNAPSHOT, &asked, here)
            .await
    }

    /// Checks, stores and announces a component. It is compiled here first, so that what cannot be a machine is
    /// refused before any node depends on it.
    pub async fn put_component(
        &self,
        expected: Option<ComponentId>,
        bytes: Bytes,
    ) -> Result<ComponentRecord, HostError> {
        let (size, limit) = (bytes.len() as u64, self.inner.config.limits.component_bytes);
        if size > limit {
            return Err(HostError::TooLarge { size, limit });
        }
        let of = bytes.clone();
        let id = blocking(move || ComponentId::of(&of)).await?;
        if let Some(expected) = expected.filter(|expected| *expected != id) {
            return Err(StoreError::Digest {
                expected,
                actual: id,
            }
            .into());
        }
        self.check_new_component(id, size).await?;
        let component = self.inner.machines.component(id, bytes.clone()).await?;
        let memories = component.inspection().memories;
        let limit = self.inner.config.limits.component_memories;
        // What the cluster has already, it keeps.
        if memories > limit && self.catalog().component(id).is_none() {
            return Err(ComponentError::TooManyMemories { memories, limit }.into());
        }
        let name = component.descriptor().name.clone();
        let record = ComponentRecord {
            id,
            size,
            name,
            uploaded: clock::now(),
        };
        let _not_collected = self.inner.storing.read().await;
        // Others may have been stored while it was compiled.
        let _one_at_a_time = self.inner.announcing.lock().await;
        self.check_new_component(id, size).await?;
        let store = self.inner.components.clone();
        blocking(move || store.put(id, &bytes)).await??;
        let again = ANNOUNCED_AGAIN.as_nanos() as u64;
        let known = self.catalog().component(id).cloned();
        if known.is_none_or(|known| known.uploaded.saturating_add(again) < record.uploaded) {
            self.change_catalog(&Command::PutComponent(record.clone()))
                .await?;
        }
        Ok(record)
    }

    /// Takes one piece of a component in; the last one announces it. Returns how many bytes have arrived.
    pub async fn write_component(&self, piece: Upload) -> Result<u64, HostError> {
        let limit = self.inner.config.limits.component_bytes;
        let size = piece
            .total
            .max(piece.offset.saturating_add(piece.data.len() as u64));
        if size > limit {
            return Err(HostError::TooLarge { size, limit });
        }
        self.check_new_component(piece.id, piece.total).await?;
        let (store, id) = (self.inner.components.clone(), piece.id);
        let (received, whole) = blocking(move || store.write(&piece)).await??;
        if let Some(bytes) = whole {
            self.put_component(Some(id), bytes).await?;
        }
        Ok(received)
    }

    /// The bytes of a component, if this node has it.
    pub async fn component(&self, id: ComponentId) -> Result<Bytes, HostError> {
        let store = self.inner.components.clone();
        blocking(move || store.read(id))
            .await??
            .ok_or(HostError::UnknownComponent(id))
    }

    /// Part of a component, and the size of the whole.
    pub async fn component_range(
        &self,
        id: ComponentId,
        offset: u64,
        length: u64,
    ) -> Result<(Bytes, u64), HostError> {
        let store = self.inner.components.clone();
        blocking(move || store.read_range(id, offset, length))
            .await??
            .ok_or(HostError::UnknownComponent(id))
    }

    pub(super) async fn component_named(&self, name: &str) -> Result<ComponentId, HostError> {
        if name == BUILT_IN {
            return Ok(self
                .put_component(None, Bytes::from_static(skep_examples::KV))
                .await?
                .id);
        }
        let wrong = |error: skep_core::id::NotAComponentId| {
            HostError::Invalid(format!(
                "{error}; or use `{BUILT_IN}`, the machine that is built in"
            ))
        };
        name.parse().map_err(wrong)
    }

    pub(super) async fn change_group(
        &self,
        command: &Command,
    ) -> Result<Arc<GroupRecord>, HostError> {
        match self.change_catalog(command).await? {
            Reply::Group(record) => Ok(record),
            _ => Err(other_answer()),
        }
    }

    /// Waits until a group serves, until so long after the time of creation.
    async fn await_leader(
        &self,
        record: &GroupRecord,
        since: Stopwatch,
    ) -> Result<GroupInfo, HostError> {
        let id = record.id.to_string();
        let mut info = record.info();
        for looks in 1.. {
            match self.group_status(&id, Reach::Cluster).await {
                Ok(GroupStatus {
                    trouble: Some(trouble),
                    ..
                }) if trouble.kind.waits_for_somebody() || trouble.kind == Kind::Faulted => {
                    info.problem = Some(trouble.to_string());
                    return Ok(info);
                }
                // `init` runs with the leader's own first entry, behind one for each founder and the empty one of its
                // term: only then is it known whether the machine takes its configuration.
                Ok(status)
                    if status.replica.leader.is_some()
                        && status.replica.applied.0 > record.founders.len() as u64 + 1 =>
                {
                    info.leader = status.replica.leader;
                    info.term = Some(status.replica.term);
                    info.problem = None;
                    return Ok(info);
                }
                Ok(status) => {
                    info.problem = status
                        .halted
                        .or_else(|| Some("no leader is elected yet".to_owned()))
                }
                Err(error) => info.problem = Some(error.chain()),
            }
            if since.elapsed() > LEADER_WITHIN {
                break;
            }
            clock::sleep(clock::doubled(LEADER_POLL, looks)).await;
        }
        Ok(info)
    }
}
