//! Why a test fails, to be said once more behind what its nodes logged: whoever sees only the end of the output sees it too.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// From now on what a panic of a thread says is remembered, beside being printed.
pub fn remember() {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            LAST.set(Some(info.to_string()));
            before(info);
        }));
    });
}

/// What the last panic of this thread said.
pub fn last() -> Option<String> {
    LAST.take()
}
