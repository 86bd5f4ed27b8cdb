//! `skep demo`.

pub use crate::demo::{Arguments, run};
