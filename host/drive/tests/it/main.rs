//! Tests of the driver with a machine that does as it is told.

mod activation;
mod barrier;
mod calls;
mod model;
