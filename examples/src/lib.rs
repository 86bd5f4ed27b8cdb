//! The example guests of Skep, built into components by this crate's build script.
//!
//! Each constant is a whole WebAssembly component that exports `skep:machine`, ready to be deployed. The sources and
//! the documentation of each are in the directory of its name beside this crate's manifest.

/// The key-value machine of `examples/kv`, the default machine of the `skep` binary. Its `README.md` documents the
/// requests and replies.
pub const KV: &[u8] = include_bytes!(env!("GUEST_SKEP_EXAMPLE_KV"));

#[cfg(test)]
mod tests {
    use super::*;

    /// The preamble of a component: the magic number, and version 13 of layer 1. A core module is of layer 0.
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    fn holds(component: &[u8], text: &str) -> bool {
        component
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }

    #[test]
    fn kv_is_a_component_that_exports_the_whole_contract() {
        assert!(KV.starts_with(COMPONENT));
        for interface in ["state-machine", "initializer", "queries", "batch"] {
            assert!(
                holds(KV, &format!("skep:machine/{interface}@0.1.0")),
                "{interface}"
            );
        }
        assert!(!holds(KV, "wasi:http") && !holds(KV, "wasi:sockets"));
    }

    #[test]
    fn kv_does_not_depend_on_where_it_was_built() {
        assert!(!holds(KV, env!("CARGO_MANIFEST_DIR")));
    }
}
