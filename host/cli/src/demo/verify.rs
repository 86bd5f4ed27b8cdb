//! Reads everything back and compares.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, stream};
use hdrhistogram::Histogram;
use skep::Outcome;
use skep::clock::Stopwatch;
use skep_client::{Client, Consistency};
use skep_types::admin::GroupInfo;

use super::dataset::Item;
use super::report::{self, Progress, micros};

/// Keys that differ which are named; the rest are counted.
const NAMED: usize = 5;

/// What was found.
pub struct Verified {
    equal: usize,
    missing: usize,
    different: usize,
    /// Keys the groups hold altogether, by their own count.
    counted: usize,
    named: Vec<String>,
    latencies: Histogram<u64>,
    elapsed: Duration,
}

/// Reads every key, linearizably, with `in_flight` requests for each group.
pub async fn read_back(
    client: &Client,
    groups: &[GroupInfo],
    items: &Arc<Vec<Item>>,
    in_flight: usize,
    progress: &Progress,
) -> anyhow::Result<Verified> {
    let watch = Stopwatch::start();
    let mut found = Verified {
        equal: 0,
        missing: 0,
        different: 0,
        counted: 0,
        named: Vec::new(),
        latencies: super::load::latencies(),
        elapsed: Duration::ZERO,
    };
    let mut answers = stream::iter(items.iter())
        .map(|item| async move {
            let watch = Stopwatch::start();
            let query = Bytes::from(format!("get {}", item.key));
            let answer = client
                .query(
                    super::group_of(groups, item).id,
                    query,
                    Consistency::Linearizable,
                )
                .await;
            (item, answer, watch.elapsed())
        })
        .buffer_unordered(in_flight * groups.len());
    while let Some((item, answer, latency)) = answers.next().await {
        found.latencies.saturating_record(micros(latency));
        match answer
            .with_context(|| format!("cannot read {}", item.key))?
            .outcome
        {
            Outcome::Reply(value) if value == item.value => found.equal += 1,
            Outcome::Reply(_) => found.differs(item, "differs"),
            Outcome::Rejected { code: 404, .. } => found.differs(item, "is missing"),
            other => anyhow::bail!("{} cannot be read: {other:?}", item.key),
        }
        progress.at(found.equal + found.missing + found.different);
    }
    for group in groups {
        let answer = client
            .query(
                group.id,
                Bytes::from_static(b"count"),
                Consistency::Linearizable,
            )
            .await;
        match answer
            .with_context(|| format!("cannot count group {}", group.id))?
            .outcome
        {
            Outcome::Reply(count) => {
                let count = String::from_utf8_lossy(&count);
                found.counted += count
                    .trim()
                    .parse::<usize>()
                    .with_context(|| format!("`{count}` is no count"))?;
            }
            other => anyhow::bail!("group {} does not count its keys: {other:?}", group.id),
        }
    }
    found.elapsed = watch.elapsed();
    Ok(found)
}

impl Verified {
    /// Whether every key was there with its bytes, and no other key.
    pub fn is_equal(&self, total: usize) -> bool {
        self.equal == total && self.counted == total
    }

    /// What was found, in one line.
    pub fn summary(&self) -> String {
        format!(
            "{} equal, {} different, {} missing, {} keys counted",
            self.equal, self.different, self.missing, self.counted
        )
    }

    /// For people.
    pub fn lines(&self, bytes: usize, node: u64, address: &str) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let keys = self.equal + self.different + self.missing;
        let mut text = format!(
            "read back  {keys} keys through node {node} at {address} in {seconds:.1} s: {:.0} queries/s, {:.1} MB/s\n\
             latency    {}\n\
             compared   {}",
            keys as f64 / seconds,
            report::mega(bytes) / seconds,
            report::latencies(&self.latencies),
            self.summary(),
        );
        for name in &self.named {
            text.push_str("\n           ");
            text.push_str(name);
        }
        text
    }

    fn differs(&mut self, item: &Item, how: &str) {
        match how {
            "differs" => self.different += 1,
            _ => self.missing += 1,
        }
        if self.named.len() < NAMED {
            self.named.push(format!("{} {how}", item.key));
        }
    }
}
