//! What a node counts, for Prometheus.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
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
        for (name, help, value) in [
            ("groups", "Replicas on this node", status.groups),
            ("leaders", "Replicas on this node that lead", status.leading),
            (
                "halted_groups",
                "Replicas on this node that are halted until somebody acts",
                halted,
            ),
            (
                "requests_in_flight",
                "Requests without an answer yet",
                status.requests,
            ),
            (
                "snapshots_receiving",
                "Snapshots arriving",
                status.receiving_snapshots,
            ),
            (
                "client_connections",
                "Client connections",
                doors.clients.inside(),
            ),
            ("http_connections", "HTTP connections", doors.http.inside()),
        ] {
            gauge(&mut encoder, name, help, None, value as u64)?;
        }
        Self::troubled(&mut encoder, &troubled)?;
        for (name, help, held) in [
            (
                "http_bodies",
                "Bytes of bodies beyond 64 KiB of requests without an answer yet",
                doors.bodies.held(),
            ),
            (
                "http_components",
                "Bytes of components that are sent",
                doors.components.held(),
            ),
            (
                "client_half_frames",
                "Bytes of frames of clients that have not come whole",
                doors.client_frames.held(),
            ),
        ] {
            gauge(&mut encoder, name, help, Some(Unit::Bytes), held as u64)?;
        }
        for (name, help, value) in [
            (
                "http_connections_refused",
                "HTTP connections for which there was no place",
                doors.http.refused(),
            ),
            (
                "http_connections_turned_out",
                "HTTP connections that did nothing and had to go for others",
                doors.http.turned_out(),
            ),
            (
                "client_connections_turned_out",
                "Client connections that did nothing and had to go for others",
                doors.clients.turned_out(),
            ),
        ] {
            counter(&mut encoder, name, help, None, value)?;
        }
        let refused = metrics.client_connections_refused.load(Ordering::Relaxed);
        let help = "Client connections refused or closed for what they sent";
        counter(
            &mut encoder,
            "client_connections_refused",
            help,
            None,
            refused,
        )?;
        let help = "Messages for groups that are not here";
        counter(
            &mut encoder,
            "misdirected_messages",
            help,
            None,
            status.misdirected_messages,
        )?;
        let help = "Barriers at which replicas of a group were found to differ";
        counter(&mut encoder, "divergences", help, None, status.divergences)?;
        let help = "Messages of other nodes that replicas did not believe";
        let distrusted = status.distrusted_messages;
        counter(&mut encoder, "distrusted_messages", help, None, distrusted)?;
        let help = "Commands that were given up because every member of their group had stopped at them, as often as replicas of this node came to them";
        let given_up = status.given_up_commands;
        counter(&mut encoder, "given_up_commands", help, None, given_up)?;
        let help = "Ticks in which commands or queries of a group waited for its quota of bytes";
        counter(&mut encoder, "quota_waits", help, None, status.quota_waits)?;
        let help = "Ticks in which commands of a group waited so that members that are behind could catch up";
        let waits = status.catch_up_waits;
        counter(&mut encoder, "catch_up_throttled_ticks", help, None, waits)?;
        let help = "Members that did not catch up and were left behind for a while";
        counter(&mut encoder, "left_behind", help, None, status.left_behind)?;
        let help = "Messages dropped because a shard was behind";
        counter(
            &mut encoder,
            "dropped_messages",
            help,
            None,
            status.dropped_messages,
        )?;
        if let Some(lines) = metrics.log_lines.get() {
            let help =
                "Log lines dropped because nobody took them in time, or they could not be written";
            counter(
                &mut encoder,
                "log_lines_dropped",
                help,
                None,
                lines.dropped(),
            )?;
        }
        self.tasks(&mut encoder)?;
        self.machines(&mut encoder)?;
        self.log(&mut encoder)?;
        self.transport(&mut encoder)
    }
}

impl NodeCollector {
    /// How many replicas are in trouble, by kind; and which, up to a bound.
    fn troubled(encoder: &mut DescriptorEncoder<'_>, troubled: &[Troubled]) -> fmt::Result {
        let help = "Replicas on this node in trouble, by kind";
        let name = "troubled_groups";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for kind in Kind::ALL {
            let of_kind = |troubled: &&Troubled| troubled.trouble.kind == kind;
            let count = ConstGauge::new(troubled.iter().filter(of_kind).count() as i64);
            count.encode(family.encode_family(&[("trouble", kind.code())])?)?;
        }
        let help = "Groups whose replica on this node is in trouble: 1, with its kind";
        let name = "group_trouble";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for troubled in troubled.iter().take(TROUBLED_SHOWN) {
            let group = troubled.group.to_string();
            let labels = [
                ("group", group.as_str()),
                ("trouble", troubled.trouble.kind.code()),
            ];
            ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn tasks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tasks = self.host.supervisor().all();
        let help = "Tasks of the node that run, by name";
        let mut family = encoder.encode_descriptor("tasks", help, None, MetricType::Gauge)?;
        for (task, counts) in &tasks {
            let running = ConstGauge::new(counts.running as i64);
            running.encode(family.encode_family(&[("task", *task)])?)?;
        }
        let help = "Tasks of the node that panicked, by name";
        let mut family =
            encoder.encode_descriptor("task_panics", help, None, MetricType::Counter)?;
        for (task, counts) in &tasks {
            let panics = ConstCounter::new(counts.panics);
            panics.encode(family.encode_family(&[("task", *task)])?)?;
        }
        Ok(())
    }

    /// What the machines hold, each and all together, and what they may.
    fn machines(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let groups = self.host.node().machine_memory();
        let bytes = Some(Unit::Bytes);
        for (name, help, is_limit) in [
            (
                "machine_memory",
                "Linear memory of the machine of a group on this node",
                false,
            ),
            (
                "machine_memory_limit",
                "What the profile of the group lets that become",
                true,
            ),
        ] {
            let mut family =
                encoder.encode_descriptor(name, help, bytes.as_ref(), MetricType::Gauge)?;
            for (group, memory) in &groups {
                let value = if is_limit {
                    memory.limit_bytes
                } else {
                    memory.used_bytes
                };
                let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&[("group", group.to_string())])?)?;
            }
        }
        let budget = self.host.machine_budget();
        let (held, most) = (budget.held(), budget.most());
        for (name, help, unit, value) in [
            (
                "machines_memory",
                "Linear memory of all machines, readers and trials of this node",
                bytes.clone(),
                held.memory_bytes,
            ),
            (
                "machines_memory_limit",
                "At how much of that the node starts no more of them",
                bytes.clone(),
                most.memory_bytes,
            ),
            (
                "machines_address",
                "Addresses that they have reserved",
                bytes.clone(),
                held.address_bytes,
            ),
            (
                "machines_address_limit",
                "At how much of that the node starts no more of them",
                bytes,
                most.address_bytes,
            ),
            (
                "machines_mappings",
                "Mappings that they may need",
                None,
                held.mappings,
            ),
            (
                "machines_mappings_limit",
                "At how many of those the node starts no more of them",
                None,
                most.mappings,
            ),
        ] {
            gauge(encoder, name, help, unit, value)?;
        }
        Ok(())
    }

    fn log(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let log = self.host.node().log_stats();
        let bytes = Some(Unit::Bytes);
        gauge(
            encoder,
            "log_size",
            "Size of the log on disk",
            bytes.clone(),
            log.bytes,
        )?;
        gauge(
            encoder,
            "log_segments",
            "Files of the log",
            None,
            log.segments,
        )?;
        counter(
            encoder,
            "log_syncs",
            "Times the log was made durable",
            None,
            log.syncs,
        )?;
        counter(
            encoder,
            "log_records",
            "Records written to the log",
            None,
            log.records,
        )?;
        counter(
            encoder,
            "log_waits",
            "Times the log waited for a file descriptor or memory",
            None,
            log.waits,
        )?;
        counter(
            encoder,
            "log_appended",
            "Bytes written to the log",
            bytes,
            log.appended_bytes,
        )
    }

    fn transport(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.host.transport().stats();
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let bytes = Some(Unit::Bytes);
        for (name, help, unit, value) in [
            (
                "snapshots_sent",
                "Snapshots that arrived at their receiver",
                None,
                read(&stats.snapshots_sent),
            ),
            (
                "snapshots_received",
                "Snapshots that arrived here",
                None,
                read(&stats.snapshots_received),
            ),
            (
                "peer_connections_accepted",
                "Connections of other nodes",
                None,
                read(&stats.accepted),
            ),
            (
                "peer_connections_refused",
                "Connections refused here",
                None,
                read(&stats.refused),
            ),
            (
                "peer_dial_failures",
                "Connections to other nodes that failed",
                None,
                read(&stats.dial_failures),
            ),
        ] {
            counter(encoder, name, help, unit, value)?;
        }
        for priority in Priority::ALL {
            let lane = stats.lane(priority);
            let name = match priority {
                Priority::High => "high",
                Priority::Normal => "normal",
                Priority::Low => "low",
            };
            for (what, help, unit, value) in [
                (
                    "sent",
                    "Bytes sent to other nodes",
                    bytes.clone(),
                    read(&lane.bytes_out),
                ),
                (
                    "received",
                    "Bytes received from other nodes",
                    bytes.clone(),
                    read(&lane.bytes_in),
                ),
                (
                    "dropped_messages",
                    "Messages to other nodes that were dropped",
                    None,
                    read(&lane.dropped),
                ),
                (
                    "disconnects",
                    "Connections to other nodes that were lost",
                    None,
                    read(&lane.disconnects),
                ),
            ] {
                counter(encoder, &format!("peer_{name}_{what}"), help, unit, value)?;
            }
        }
        Ok(())
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: u64,
) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: u64,
) -> fmt::Result {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?)
}
