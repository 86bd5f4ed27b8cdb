//! What the rehearsal must find, and what canonical points are for.

mod defects;
mod midway;
mod replicas;
mod support;
