//! Real processes under faults, and an independent judgement of what their clients saw.
//!
//! Each scenario runs clients against a cluster of real `skep serve` processes while it breaks something again and again:
//! processes (`processes.rs`), the network between them (`network.rs`), disks and clocks (`machines.rs`), or while the
//! group itself changes (`membership.rs`), or the nodes of the cluster do (`nodes.rs`). In the end everything is mended, and three things must hold: one leader, equal
//! replicas down to the bytes of their snapshots, and a history that `skep-checker` calls linearizable.
//!
//! The short form runs some thousand operations in each scenario. `SKEP_FAULTS_OPERATIONS=20000` makes it the long one,
//! with as many more faults.

mod machines;
mod membership;
mod network;
mod nodes;
mod processes;
mod scenario;
mod workload;
