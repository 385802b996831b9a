//! Tests of the engine with a scripted pipeline.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod fakes;
mod faults;
mod random;
mod support;

use diffusion_core::{Error, ErrorKind};

use fakes::{Outcome, Spec};
use support::{LIMIT, TestEngine};

fn kind(outcome: &Outcome) -> Option<ErrorKind> {
    outcome.as_ref().err().map(Error::kind)
}

#[test]
fn short_job_submitted_later_ends_first() {
    let engine_under_test = TestEngine::new(8);
    engine_under_test.submit(Spec::new(1, 6));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 2));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1, 2]);
    assert_eq!(engine_under_test.step(), [1, 2]);
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 2))));
    for _ in 0..3 {
        assert_eq!(engine_under_test.step(), [1]);
    }
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 6))));
    assert_eq!(
        engine_under_test.log.get().observed,
        [(1, 1), (2, 2), (2, 2), (1, 1), (1, 1), (1, 1)]
    );
    engine_under_test.end();
}

#[test]
fn jobs_of_one_shape_share_a_batch() {
    let mut engine_under_test = TestEngine::new(16);
    engine_under_test.submit(Spec::new(0, 1));
    assert_eq!(engine_under_test.called(), [0]);
    for (id, side) in [(1, 8), (2, 16), (3, 8), (4, 16)] {
        engine_under_test.submit(Spec::new(id, 1).batch_size(id).side(side));
    }
    engine_under_test.run();
    assert_eq!(engine_under_test.called(), [1, 3]);
    assert_eq!(engine_under_test.called(), [2, 4]);
    assert!(engine_under_test.answers(5).values().all(Result::is_ok));
    assert_eq!(engine_under_test.log.get().observed, [(1, 1), (2, 4), (2, 6)]);
    engine_under_test.end();
}

#[test]
fn jobs_are_grouped_by_the_shape_of_their_next_step() {
    let mut engine_under_test = TestEngine::new(16);
    engine_under_test.submit(Spec::new(0, 1));
    assert_eq!(engine_under_test.called(), [0]);
    for (id, interval) in [(1, 2), (2, 3), (3, 1)] {
        engine_under_test.submit(Spec::new(id, 4).interval(interval));
    }
    engine_under_test.run();
    // Every job takes one step in each round.
    let rounds: [&[&[usize]]; 4] = [&[&[1, 2, 3]], &[&[1, 2], &[3]], &[&[1, 3], &[2]], &[&[1], &[2, 3]]];
    for call in rounds.into_iter().flatten() {
        assert_eq!(engine_under_test.called(), *call);
    }
    assert!(engine_under_test.answers(4).values().all(Result::is_ok));
    engine_under_test.end();
}

#[test]
fn requests_submitted_together_start_together() {
    let mut engine_under_test = TestEngine::new(3);
    let (requests, _handles): (Vec<_>, Vec<_>) = (1..=4).map(|id| engine_under_test.request(Spec::new(id, 1))).unzip();
    let engine = engine_under_test.engine();
    // On another thread, because the fourth request waits for capacity.
    let submitting = std::thread::spawn(move || engine.submit(requests));
    assert_eq!(engine_under_test.called(), [1, 2, 3]);
    engine_under_test.run();
    assert_eq!(engine_under_test.called(), [4]);
    assert!(engine_under_test.answers(4).values().all(Result::is_ok));
    submitting.join().unwrap();
    engine_under_test.end();
}

#[test]
fn batch_never_exceeds_the_limit() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(0, 1));
    assert_eq!(engine_under_test.called(), [0]);
    // More entries than announced, so they are admitted together.
    for id in 1..4 {
        engine_under_test.submit(Spec::new(id, 1).entries(2));
    }
    engine_under_test.run();
    assert_eq!(engine_under_test.called(), [1, 2]);
    assert_eq!(engine_under_test.called(), [3]);
    assert!(engine_under_test.answers(4).values().all(Result::is_ok));
    engine_under_test.end();
}

#[test]
fn job_without_steps_is_finished_at_once() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.run();
    engine_under_test.submit(Spec::new(1, 0));
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 0))));
    assert_eq!(engine_under_test.log.get().calls, Vec::<Vec<usize>>::new());
    engine_under_test.end();
}

#[test]
fn submit_blocks_while_the_engine_is_full() {
    let engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(1, 2).batch_size(3));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit_to_full(Spec::new(2, 1).batch_size(2));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1], "2 has no room yet");
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 2))));
    assert_eq!(engine_under_test.step(), [2]);
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 1))));
    engine_under_test.end();
}

#[test]
fn request_larger_than_the_capacity_runs_alone() {
    let engine_under_test = TestEngine::new(2);
    engine_under_test.submit(Spec::new(1, 2));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit_to_full(Spec::new(2, 2).batch_size(5));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1]);
    assert_eq!(engine_under_test.answer().0, 1);
    assert_eq!(engine_under_test.called(), [2]);
    engine_under_test.submit_to_full(Spec::new(3, 1));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [2], "the capacity is too small for 3");
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 2))));
    assert_eq!(engine_under_test.step(), [3]);
    assert_eq!(engine_under_test.answer().0, 3);
    engine_under_test.end();
}

#[test]
fn request_cancelled_while_it_waits_is_rejected() {
    let engine_under_test = TestEngine::new(1);
    engine_under_test.submit(Spec::new(1, 1));
    assert_eq!(engine_under_test.called(), [1]);
    let waits = engine_under_test.submit_to_full(Spec::new(2, 1));
    waits.cancel();
    let (id, outcome) = engine_under_test.answer();
    assert_eq!((id, kind(&outcome)), (2, Some(ErrorKind::Cancelled)));
    engine_under_test.go();
    assert_eq!(engine_under_test.answer().0, 1);
    assert_eq!(engine_under_test.log.get().prepared, [1]);
    engine_under_test.end();
}

#[test]
fn request_cancelled_before_its_start_is_not_prepared() {
    let engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(1, 2));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 1)).cancel();
    engine_under_test.go();
    let (id, outcome) = engine_under_test.answer();
    assert_eq!((id, kind(&outcome)), (2, Some(ErrorKind::Cancelled)));
    assert_eq!(engine_under_test.step(), [1]);
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 2))));
    let log = engine_under_test.log.get();
    assert_eq!((log.started.as_slice(), log.prepared.as_slice()), (&[1][..], &[1][..]));
    assert_eq!(log.cancelled, 1);
    drop(log);
    engine_under_test.end();
}

#[test]
fn job_cancelled_while_it_runs_is_dropped_at_its_next_step() {
    let engine_under_test = TestEngine::new(2);
    let first = engine_under_test.submit(Spec::new(1, 100));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 3));
    engine_under_test.submit_to_full(Spec::new(3, 1));
    engine_under_test.go();
    assert_eq!(engine_under_test.called(), [1, 2]);
    first.cancel();
    engine_under_test.go();
    let (id, outcome) = engine_under_test.answer();
    assert_eq!((id, kind(&outcome)), (1, Some(ErrorKind::Cancelled)));
    // Its capacity is free: 3 is admitted now or in the next round.
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.extend(engine_under_test.step());
    }
    assert!(!seen.contains(&1) && seen.contains(&2), "{seen:?}");
    let mut engine_under_test = engine_under_test;
    engine_under_test.run();
    assert!(engine_under_test.answers(2).values().all(Result::is_ok));
    assert_eq!(engine_under_test.log.get().cancelled, 1);
    engine_under_test.end();
}

#[test]
fn shutdown_answers_all_requests() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(1, 100));
    engine_under_test.submit(Spec::new(2, 100).side(16));
    let _ = engine_under_test.called();
    engine_under_test.submit(Spec::new(3, 1));
    // The batch waits until the engine is being dropped; 3 is admitted and never taken.
    let engine = engine_under_test.engine.take().unwrap();
    let admission = std::sync::Arc::clone(&engine.admission);
    let dropped = std::thread::spawn(move || drop(engine));
    let start = std::time::Instant::now();
    while !admission.is_closed() {
        assert!(start.elapsed() < LIMIT, "the engine does not close");
        std::thread::yield_now();
    }
    engine_under_test.run();
    for (id, outcome) in engine_under_test.answers(3) {
        assert_eq!(kind(&outcome), Some(ErrorKind::Unavailable), "{id}: {outcome:?}");
    }
    dropped.join().unwrap();
    engine_under_test.ended();
    let log = engine_under_test.log.get();
    assert_eq!((log.jobs, log.batch_size, log.failed.len()), (0, 0, 0));
    assert!(!log.prepared.contains(&3));
}

#[test]
fn idle_engine_shuts_down() {
    TestEngine::new(1).end();
}

#[test]
fn handler_may_drop_the_last_handle_of_the_engine() {
    let mut engine_under_test = TestEngine::new(4);
    let engine = engine_under_test.engine.take().unwrap();
    let (sender, handles) = std::sync::mpsc::channel();
    let last = move || drop(handles.recv_timeout(LIMIT).unwrap());
    let (request, _) = engine_under_test.request_that(Spec::new(1, 1), Some(Box::new(last)));
    engine.submit([request]);
    assert_eq!(engine_under_test.called(), [1]);
    engine.submit([engine_under_test.request(Spec::new(2, 5)).0]);
    engine.submit([engine_under_test.request(Spec::new(3, 5)).0]);
    sender.send(engine).unwrap();
    engine_under_test.run();
    let answers = engine_under_test.answers(3);
    assert_eq!(answers[&1], Ok((1, 1)));
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Unavailable));
    assert_eq!(kind(&answers[&3]), Some(ErrorKind::Unavailable));
    engine_under_test.ended();
}
