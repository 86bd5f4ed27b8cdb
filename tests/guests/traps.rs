//! Traps in the export that the request names: `trap` as a command (`unreachable`) or as a query, `panic` (a Rust
//! panic with a message) and `oob` (a load outside linear memory) as commands. `trap-save`, `trap-restore`,
//! `trap-conf` and `trap-status` are commands that answer `armed`; the next call of that export traps. The
//! configuration `trap-init` traps in `init`.
//!
//! What is armed is state: it is saved, and a replica restored from it is armed as well. `disarm` ends it.

use skep_guest::{Context, Rejection, Sink, Source};
use skep_test_guests::{Attack, Guest, trap};

#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
enum Armed {
    #[default]
    Nothing,
    Save,
    Restore,
    Conf,
    Status,
}

#[derive(Default)]
struct Traps {
    armed: Armed,
}

impl Traps {
    fn trap_if(&self, armed: Armed) {
        if self.armed == armed {
            trap();
        }
    }
}

impl Attack for Traps {
    const NAME: &'static str = "traps";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        self.armed = match request {
            b"trap" => trap(),
            b"panic" => panic!("a panic, as asked for"),
            b"oob" => return Some(Ok(vec![load_outside_memory()])),
            b"trap-save" => Armed::Save,
            b"trap-restore" => Armed::Restore,
            b"trap-conf" => Armed::Conf,
            b"trap-status" => Armed::Status,
            b"disarm" => Armed::Nothing,
            _ => return None,
        };
        Some(Ok(if self.armed == Armed::Nothing {
            b"disarmed".to_vec()
        } else {
            b"armed".to_vec()
        }))
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        if request == b"trap" {
            trap();
        }
        None
    }

    fn init(&mut self, config: &[u8]) {
        if config == b"trap-init" {
            trap();
        }
    }

    fn save(&self, to: &mut Sink<'_>) {
        self.trap_if(Armed::Save);
        to.put_u8(self.armed as u8);
    }

    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let known = [
            Armed::Nothing,
            Armed::Save,
            Armed::Restore,
            Armed::Conf,
            Armed::Status,
        ];
        let byte = from.take_u8()?;
        let armed = known.into_iter().find(|armed| *armed as u8 == byte);
        let traps = Traps {
            armed: armed.ok_or_else(|| Rejection::bad_request("unknown trap"))?,
        };
        traps.trap_if(Armed::Restore);
        Ok(traps)
    }

    fn conf_changed(&mut self) {
        self.trap_if(Armed::Conf);
    }

    fn status_changed(&mut self) {
        self.trap_if(Armed::Status);
    }
}

#[cfg(target_family = "wasm")]
fn load_outside_memory() -> u8 {
    let address = std::hint::black_box(u32::MAX as usize);
    // SAFETY: sound on this target for what the test wants: the last address of a 4 GiB space lies outside any memory
    // that the host allows, and WebAssembly checks every access, so the load traps.
    unsafe { std::ptr::read_volatile(address as *const u8) }
}

/// A native build has no such load that is not undefined behaviour.
#[cfg(not(target_family = "wasm"))]
fn load_outside_memory() -> u8 {
    trap()
}

skep_guest::export!(Guest<Traps>);
