//! Writes the data set, with many requests in flight in every group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use hdrhistogram::Histogram;
use skep::clock::Stopwatch;
use skep::{GroupId, Outcome};
use skep_client::Client;
use skep_types::admin::GroupInfo;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::dataset::Item;
use super::report::{Progress, micros};

/// Loads in the background until [`finish`](Self::finish).
pub struct Loader {
    tasks: JoinSet<anyhow::Result<Loaded>>,
    done: watch::Receiver<usize>,
    started: Stopwatch,
    killed: Arc<Vec<(GroupId, AtomicBool)>>,
    loaded: Loaded,
}

/// What loading was like.
pub struct Loaded {
    latencies: Histogram<u64>,
    /// Longest time without an acknowledgement in a group whose leader was killed.
    gap: Duration,
    elapsed: Duration,
    keys: usize,
}

impl Loader {
    /// Begins; each group has a session of its own.
    pub fn start(
        client: Client,
        groups: &[GroupInfo],
        items: &Arc<Vec<Item>>,
        in_flight: usize,
    ) -> Self {
        let (count, done) = watch::channel(0);
        let count = Arc::new(count);
        let killed: Arc<Vec<_>> = Arc::new(
            groups
                .iter()
                .map(|group| (group.id, AtomicBool::new(false)))
                .collect(),
        );
        let mut tasks = JoinSet::new();
        for (at, group) in groups.iter().enumerate() {
            let of_group = |item: &&Item| super::group_of(groups, item).id == group.id;
            let items: Vec<Item> = items.iter().filter(of_group).cloned().collect();
            let task = load(
                client.clone(),
                group.id,
                items,
                in_flight,
                count.clone(),
                killed.clone(),
                at,
            );
            tasks.spawn(task);
        }
        let loaded = Loaded {
            latencies: latencies(),
            gap: Duration::ZERO,
            elapsed: Duration::ZERO,
            keys: 0,
        };
        Self {
            tasks,
            done,
            started: Stopwatch::start(),
            killed,
            loaded,
        }
    }

    /// Keys acknowledged.
    pub fn done(&self) -> usize {
        *self.done.borrow()
    }

    /// From here on the longest silence of these groups is of interest.
    pub fn node_killed(&self, groups: &[GroupId]) {
        for (_, killed) in self
            .killed
            .iter()
            .filter(|(group, _)| groups.contains(group))
        {
            killed.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until so many keys are acknowledged; an error as soon as loading fails.
    pub async fn reached(&mut self, keys: usize, progress: &Progress) -> anyhow::Result<()> {
        while self.done() < keys {
            self.step(progress).await?;
        }
        Ok(())
    }

    /// Waits for the rest.
    pub async fn finish(mut self, progress: &Progress) -> anyhow::Result<Loaded> {
        while !self.tasks.is_empty() {
            self.step(progress).await?;
        }
        self.loaded.elapsed = self.started.elapsed();
        Ok(self.loaded)
    }

    /// Waits until something has happened.
    async fn step(&mut self, progress: &Progress) -> anyhow::Result<()> {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => {
                let group = ended.context("a loading task failed")??;
                self.loaded.latencies.add(&group.latencies).context("latencies do not add up")?;
                self.loaded.gap = self.loaded.gap.max(group.gap);
                self.loaded.keys += group.keys;
            }
            Ok(()) = self.done.changed() => progress.at(*self.done.borrow_and_update()),
            else => bail!("loading ended early"),
        }
        Ok(())
    }
}

impl Loaded {
    /// For people.
    pub fn lines(&self, bytes: usize) -> String {
        let seconds = self.elapsed.as_secs_f64();
        format!(
            "loaded     {} keys in {seconds:.1} s: {:.0} commands/s, {:.1} MB/s\n\
             latency    {}\n\
             outage     {:.2} s at most without an acknowledgement in a group that lost its leader",
            self.keys,
            self.keys as f64 / seconds,
            super::report::mega(bytes) / seconds,
            super::report::latencies(&self.latencies),
            self.gap.as_secs_f64(),
        )
    }
}

async fn load(
    client: Client,
    group: GroupId,
    items: Vec<Item>,
    in_flight: usize,
    count: Arc<watch::Sender<usize>>,
    killed: Arc<Vec<(GroupId, AtomicBool)>>,
    at: usize,
) -> anyhow::Result<Loaded> {
    let session = client
        .session(group)
        .await
        .with_context(|| format!("cannot open a session in group {group}"))?;
    let (mut latencies, mut gap, keys) = (latencies(), Duration::ZERO, items.len());
    let mut answers = stream::iter(items)
        .map(|item| {
            let session = session.clone();
            async move {
                let watch = Stopwatch::start();
                let answer = session.propose(put(&item)).await;
                (item.key, answer, watch.elapsed())
            }
        })
        .buffer_unordered(in_flight);
    let mut last = Stopwatch::start();
    while let Some((key, answer, latency)) = answers.next().await {
        match answer
            .with_context(|| format!("cannot write {key} to group {group}"))?
            .outcome
        {
            Outcome::Reply(_) => {}
            other => bail!("group {group} refused {key}: {other:?}"),
        }
        latencies.saturating_record(micros(latency));
        if killed[at].1.load(Ordering::Relaxed) {
            gap = gap.max(last.elapsed());
        }
        last = Stopwatch::start();
        count.send_modify(|count| *count += 1);
    }
    Ok(Loaded {
        latencies,
        gap,
        elapsed: Duration::ZERO,
        keys,
    })
}

/// `put KEY VALUE`, in the language of the KV machine.
fn put(item: &Item) -> Bytes {
    let mut command = BytesMut::with_capacity(item.key.len() + item.value.len() + 5);
    command.put_slice(b"put ");
    command.put_slice(item.key.as_bytes());
    command.put_u8(b' ');
    command.put_slice(&item.value);
    command.freeze()
}

/// From a microsecond to ten minutes, with three digits.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are constants that fit")
}
