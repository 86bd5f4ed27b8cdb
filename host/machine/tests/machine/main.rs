//! Machines from components: real ones, and ones that do everything wrong.

mod components;
mod conformance;
mod determinism;
mod faults;
mod guest;
mod images;
mod log_lines;
mod queries;
mod snapshots;
