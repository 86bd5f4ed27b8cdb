//! The model against the real machine.

use skep_checker::{History, Limits, Outcome, Place, RawOperation, Reply, Via, kv};
use skep_example_kv::Kv;
use skep_guest::testing::Harness;

/// Every answer to every request, in a fixed order, from the machine itself.
#[test]
fn the_model_agrees_with_the_machine() {
    let mut machine = Harness::<Kv>::new();
    let history = History::new();
    let requests = [
        "get a",
        "gets a",
        "delete a",
        "cas a 3 x",
        "incr a",
        "incr a 5",
        "get a",
        "gets a",
        "cas a 1 x",
        "cas a 2 word",
        "incr a",
        "put a 9223372036854775807",
        "incr a",
        "incr a -7",
        "put a ",
        "get a",
        "incr a",
        "gets a",
        "delete a",
        "cas a 0  two words ",
        "get a",
        "put a -5",
        "incr a -5",
        "put a +5",
        "incr a 0",
        "scan",
        "scan a 1",
        "put b 1",
        "scan  1",
        "scan  5 a",
        "scan b 5",
        "cas b 8 x",
        "delete b",
        "scan",
        "gets b",
    ];
    for (at, request) in (0..).zip(requests) {
        let call = history.call(1, Via::Log, request, 2 * at);
        let reply = match machine.apply(request) {
            Ok(bytes) => Reply::ok(bytes),
            Err(rejection) => Reply::rejected(rejection.code, rejection.message),
        };
        call.returned(reply, Some(Place::of_index(at + 3)), 2 * at + 1);
    }
    let operations = history.operations();
    let report = kv::check(&operations, Limits::default()).unwrap();
    assert!(report.is_linearizable(), "{report}");

    // The same with any one answer exchanged for another of its kind is not what the machine does.
    let mut exchanged = 0;
    for one in 0..operations.len() {
        for other in 0..operations.len() {
            let mut history = operations.clone();
            history[one].outcome = operations[other].outcome.clone();
            // A scan may stop anywhere for the length of its reply.
            if operations[one].input.as_slice().starts_with(b"scan") {
                continue;
            }
            // Of these rejections only the words differ.
            let rejected = |history: &[RawOperation], code| matches!(&history[one].outcome, Outcome::Ok(Reply::Rejected { code: is, .. }) if *is == code);
            let alike = |code| rejected(&history, code) && rejected(&operations, code);
            if history[one] == operations[one] || alike(404) || alike(422) {
                continue;
            }
            if let Ok(report) = kv::check(&history, Limits::default()) {
                assert!(!report.is_linearizable(), "{} {report}", history[one]);
                exchanged += 1;
            }
        }
    }
    assert!(exchanged > 100, "{exchanged}");
}
