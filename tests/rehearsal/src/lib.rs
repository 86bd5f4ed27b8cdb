//! The machines of `tests/machines`, built into components: a constant each, and all of them by name in [`ALL`].

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The same component, of which the host can have no images: beside its modules lies one that would write to a table.
pub fn imageless(component: &[u8]) -> Vec<u8> {
    const MODULE: &[u8] = b"\x01\x24\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x04\x04\x01\x70\0\x01\x0a\x0a\x01\x08\0\x41\0\xd0\x70\x26\0\x0b";
    [component, MODULE].concat()
}
