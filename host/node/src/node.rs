//! The inside of a node: what is started with it, brings groups up, and is stopped with it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use skep_core::group::Group;
use skep_core::id::{GroupId, LogIndex, NodeId};
use skep_log::Vfs;
use skep_types::shared::lock;
use tokio::sync::{oneshot, watch};

use crate::disk::store::{Disk, DiskConfig, no_thread};
use crate::error::Error;
use crate::group_config::GroupConfig;
use crate::machines::worker::{Owner, Worker};
use crate::node_config::{Config, SHARDS_MAX};
use crate::panics::panic_text;
use crate::pool::Pool;
use crate::shards::mailbox::Request;
use crate::shards::replica::Replica;
use crate::shards::route::Route;
use crate::shards::router::{Reservation, Router};
use crate::shards::shard::Shard;
use crate::ticker::Ticking;
use crate::transport::{Inbound, Transport};
use skep_store::Begin;
use skep_store::convert;

/// How long a stopping node waits for machines in the middle of a call. A sandboxed machine runs out of fuel long
/// before; a native one that is stuck is left behind, and the data directory stays locked until the process ends.
const STOP_MACHINES: Duration = Duration::from_secs(10);

/// The inside of a node; stops when it is dropped.
pub(crate) struct Node {
    pub(crate) name: String,
    seed: u64,
    cluster: String,
    vfs: Arc<dyn Vfs>,
    pub(crate) router: Arc<Router>,
    pool: Arc<Pool>,
    pub(crate) disk: Arc<Disk>,
    running: Mutex<Option<Running>>,
    pub(crate) stopped: watch::Sender<bool>,
}

/// What stops with the node.
struct Running {
    ticking: Ticking,
    shards: Vec<JoinHandle<()>>,
    /// Logs of groups with a directory of their own.
    disks: Arc<Mutex<HashMap<PathBuf, Arc<Disk>>>>,
}

impl Node {
    /// See [`MultiNode::start`](crate::MultiNode::start).
    pub(crate) async fn start(
        config: Config,
        send: impl FnOnce(Arc<dyn Inbound>) -> io::Result<Arc<dyn Transport>>,
    ) -> Result<Arc<Self>, Error> {
        config.validate()?;
        let Config {
            id,
            name,
            cluster,
            data_dir,
            fsync_delay,
            ticker,
            shards,
            seed,
            store,
            vfs,
            disk_reserve,
            supervisor,
        } = config;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let shards = if shards == 0 {
            cores.min(SHARDS_MAX)
        } else {
            shards
        };
        let seed = match seed {
            Some(seed) => seed,
            None => random_seed()?,
        };
        let router = Arc::new(Router::new(id, shards));
        let pool = Arc::new(Pool::start(cores).map_err(no_thread("a machine's thread"))?);
        let opened = {
            let (router, vfs, cluster) = (Arc::clone(&router), Arc::clone(&vfs), cluster.clone());
            blocking(id, move || {
                let config = DiskConfig {
                    vfs,
                    dir: &data_dir,
                    cluster: &cluster,
                    node: id,
                    sync_delay: fsync_delay,
                    store,
                    reserve: disk_reserve,
                };
                Disk::open(config, &router)
            })
        };
        let disk = opened.await?;
        // From here on dropping `node` ends what was started.
        let node = Arc::new(Self {
            name,
            seed,
            cluster,
            vfs,
            router: Arc::clone(&router),
            pool: Arc::clone(&pool),
            disk,
            running: Mutex::new(None),
            stopped: watch::Sender::new(false),
        });
        let inbound = Arc::clone(&router) as Arc<dyn Inbound>;
        let transport = send(inbound).map_err(no_thread("the transport"))?;
        let ticking =
            Ticking::start(ticker, &router, supervisor).map_err(no_thread("the ticker"))?;
        let mut running = Running {
            ticking,
            shards: Vec::new(),
            disks: Arc::default(),
        };
        for index in 0..shards {
            let shard = Shard::spawn(
                index,
                Arc::clone(&router),
                Arc::clone(&transport),
                Arc::clone(&pool),
            );
            running.shards.push(shard.map_err(no_thread("a shard"))?);
        }
        *lock(&node.running) = Some(running);
        Ok(node)
    }

    /// Why an answer did not come.
    pub(crate) fn why_stopped(&self) -> Error {
        self.router.running().err().unwrap_or(Error::Stopped {
            node: self.router.node,
        })
    }

    /// Brings up a replica; may read a snapshot and open a log.
    pub(crate) fn bring_up(
        &self,
        config: GroupConfig,
        reservation: Reservation,
    ) -> Result<(), Error> {
        let life = self.router.next_life();
        // Each start of a replica draws anew, so that answers to the former one are not taken for its own.
        let seed = self.seed ^ life.0.rotate_right(16);
        let mut core = config.to_core(self.router.node, seed)?;
        let key = convert::key(config.id, config.incarnation);
        let disk = self.disk_of(&config)?;
        let Begin {
            recovered,
            untried_from,
            removed_through,
            former,
        } = disk.begin(key, config.members.is_empty())?;
        core.removed_through = removed_through;
        for former in former {
            let done = move |result| {
                if let Err::<(), Error>(error) = result {
                    let group = GroupId(former.group);
                    tracing::warn!(%group, %error, "snapshots of a former life of a group are not deleted; tried again at the next start");
                }
            };
            disk.bury_dormant(former, &self.pool, done)
                .map_err(|_| self.why_stopped())?;
        }
        let snapshot = recovered
            .as_ref()
            .and_then(|group| group.snapshot.as_ref())
            .map(convert::name);
        let (mut group, index) = match (recovered, snapshot) {
            (None, _) => (Group::create(core)?, LogIndex(0)),
            (Some(recovered), None) => (
                Group::recover(core, convert::recovered(recovered, None)?)?,
                LogIndex(0),
            ),
            (Some(recovered), Some(name)) => match disk.open_snapshot(key, &name) {
                Ok(file) => {
                    let state = Some(file.meta().state.clone());
                    let recovered = convert::recovered(recovered, state)?;
                    (Group::recover(core, recovered)?, name.index)
                }
                Err(error) if error.is_lost_snapshot() => {
                    tracing::error!(group = config.id.0, name = config.name, %error, "the snapshot of a group cannot be read");
                    let recovered = convert::recovered(recovered, None)?;
                    let group = Group::recover_without_snapshot(core, recovered, name)?;
                    // So that the same one is taken when it is offered.
                    (group, LogIndex(0))
                }
                Err(error) => return Err(error.into()),
            },
        };
        if let Some(from) = untried_from {
            group.has_not_tried(from);
        }
        let GroupConfig {
            machine,
            name,
            component,
            exchange,
            ..
        } = config;
        let members = group
            .status()
            .members
            .iter()
            .map(|member| member.node)
            .collect();
        let owner = Owner {
            key,
            name,
            life,
            component,
            memory: Arc::default(),
        };
        let route = Arc::new(Route::new(
            &self.router,
            &owner,
            Arc::clone(&disk),
            index,
            members,
        ));
        let worker = Worker::new(
            owner,
            machine,
            exchange,
            Arc::clone(&disk),
            Arc::clone(&self.router),
            Arc::clone(&self.pool),
        );
        let replica = Replica::new(
            key,
            life,
            group,
            Arc::clone(&route),
            worker,
            Arc::clone(&disk),
        );
        self.router
            .request(route.shard, Request::Install(Box::new(replica)))?;
        disk.began(key);
        // Only now, so that no request can come before the replica.
        reservation.fill(route);
        Ok(())
    }

    /// The log of a group: the node's, or its own, which is opened when its first group comes up.
    fn disk_of(&self, config: &GroupConfig) -> Result<Arc<Disk>, Error> {
        let Some(dir) = &config.data_dir else {
            return Ok(Arc::clone(&self.disk));
        };
        let disks = match lock(&self.running).as_ref() {
            Some(running) => Arc::clone(&running.disks),
            None => return Err(self.why_stopped()),
        };
        // Locked while a log is opened, so that two groups never open the same one.
        let mut disks = lock(&disks);
        if let Some(disk) = disks.get(dir) {
            return Ok(Arc::clone(disk));
        }
        let config = DiskConfig {
            vfs: Arc::clone(&self.vfs),
            dir,
            cluster: &self.cluster,
            node: self.router.node,
            sync_delay: config.fsync_delay,
            store: None,
            reserve: 0,
        };
        let disk = Disk::open(config, &self.router)?;
        disks.insert(dir.clone(), Arc::clone(&disk));
        Ok(disk)
    }

    /// Removes what is on disk of a group that was not brought up.
    pub(crate) async fn remove_dormant(&self, group: GroupId) -> Result<(), Error> {
        let keys = self.disk.dormant(group);
        if keys.is_empty() {
            return Err(Error::NoSuchGroup {
                group,
                node: self.router.node,
            });
        }
        // Nobody brings the group up meanwhile.
        let _reservation = self.router.reserve(group)?;
        for key in keys {
            let (done, removed) = oneshot::channel();
            self.disk
                .bury_dormant(key, &self.pool, move |result| drop(done.send(result)))
                .map_err(|_| self.why_stopped())?;
            removed.await.map_err(|_| self.why_stopped())??;
        }
        Ok(())
    }

    /// Starts to stop, on a thread of its own: so it goes on if the caller is dropped, and needs no runtime.
    pub(crate) fn begin_stop(&self) {
        if !self.router.begin_stop() {
            return;
        }
        let stopping = Stopping {
            running: lock(&self.running).take(),
            router: Arc::clone(&self.router),
            pool: Arc::clone(&self.pool),
            disk: Arc::clone(&self.disk),
            stopped: self.stopped.clone(),
        };
        let stopping = Arc::new(Mutex::new(Some(stopping)));
        let theirs = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name("skep-stop".into())
            .spawn(move || stop(&theirs));
        if thread.is_err() {
            stop(&stopping);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// What is left to be ended.
struct Stopping {
    running: Option<Running>,
    router: Arc<Router>,
    pool: Arc<Pool>,
    disk: Arc<Disk>,
    stopped: watch::Sender<bool>,
}

fn stop(stopping: &Mutex<Option<Stopping>>) {
    let stopping = lock(stopping).take();
    let Some(Stopping {
        running,
        router,
        pool,
        disk,
        stopped,
    }) = stopping
    else {
        return;
    };
    let node = router.node.0;
    router.close();
    let mut disks = vec![disk];
    if let Some(Running {
        ticking,
        shards,
        disks: own,
    }) = running
    {
        drop(ticking);
        for shard in shards {
            if shard.join().is_err() {
                tracing::error!(node, "a shard panicked while the node stopped");
            }
        }
        disks.extend(lock(&own).drain().map(|(_, disk)| disk));
    }
    let stuck = pool.stop(STOP_MACHINES);
    if stuck > 0 {
        tracing::error!(
            node,
            stuck,
            "machines do not return; their threads are left behind and the data directory stays locked"
        );
    }
    for disk in disks {
        disk.stop(stuck == 0);
    }
    router.clear();
    stopped.send_replace(true);
}

/// Runs something that may block, outside the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    node: NodeId,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // A panic in there is a bug of a machine's `describe` or of the host; the runtime may also be going away.
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let reason = panic_text(&*panic).to_owned();
            Err(Error::Panicked { node, reason })
        }
        Err(_) => Err(Error::Stopped { node }),
    }
}

fn random_seed() -> Result<u64, Error> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| Error::Start {
        what: "the node",
        source: io::Error::other(error.to_string()),
    })?;
    Ok(u64::from_le_bytes(seed))
}

#[cfg(test)]
mod tests {
    use skep_types::code::Code;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_defect_and_no_wrong_configuration() {
        let error = blocking::<()>(NodeId(1), || panic!("on purpose"))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::Internal);
        assert!(error.to_string().contains("on purpose"), "{error}");
    }
}
