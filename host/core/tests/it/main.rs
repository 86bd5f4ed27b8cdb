//! Tests of the replica as a value: a few groups of replicas, a network and a disk that do as they are told.

mod activation;
mod catch_up;
mod chaos;
mod cluster;
mod deployment;
mod disk;
mod divergence;
mod durability;
mod entries;
mod founders;
mod healing;
mod images;
mod impasse;
mod machine;
mod membership;
mod proposals;
mod reads;
mod removal;
mod rng;
mod scripts;
mod sessions;
mod sickness;
mod snapshots;
mod suspects;
mod trust;
