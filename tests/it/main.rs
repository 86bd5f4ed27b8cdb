//! Real processes on loopback: kill -9, hostile guests, bad input, the demonstration.

mod bad_input;
mod components;
mod creation;
mod demo;
mod deploy;
mod disk_damage;
mod faults;
mod founding;
mod fuzz_corpus;
mod group_commit;
mod handover;
mod hostile;
mod images;
mod lifecycle;
mod load;
mod many_nodes;
mod membership;
mod metrics;
mod nodes;
mod power;
mod recover;
mod replay;
mod retries;
mod strangers;
mod testkit;
mod upgrades;
