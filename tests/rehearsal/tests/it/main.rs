//! What the rehearsal must find, and what canonical points are for.

mod defects;
mod exact;
mod midway;
mod replicas;
mod support;
