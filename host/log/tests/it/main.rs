//! What the log promises, tested from outside over simulated and real disks.

mod collection;
mod crash;
mod damage;
mod files;
mod flips;
mod founding;
mod model;
mod node;
mod past;
mod points;
mod read_back;
mod storage;
mod trace;
mod writer;
