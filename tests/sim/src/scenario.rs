//! What one seed draws: the size of the cluster, how bad its network and disks are, and what goes wrong in it.

use skep_core::GroupConfig;
use skep_core::deployment::{Deployment, Quota};
use skep_core::form::Barriers;
use skep_core::id::ComponentId;
use skep_log::GroupKey;

use crate::nemesis::Fault;
use crate::node::core_config;
use crate::random::Random;

/// Virtual microseconds of a second.
pub const SECOND: u64 = 1_000_000;

/// The parameters of one simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Draws everything.
    pub seed: u64,
    /// Nodes at the start.
    pub nodes: u64,
    /// Groups at the start.
    pub groups: u64,
    /// Founders of a group, at the most.
    pub voters: u64,
    /// Clients of each group.
    pub clients: u64,
    /// Virtual seconds with faults; as long as it takes to heal comes on top.
    pub seconds: u64,
    /// Between ticks of a node.
    pub tick: u64,
    /// The wall clock at the start, in microseconds since the Unix epoch.
    pub epoch: u64,
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Raft messages that arrive twice, of a thousand.
    pub duplicates: u64,
    /// Mean time of a message on the way.
    pub delay: u64,
    /// Mean time of a sync.
    pub disk: u64,
    /// Mean time of one piece of work of a machine.
    pub apply: u64,
    /// Mean time between a client's operations.
    pub think: u64,
    /// Mean time between faults.
    pub fault: u64,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// Nodes may be told at once that the process of another has ended.
    pub notices: bool,
    /// Entries between snapshots.
    pub snapshot_entries: u64,
    /// Bytes of the log that stay in memory.
    pub log_memory_bytes: u64,
    /// Bytes of the log that are kept for members that are catching up.
    pub log_retained_bytes: u64,
    /// Bytes added to each command.
    pub ballast: usize,
    /// The quota of each group; 0 is none.
    pub bytes_per_second: u64,
    /// Ticks until an activation is given up.
    pub activation_ticks: u32,
    /// Seconds that a component is on its way to a node, at the most.
    pub fetch_seconds: u64,
    /// Which form the barriers of each group have that nobody asked for.
    pub barriers: Barriers,
    /// How often a node can take no image, or use none, of a thousand times.
    pub unable: u64,
    /// Bytes of what is saved from which on images are preferred, and of memory above which it is compacted.
    pub images: (u64, u64),
}

impl Scenario {
    /// The scenario of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let nodes = match random.below(10) {
            0 => random.range(1, 2),
            1..=5 => 3,
            6..=7 => random.range(4, 5),
            _ => random.range(4, 7),
        };
        let groups = match random.below(100) {
            0..=54 => 1,
            55..=89 => random.range(2, 4),
            90..=97 => random.range(5, 12),
            _ => random.range(13, 50),
        };
        // Each kind is in about half of the scenarios, so that each is also seen alone.
        let mut faults: Vec<_> = Fault::ALL
            .into_iter()
            .filter(|_| random.one_in(2))
            .collect();
        // Machines go wrong in few of them: where one has, it is not judged what its group agrees on.
        faults.retain(|fault| *fault != Fault::Wrong);
        if nodes >= 3 && random.one_in(8) {
            faults.push(Fault::Wrong);
        }
        if faults.is_empty() {
            faults.push(Fault::Crash);
        }
        let clients = if groups > 12 { 1 } else { random.range(1, 8) };
        let mut forms = Random::new(seed, 3);
        Self {
            seed,
            nodes,
            groups,
            voters: random.range(1, 5).min(nodes).max(nodes.min(3)),
            clients,
            seconds: if groups > 12 {
                random.range(30, 90)
            } else {
                random.range(120, 900)
            },
            tick: 100_000,
            epoch: 1_700_000_000 * SECOND,
            loss: match random.below(4) {
                0 => 0,
                1 | 2 => random.range(1, 50),
                _ => random.range(50, 300),
            },
            duplicates: random.below(50),
            delay: match random.below(4) {
                0 => 200,
                1 | 2 => random.range(500, 10_000),
                _ => random.range(10_000, 150_000),
            },
            disk: match random.below(4) {
                0 | 1 => random.range(200, 3_000),
                2 => random.range(3_000, 30_000),
                _ => random.range(30_000, 300_000),
            },
            apply: random.range(10, 2_000),
            // All clients together do about one to thirty operations a second.
            think: groups * clients * random.range(SECOND / 30, SECOND),
            fault: random.range(SECOND / 2, 15 * SECOND),
            faults,
            notices: true,
            snapshot_entries: random.range(3, 60),
            ballast: random.range(0, 200) as usize,
            // From a tenth of what the clients ask for to more than that.
            bytes_per_second: match random.below(3) {
                0 => random.range(500, 20_000),
                _ => 0,
            },
            activation_ticks: random.range(20, 300) as u32,
            fetch_seconds: u64::MAX,
            // Often next to nothing, so that nearly all that members lack is read back.
            log_memory_bytes: match random.below(3) {
                0 => 32 << 20,
                _ => random.range(0, 8 << 10),
            },
            log_retained_bytes: match random.below(3) {
                0 => 1 << 30,
                _ => random.range(0, 64 << 10),
            },
            barriers: match forms.below(8) {
                0 => Barriers::Saved,
                1 => Barriers::Image,
                _ => Barriers::Auto,
            },
            unable: match forms.below(2) {
                0 => 0,
                _ => forms.range(1, 300),
            },
            images: (forms.range(0, 4 << 10), forms.range(0, 8 << 10)),
        }
    }

    /// The configuration of a replica on the `boot`th start of its node.
    pub fn group_config(&self, key: GroupKey, node: u64, boot: u64) -> GroupConfig {
        let mut config = core_config(key, node);
        config.init = bytes::Bytes::from_static(b"init");
        config.seed = Random::new(self.seed ^ (node << 32) ^ (boot << 40), 2).word();
        config.snapshot_entries = self.snapshot_entries;
        config.max_message_bytes = 4 << 10;
        config.limits.request_ticks = 50;
        config.limits.activation_ticks = self.activation_ticks;
        config.limits.log_memory_bytes = self.log_memory_bytes;
        config.limits.log_retained_bytes = self.log_retained_bytes;
        config.limits.barrier_image_bytes = self.images.0;
        config.limits.barrier_compaction_bytes = self.images.1;
        if self.bytes_per_second != 0 || self.barriers != Barriers::Auto {
            config.deployment = Some(Deployment {
                component: ComponentId::default(),
                profile: bytes::Bytes::new(),
                quota: Quota {
                    bytes_per_second: self.bytes_per_second,
                    ..Quota::default()
                },
                barriers: self.barriers,
            });
        }
        config
    }

    /// One line for people.
    pub fn short(&self) -> String {
        format!(
            "seed {}: {} nodes, {} groups of ≤ {} voters, {} clients each, {} s; loss {} ‰, duplicates {} ‰, delay {} \
             µs, disk {} µs, barriers {}, without images {} ‰, a fault each {:.1} s of {:?}",
            self.seed,
            self.nodes,
            self.groups,
            self.voters,
            self.clients,
            self.seconds,
            self.loss,
            self.duplicates,
            self.delay,
            self.disk,
            self.barriers,
            self.unable,
            self.fault as f64 / SECOND as f64,
            self.faults
        )
    }
}
