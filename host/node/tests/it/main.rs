//! Clusters of real nodes in one process: real cores, logs, threads and files; only the network is in memory.

mod activation;
mod divergence;
mod group_lifecycle;
mod healing;
mod isolation;
mod membership;
mod node_lifecycle;
mod proposals;
mod queries;
mod support;
