//! The machines of `tests/machines`, built into components: a constant each, and all of them by name in [`ALL`].

include!(concat!(env!("OUT_DIR"), "/guests.rs"));
