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
        apply(&mut machine, 1, &["noise"]);
        assert_eq!(lines.take(), [NOISE]);

        // Each of these builds an instance from the journal: after a fault, for queries, after a save.
        apply(&mut machine, 2, &["unreachable"]);
        apply(&mut machine, 3, &["get"]);
        query(&mut machine, "get");
        save(&mut machine, 4);
        apply(&mut machine, 5, &["get"]);
        assert_eq!(lines.take(), [""; 0]);

        apply(&mut machine, 6, &["noise", "noise"]);
        query(&mut machine, "get");
        assert_eq!(lines.take(), [NOISE, NOISE]);
    });
}
