//! What the log promises, tested from outside over simulated and real disks.

mod collection;
mod crash;
mod damage;
mod files;
mod model;
mod storage;
mod writer;
