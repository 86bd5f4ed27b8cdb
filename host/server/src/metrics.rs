//! What a node counts, for Prometheus.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use skep::status::QueryAnswer;
use skep::trouble::{Kind, Troubled};
use skep_core::message::Priority;
use skep_core::outcome::Outcome;
use skep_core::proposal::Response;
use skep_machine::state_machine::Memory;

use crate::cluster::Host;
use crate::error::HostError;
use crate::log_lines::LogLines;

/// The counters of a node's interfaces. What the parts below count themselves is read when it is asked for.
pub struct Metrics {
    registry: Registry,
    proposals: Family<OutcomeLabel, Counter>,
    queries: Family<OutcomeLabel, Counter>,
    proposal_seconds: Histogram,
    query_seconds: Histogram,
    guest_faults: Counter,
    log_lines: OnceLock<LogLines>,
    /// Client connections refused or closed for what they sent.
    pub client_connections_refused: AtomicU64,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Groups in trouble that are named one by one.
const TROUBLED_SHOWN: usize = 100;

impl Metrics {
    pub(crate) fn new() -> Self {
        // From 50 µs, faster than any disk, to 26 s, longer than any deadline here.
        let histogram = || Histogram::new(exponential_buckets(0.000_05, 2.0, 20));
        let metrics = Self {
            registry: Registry::with_prefix("skep"),
            proposals: Family::default(),
            queries: Family::default(),
            proposal_seconds: histogram(),
            query_seconds: histogram(),
            guest_faults: Counter::default(),
            log_lines: OnceLock::new(),
            client_connections_refused: AtomicU64::new(0),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "proposals",
            "Commands proposed, by outcome",
            self.proposals.clone(),
        );
        registry.register("queries", "Queries asked, by outcome", self.queries.clone());
        registry.register(
            "guest_faults",
            "Commands and queries a machine failed on",
            self.guest_faults.clone(),
        );
        let seconds = Unit::Seconds;
        let (name, help) = (
            "proposal_duration",
            "From a command's arrival to its answer",
        );
        registry.register_with_unit(name, help, seconds.clone(), self.proposal_seconds.clone());
        let (name, help) = ("query_duration", "From a query's arrival to its answer");
        registry.register_with_unit(name, help, seconds, self.query_seconds.clone());
        self
    }

    /// From now on the lines dropped there are shown.
    pub fn count_log_lines(&self, lines: LogLines) {
        // A process has one such place; the first stays.
        let _ = self.log_lines.set(lines);
    }

    pub(crate) fn proposed(&self, result: &Result<Response, HostError>, elapsed: Duration) {
        self.proposal_seconds.observe(elapsed.as_secs_f64());
        let outcome = self.outcome(result.as_ref().map(|response| &response.outcome));
        self.proposals
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    pub(crate) fn queried(&self, result: &Result<QueryAnswer, HostError>, elapsed: Duration) {
        self.query_seconds.observe(elapsed.as_secs_f64());
        let outcome = self.outcome(result.as_ref().map(|answer| &answer.outcome));
        self.queries.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    fn outcome(&self, result: Result<&Outcome, &HostError>) -> &'static str {
        match result {
            Ok(Outcome::Reply(_)) => "reply",
            Ok(Outcome::Rejected { .. } | Outcome::Refused { .. }) => "rejected",
            Ok(Outcome::Fault(_)) => {
                self.guest_faults.inc();
                "fault"
            }
            Err(error) if error.is_unknown() => "unknown",
            Err(_) => "refused",
        }
    }

    /// Everything in the text format of Prometheus.
    pub fn render(&self, host: &Host) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        let mut node = Registry::with_prefix("skep");
        node.register_collector(Box::new(NodeCollector { host: host.clone() }));
        text::encode(&mut text, &node)?;
        Ok(text)
    }
}

/// Reads what the node, its log and its transport count.
struct NodeCollector {
    host: Host,
}

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

impl prometheus_client::collector::Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.host.node().node_status();
        let troubled = self.host.troubled();
        let halted = troubled
            .iter()
            .filter(|troubled| troubled.trouble.kind.waits_for_somebody())
            .count();
        let (metrics, doors) = (self.host.metrics(), self.host.doors());
        let refused = metrics.client_connections_refused.load(Ordering::Relaxed);
        let (log, budget) = (self.host.node().log_stats(), self.host.machine_budget());
        let (held, most) = (budget.held(), budget.most());
        let transport = self.host.transport().stats();
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (gauge, counter) = (MetricType::Gauge, MetricType::Counter);
        let lacking = self
            .host
            .under_replicated()
            .map_or(0, |groups| groups.len());
        #[rustfmt::skip]
        let numbers = [
            (gauge, "groups", "Replicas on this node", status.groups as u64),
            (gauge, "groups_under_replicated", "Groups with fewer replicas than they should have on nodes that answer, where this node leads the catalogue; elsewhere 0", lacking as u64),
            (gauge, "leaders", "Replicas on this node that lead", status.leading as u64),
            (gauge, "halted_groups", "Replicas on this node that are halted until somebody acts", halted as u64),
            (gauge, "requests_in_flight", "Requests without an answer yet", status.requests as u64),
            (gauge, "snapshots_receiving", "Snapshots arriving", status.receiving_snapshots as u64),
            (gauge, "client_connections", "Client connections", doors.clients.inside() as u64),
            (gauge, "http_connections", "HTTP connections", doors.http.inside() as u64),
            (gauge, "http_bodies_bytes", "Bytes of bodies beyond 64 KiB of requests without an answer yet", doors.bodies.held() as u64),
            (gauge, "http_components_bytes", "Bytes of components that are sent", doors.components.held() as u64),
            (gauge, "client_half_frames_bytes", "Bytes of frames of clients that have not come whole", doors.client_frames.held() as u64),
            (counter, "http_connections_refused", "HTTP connections for which there was no place", doors.http.refused()),
            (counter, "http_connections_turned_out", "HTTP connections that did nothing and had to go for others", doors.http.turned_out()),
            (counter, "client_connections_turned_out", "Client connections that did nothing and had to go for others", doors.clients.turned_out()),
            (counter, "client_connections_refused", "Client connections refused or closed for what they sent", refused),
            (counter, "misdirected_messages", "Messages for groups that are not here", status.misdirected_messages),
            (counter, "divergences", "Barriers at which replicas of a group were found to differ", status.divergences),
            (counter, "distrusted_messages", "Messages of other nodes that replicas did not believe", status.distrusted_messages),
            (counter, "given_up_commands", "Commands that were given up because every member of their group had stopped at them, as often as replicas of this node came to them", status.given_up_commands),
            (counter, "quota_waits", "Ticks in which commands or queries of a group waited for its quota of bytes", status.quota_waits),
            (counter, "catch_up_throttled_ticks", "Ticks in which commands of a group waited so that members that are behind could catch up", status.catch_up_waits),
            (counter, "left_behind", "Members that did not catch up and were left behind for a while", status.left_behind),
            (counter, "dropped_messages", "Messages dropped because a shard was behind", status.dropped_messages),
            (gauge, "machines_memory_bytes", "Linear memory of all machines, readers and trials of this node", held.memory_bytes),
            (gauge, "machines_memory_limit_bytes", "At how much of that the node starts no more of them", most.memory_bytes),
            (gauge, "machines_address_bytes", "Addresses that they have reserved", held.address_bytes),
            (gauge, "machines_address_limit_bytes", "At how much of that the node starts no more of them", most.address_bytes),
            (gauge, "machines_mappings", "Mappings that they may need", held.mappings),
            (gauge, "machines_mappings_limit", "At how many of those the node starts no more of them", most.mappings),
            (gauge, "log_size_bytes", "Size of the log on disk", log.bytes),
            (gauge, "log_segments", "Files of the log", log.segments),
            (counter, "log_syncs", "Times the log was made durable", log.syncs),
            (counter, "log_records", "Records written to the log", log.records),
            (counter, "log_waits", "Times the log waited for a file descriptor or memory", log.waits),
            (counter, "log_appended_bytes", "Bytes written to the log", log.appended_bytes),
            (counter, "snapshots_sent", "Snapshots that arrived at their receiver", read(&transport.snapshots_sent)),
            (counter, "snapshots_received", "Snapshots that arrived here", read(&transport.snapshots_received)),
            (counter, "peer_connections_accepted", "Connections of other nodes", read(&transport.accepted)),
            (counter, "peer_connections_refused", "Connections refused here", read(&transport.refused)),
            (counter, "peers_gone", "Processes of other nodes that were found to have ended; each of two lanes counts", read(&transport.gone)),
            (gauge, "store_went_back", "1 if this node takes no part because its data directory went back (`store-went-back`)", u64::from(self.host.own_went_back().is_some())),
            (gauge, "peers_went_back", "Nodes that are refused here because their data directories went back (`store-went-back`)", self.host.peers_went_back() as u64),
            (counter, "peer_dial_failures", "Connections to other nodes that failed", read(&transport.dial_failures)),
        ];
        for (kind, name, help, value) in numbers {
            number(&mut encoder, kind, name, help, value)?;
        }
        if let Some(lines) = metrics.log_lines.get() {
            let help =
                "Log lines dropped because nobody took them in time, or they could not be written";
            number(
                &mut encoder,
                counter,
                "log_lines_dropped",
                help,
                lines.dropped(),
            )?;
        }
        for priority in Priority::ALL {
            let lane = transport.lane(priority);
            #[rustfmt::skip]
            let numbers = [
                ("sent_bytes", "Bytes sent to other nodes", read(&lane.bytes_out)),
                ("received_bytes", "Bytes received from other nodes", read(&lane.bytes_in)),
                ("dropped_messages", "Messages to other nodes that were dropped", read(&lane.dropped)),
                ("disconnects", "Connections to other nodes that were lost", read(&lane.disconnects)),
            ];
            for (what, help, value) in numbers {
                let name = format!("peer_{}_{what}", lane_name(priority));
                number(&mut encoder, counter, &name, help, value)?;
            }
        }
        Self::troubled(&mut encoder, &troubled)?;
        self.tasks(&mut encoder)?;
        self.machines(&mut encoder)
    }
}

impl NodeCollector {
    /// How many replicas are in trouble, by kind; and which, up to a bound.
    fn troubled(encoder: &mut DescriptorEncoder<'_>, troubled: &[Troubled]) -> fmt::Result {
        let of = |kind| troubled.iter().filter(move |of| of.trouble.kind == kind);
        let kinds = Kind::ALL.map(|kind| ([("trouble", kind.code())], of(kind).count() as u64));
        let help = "Replicas on this node in trouble, by kind";
        family(encoder, MetricType::Gauge, "troubled_groups", help, kinds)?;
        let shown = troubled.iter().take(TROUBLED_SHOWN).map(|troubled| {
            let (group, kind) = (troubled.group.to_string(), troubled.trouble.kind);
            let labels = [("group", group), ("trouble", kind.code().to_owned())];
            (labels, 1)
        });
        let help = "Groups whose replica on this node is in trouble: 1, with its kind";
        family(encoder, MetricType::Gauge, "group_trouble", help, shown)
    }

    fn tasks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tasks = self.host.supervisor().all();
        let running = tasks
            .iter()
            .map(|(task, of)| ([("task", *task)], of.running));
        let help = "Tasks of the node that run, by name";
        family(encoder, MetricType::Gauge, "tasks", help, running)?;
        let panics = tasks
            .iter()
            .map(|(task, of)| ([("task", *task)], of.panics));
        let help = "Tasks of the node that panicked, by name";
        family(encoder, MetricType::Counter, "task_panics", help, panics)
    }

    /// The memory of each machine, and what it may become.
    fn machines(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let groups = self.host.node().machine_memory();
        let of = |bytes: fn(&Memory) -> u64| {
            let groups = groups.iter();
            groups.map(move |(group, memory)| ([("group", group.to_string())], bytes(memory)))
        };
        let used = of(|memory| memory.used_bytes);
        let (name, help) = (
            "machine_memory_bytes",
            "Linear memory of the machine of a group on this node",
        );
        family(encoder, MetricType::Gauge, name, help, used)?;
        let limits = of(|memory| memory.limit_bytes);
        let (name, help) = (
            "machine_memory_limit_bytes",
            "What the profile of the group lets that become",
        );
        family(encoder, MetricType::Gauge, name, help, limits)
    }
}

fn lane_name(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
        Priority::Low => "low",
    }
}

/// The format appends the unit to a name by itself.
fn with_unit(name: &str) -> (&str, Option<Unit>) {
    match name.strip_suffix("_bytes") {
        Some(name) => (name, Some(Unit::Bytes)),
        None => (name, None),
    }
}

/// One number of this node. Its name ends in its unit.
fn number(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let (name, unit) = with_unit(name);
    encode(
        kind,
        value,
        encoder.encode_descriptor(name, help, unit.as_ref(), kind)?,
    )
}

/// The same number of several things, which their labels tell apart.
fn family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    name: &str,
    help: &str,
    numbers: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let (name, unit) = with_unit(name);
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
    for (labels, value) in numbers {
        encode(kind, value, family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode(kind: MetricType, value: u64, metric: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(metric),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric),
    }
}
