//! What a guest says, on its way to the node's log.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::guest::{FULL, apply, machine, query, save};

/// Keeps the lines of guests as `LEVEL text`.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "skep::guest"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0
            .lock()
            .unwrap()
            .push(format!("{} {}", event.metadata().level(), text.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_line_is_escaped_and_never_repeated_by_a_rebuild() {
    const NOISE: &str = "INFO \\u{1b}[2Jline one\\nline two";
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        let mut machine = machine(&FULL);
        // Another test may have come upon the log line for the first time before this one listened, and be about to note that
        // nobody does; tracing would believe that for ever.
        let mut index = 1;
        loop {
            apply(&mut machine, index, &["noise"]);
            index += 1;
            let heard = lines.take();
            if !heard.is_empty() {
                assert_eq!(heard, [NOISE]);
                break;
            }
            assert!(index < 1000, "nothing is logged");
            tracing::callsite::rebuild_interest_cache();
        }

        // Each of these builds an instance from the journal: after a fault, for queries, after a save.
        apply(&mut machine, index, &["unreachable"]);
        apply(&mut machine, index + 1, &["get"]);
        query(&mut machine, "get");
        save(&mut machine, index + 2);
        apply(&mut machine, index + 3, &["get"]);
        assert_eq!(lines.take(), [""; 0]);

        apply(&mut machine, index + 4, &["noise", "noise"]);
        query(&mut machine, "get");
        assert_eq!(lines.take(), [NOISE, NOISE]);
    });
}
