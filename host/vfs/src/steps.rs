//! Lets every step of an action fail, and every step be the last before a crash: for tests.

use std::io;

use crate::sim::{Crash, SimVfs};

/// What became of an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// One of its calls failed.
    CallFailed,
    /// The power was cut in it or after it, or the process died.
    Crashed,
}

/// Runs `act` on copies of `disk`: with each of its calls failing, and with a crash of every kind after each. `check` gets the
/// disk as it is then, and what `act` said.
pub fn at_every_step<T>(
    disk: &SimVfs,
    act: impl Fn(&SimVfs) -> T,
    check: impl Fn(&SimVfs, T, End),
) {
    let whole = disk.fork();
    act(&whole);
    let steps = whole.calls() - disk.calls();
    assert!(steps > 0, "the action touches no file");
    for step in 1..=steps {
        let failing = disk.fork();
        failing.fail_call(disk.calls() + step, io::ErrorKind::Other);
        let said = act(&failing);
        check(&failing, said, End::CallFailed);
    }
    let random = (0..8).flat_map(|seed| [Crash::Subset(seed), Crash::TearLast(seed)]);
    for crash in [Crash::LoseAll, Crash::ProcessOnly]
        .into_iter()
        .chain(random)
    {
        for step in 0..=steps {
            let dying = disk.fork();
            dying.cut_power_after(disk.calls() + step);
            let said = act(&dying);
            dying.crash(crash);
            check(&dying, said, End::Crashed);
        }
    }
}
