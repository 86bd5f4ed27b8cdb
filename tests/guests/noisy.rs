//! Floods the host's log with terminal escapes: `noise` is 10,000 lines through the log import and as many through
//! standard output and error, `noise N` is N of each, `noise-line N` is one line of N bytes. They answer `quiet`.

use skep_guest::{Context, Rejection, log};
use skep_test_guests::{Attack, Guest, number};

const LINES: i64 = 10_000;

/// Clears the screen, retitles the terminal, goes back over the line and forges one.
const ESCAPES: &str =
    "\x1b[2J\x1b]0;owned\x07\r\x08\n2026-01-01T00:00:00Z ERROR skep: forged line \u{202e}\0";

#[derive(Default)]
struct Noisy;

impl Attack for Noisy {
    const NAME: &'static str = "noisy";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        if let Some(len) = number(request, "noise-line") {
            log::info("x".repeat(len.try_into().ok()?));
        } else {
            let lines = if request == b"noise" {
                LINES
            } else {
                number(request, "noise")?
            };
            for line in 0..lines {
                log::error(format_args!("{line} {ESCAPES}"));
                println!("{line} {ESCAPES}");
                eprintln!("{line} {ESCAPES}");
            }
        }
        Some(Ok(b"quiet".to_vec()))
    }
}

skep_guest::export!(Guest<Noisy>);
