//! The writer thread.

use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use skep_log::sim::Crash;
use skep_log::{
    LogError, LogHandle, LogOptions, LogWriter, Record, SimVfs, Stopped, WriterEvent, WriterOptions,
};

use crate::model::{Op, State, Workload, compaction, entries, key, open, open_with, small};

type Writer = (LogHandle<u64>, JoinHandle<()>, Receiver<WriterEvent<u64>>);

fn spawn(vfs: &SimVfs, options: LogOptions, sync_delay: Duration) -> Writer {
    let (log, _) = open_with(vfs, options).expect("a new log");
    let (events, received) = channel();
    let (handle, thread) = LogWriter::spawn(log, WriterOptions { sync_delay }, move |event| {
        events.send(event).expect("the test listens")
    })
    .expect("a thread");
    (handle, thread, received)
}

fn large_segments() -> LogOptions {
    LogOptions {
        segment_bytes: 16 << 20,
        fill_step: 1 << 20,
        ..small()
    }
}

// P-62
#[test]
fn a_thousand_records_of_many_groups_share_one_sync() {
    let vfs = SimVfs::new(1);
    let (handle, thread, events) = spawn(&vfs, large_segments(), Duration::ZERO);
    let before = handle.stats().syncs;
    let batch = (0..1000)
        .map(|number| {
            (
                entries(number % 128, number / 128 + 1..=number / 128 + 1, 64),
                number,
            )
        })
        .collect();
    handle.submit(batch).expect("running");
    let WriterEvent::Persisted(tokens) = events.recv().expect("an event") else {
        panic!("not persisted")
    };
    assert_eq!(tokens, (0..1000).collect::<Vec<_>>());
    assert_eq!(handle.stats().syncs - before, 1);
    assert_eq!(handle.stats().records, 1000);
    handle.stop();
    thread.join().expect("it ends");
    assert_eq!(
        open_with(&vfs, large_segments())
            .expect("it recovers")
            .1
            .groups
            .len(),
        128
    );
}

#[test]
fn a_sync_delay_gathers_submissions_and_ends_with_stop() {
    let vfs = SimVfs::new(1);
    let (handle, thread, events) = spawn(&vfs, large_segments(), Duration::from_secs(3600));
    for number in 1..=5 {
        handle
            .submit(vec![(entries(1, number..=number, 10), number)])
            .expect("running");
    }
    handle.stop();
    thread.join().expect("it ends");
    let WriterEvent::Persisted(tokens) = events.recv().expect("an event") else {
        panic!("not persisted")
    };
    assert_eq!(tokens, [1, 2, 3, 4, 5]);
    assert!(events.recv().is_err(), "one round took all");
}

#[test]
fn what_is_reported_survives_a_power_cut_at_that_moment() {
    let vfs = SimVfs::new(1);
    let disk = vfs.clone();
    let (log, _) = open(&vfs).expect("a new log");
    let (events, received) = channel();
    let (handle, thread) = LogWriter::spawn(log, WriterOptions::default(), move |event| {
        if let WriterEvent::Persisted(tokens) = event {
            let copy = disk.fork();
            copy.crash(Crash::LoseAll);
            let (_, recovered) = open(&copy).expect("it recovers");
            events
                .send((tokens, recovered.groups[0].entries.len() as u64))
                .expect("the test listens");
        }
    })
    .expect("a thread");
    for number in 1..=200 {
        handle
            .submit(vec![(entries(1, number..=number, 30), number)])
            .expect("running");
    }
    handle.stop();
    thread.join().expect("it ends");
    let mut last = 0;
    for (tokens, durable) in received {
        for token in tokens {
            assert_eq!(token, last + 1, "in order, none left out");
            last = token;
        }
        assert!(
            durable >= last,
            "{durable} durable when {last} were reported"
        );
    }
    assert_eq!(last, 200);
}

#[test]
fn a_failed_sync_ends_the_writer_without_a_false_report() {
    let vfs = SimVfs::new(1);
    let (handle, thread, events) = spawn(&vfs, large_segments(), Duration::ZERO);
    handle
        .submit(vec![(entries(1, 1..=1, 10), 1)])
        .expect("running");
    assert!(matches!(events.recv(), Ok(WriterEvent::Persisted(tokens)) if tokens == [1]));
    // The writer tidies up after an answer; every later call fails, whichever comes first.
    for call in vfs.calls() + 1..vfs.calls() + 200 {
        vfs.fail_call(call, ErrorKind::Other);
    }
    // The tidying may fail already, and then the queue is closed.
    let submitted = handle.submit(vec![(entries(1, 2..=2, 10), 2)]);
    assert!(
        matches!(
            events.recv(),
            Ok(WriterEvent::Poisoned {
                error: LogError::Io { .. }
            })
        ),
        "{submitted:?}"
    );
    assert_eq!(
        handle.submit(vec![(entries(1, 3..=3, 10), 3)]),
        Err(Stopped)
    );
    handle.clone().stop();
    thread.join().expect("it ends");
    assert!(events.recv().is_err(), "the failure was the last event");
}

#[test]
fn a_senseless_record_stops_its_group_alone() {
    let vfs = SimVfs::new(1);
    let (handle, thread, events) = spawn(&vfs, large_segments(), Duration::from_secs(3600));
    let batch = vec![
        (entries(1, 1..=1, 10), 1),
        (entries(1, 3..=3, 10), 2),
        (entries(2, 1..=1, 10), 3),
        (entries(1, 2..=2, 10), 4),
        (Record::tombstone(key(1)), 5),
    ];
    handle.submit(batch).expect("running");
    handle.stop();
    thread.join().expect("it ends");
    let mut persisted = Vec::new();
    let mut rejected = Vec::new();
    for event in events {
        match event {
            WriterEvent::Persisted(tokens) => persisted.extend(tokens),
            WriterEvent::Rejected { token, error } => {
                assert_eq!(error.code().name(), "log-invalid-record");
                rejected.push(token);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((persisted, rejected), (vec![1, 3, 5], vec![2, 4]));
}

// P-61
#[test]
fn the_writer_names_heavy_groups_and_keeps_the_log_small() {
    let vfs = SimVfs::new(1);
    let (handle, thread, events) = spawn(&vfs, small(), Duration::ZERO);
    let mut state = State::default();
    let mut heavy = Vec::new();
    let mut submit = |record: Record| {
        state.apply(&record);
        handle.submit(vec![(record, 0)]).expect("running");
        loop {
            match events.recv().expect("an answer") {
                WriterEvent::Persisted(_) => break,
                WriterEvent::Heavy(keys) => heavy.extend(keys),
                other => panic!("{other:?}"),
            }
        }
    };
    for index in 1..=20 {
        submit(entries(1, index..=index, 100));
    }
    for index in 1..=600 {
        submit(entries(2, index..=index, 100));
        if index % 10 == 0 {
            submit(compaction(2, index));
        }
    }
    let stats = handle.clone();
    handle.stop();
    thread.join().expect("it ends");
    assert!(
        !heavy.is_empty() && heavy.iter().all(|heavy| *heavy == key(1)),
        "{heavy:?}"
    );
    assert!(stats.stats().freed_segments > 10, "{:?}", stats.stats());
    assert_eq!(State::of(&open(&vfs).expect("it recovers").1), state);
}

#[test]
fn the_writer_ends_with_its_last_handle() {
    let vfs = SimVfs::new(1);
    let (handle, thread, events) = spawn(&vfs, small(), Duration::ZERO);
    let other = handle.clone();
    drop(handle);
    other
        .submit(vec![(entries(1, 1..=1, 10), 9)])
        .expect("one handle is left");
    drop(other);
    thread.join().expect("it ends");
    assert!(matches!(events.recv(), Ok(WriterEvent::Persisted(tokens)) if tokens == [9]));
}

#[test]
fn a_panicking_listener_leaves_nobody_waiting() {
    let (log, _) = open(&SimVfs::new(1)).expect("a new log");
    let (handle, thread) = LogWriter::spawn(log, WriterOptions::default(), |_: WriterEvent<()>| {
        panic!("planted")
    })
    .expect("a thread");
    handle
        .submit(vec![(entries(1, 1..=1, 10), ())])
        .expect("running");
    assert!(thread.join().is_err());
    assert_eq!(handle.submit(Vec::new()), Err(Stopped));
    handle.stop();
}

/// Submits a workload batch by batch, each when the one before is answered for, until the writer has failed. Gives the
/// numbers of records submitted and reported as durable, and whether the failure was reported.
fn submit_all(vfs: &SimVfs, batches: &[Vec<(Record, u64)>]) -> (u64, u64, bool) {
    let Ok((log, _)) = open(vfs) else {
        return (0, 0, true);
    };
    let (events, received) = channel();
    let (handle, thread) = LogWriter::spawn(log, WriterOptions::default(), move |event| {
        events.send(event).expect("the test listens")
    })
    .expect("a thread");
    let (mut submitted, mut durable, mut poisoned) = (0, 0, false);
    for batch in batches {
        let Some((_, last)) = batch.last() else {
            continue;
        };
        if handle.submit(batch.clone()).is_err() {
            break;
        }
        submitted = *last;
        while durable < submitted && !poisoned {
            match received.recv().expect("an answer") {
                WriterEvent::Persisted(tokens) => durable = *tokens.last().expect("a token"),
                WriterEvent::Heavy(_) => {}
                WriterEvent::Poisoned { .. } => poisoned = true,
                WriterEvent::Rejected { error, .. } => panic!("the workload is valid: {error}"),
            }
        }
        if poisoned {
            let refused = handle.submit(batch.clone());
            assert_eq!(refused, Err(Stopped), "it goes on after a failure");
            break;
        }
    }
    handle.stop();
    thread.join().expect("it ends");
    for event in received {
        assert!(!poisoned, "an event after the failure: {event:?}");
        match event {
            WriterEvent::Poisoned { .. } => poisoned = true,
            WriterEvent::Heavy(_) => {}
            other => panic!("nothing was submitted: {other:?}"),
        }
    }
    (submitted, durable, poisoned)
}

#[test]
fn whichever_call_fails_the_writer_reports_it_and_nothing_after_it() {
    let workload = Workload::random(31, 400);
    let mut batches = vec![Vec::new()];
    let mut records = 0;
    for op in &workload.ops {
        match op {
            Op::Append(record) => {
                records += 1;
                let batch = batches.last_mut().expect("there is one");
                batch.push((record.clone(), records));
            }
            Op::Sync => batches.push(Vec::new()),
            Op::Prepare | Op::Collect => {}
        }
    }
    let clean = SimVfs::new(1);
    assert_eq!(submit_all(&clean, &batches), (records, records, false));
    for call in 1..=clean.calls() {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            let vfs = SimVfs::new(call);
            vfs.fail_call(call, kind);
            let (submitted, durable, poisoned) = submit_all(&vfs, &batches);
            assert!(poisoned, "call {call} failed with {kind:?} in silence");
            for crash in [Crash::ProcessOnly, Crash::LoseAll, Crash::Subset(call)] {
                let disk = vfs.fork();
                disk.crash(crash);
                let (_, recovered) = open(&disk)
                    .unwrap_or_else(|error| panic!("call {call}, {kind:?}, {crash:?}: {error}"));
                let state = State::of(&recovered);
                let allowed = &workload.states[durable as usize..=submitted as usize];
                assert!(
                    allowed.contains(&state),
                    "call {call}, {kind:?}, {crash:?}: of {submitted} records {durable} were durable, found {state:#?}"
                );
            }
        }
    }
    println!(
        "{records} records in {} batches, {} calls failed in 2 ways",
        batches.len(),
        clean.calls()
    );
}
