//! Tests of the engine with a scripted pipeline.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod fakes;
mod faults;
mod memory;
mod random;
mod support;

use std::time::{Duration, Instant};

use diffusion_core::{Error, ErrorKind};

use super::QueueLimits;
use super::queue::POLL_INTERVAL;
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
        [(0, 1, 1), (0, 2, 2), (0, 2, 2), (0, 1, 1), (0, 1, 1), (0, 1, 1)]
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
    assert_eq!(engine_under_test.log.get().observed, [(0, 1, 1), (0, 4, 4), (0, 6, 6)]);
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
    // All arrived at once with equal work, so the first comes first. Others of its shape join it.
    let batches: [&[usize]; 6] = [&[1, 2, 3], &[1, 2], &[1, 3], &[1, 2], &[2, 3], &[3]];
    for batch in batches {
        assert_eq!(engine_under_test.called(), batch);
    }
    assert!(engine_under_test.answers(4).values().all(Result::is_ok));
    engine_under_test.end();
}

#[test]
fn job_of_less_work_comes_first() {
    let mut engine_under_test = TestEngine::new(16);
    engine_under_test.submit(Spec::new(0, 1));
    assert_eq!(engine_under_test.called(), [0]);
    engine_under_test.submit(Spec::new(1, 3).side(16));
    engine_under_test.submit(Spec::new(2, 8));
    engine_under_test.run();
    // Both have waited equally long. A step of 1 costs as much as four steps of 2.
    for job in [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1] {
        assert_eq!(engine_under_test.called(), [job]);
    }
    assert!(engine_under_test.answers(3).values().all(Result::is_ok));
    engine_under_test.end();
}

#[test]
fn requests_submitted_together_start_together() {
    let mut engine_under_test = TestEngine::new(3);
    let (requests, _handles): (Vec<_>, Vec<_>) = (1..=4).map(|id| engine_under_test.request(Spec::new(id, 1))).unzip();
    engine_under_test.engine().submit(requests);
    assert_eq!(engine_under_test.called(), [1, 2, 3]);
    engine_under_test.run();
    assert_eq!(engine_under_test.called(), [4]);
    assert!(engine_under_test.answers(4).values().all(Result::is_ok));
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
fn request_waits_for_room() {
    let engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(1, 2).batch_size(3));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 1).batch_size(2));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1], "2 has no room yet");
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 2))));
    assert_eq!(engine_under_test.step(), [2]);
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 1))));
    engine_under_test.end();
}

#[test]
fn request_starts_as_soon_as_there_is_room() {
    let mut engine_under_test = TestEngine::new(1);
    engine_under_test.run();
    let requests = 200;
    let begin = Instant::now();
    for id in 0..requests {
        engine_under_test.submit(Spec::new(id, 1));
    }
    assert_eq!(engine_under_test.answers(requests).len(), requests);
    // The engine never waits for a notice between two of them.
    let polled = POLL_INTERVAL * requests as u32;
    assert!(begin.elapsed() < polled / 2, "{:?}", begin.elapsed());
    engine_under_test.end();
}

#[test]
fn short_request_passes_a_wide_one_that_waits() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(1, 100));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 2).batch_size(4));
    engine_under_test.submit(Spec::new(3, 2));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1, 3]);
    assert_eq!(engine_under_test.step(), [1, 3]);
    assert_eq!(engine_under_test.answer().0, 3);
    engine_under_test.run();
    assert_eq!(engine_under_test.answer().0, 1);
    assert_eq!(engine_under_test.answer().0, 2);
    engine_under_test.end();
}

#[test]
fn request_is_passed_by_as_much_work_as_it_asks_for() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(0, 4));
    assert_eq!(engine_under_test.called(), [0]);
    // It asks for 12 entries and steps, and then keeps the room.
    engine_under_test.submit(Spec::new(1, 3).batch_size(4));
    for id in 2..20 {
        engine_under_test.submit(Spec::new(id, 13));
    }
    engine_under_test.run();
    let order: Vec<usize> = (0..20).map(|_| engine_under_test.answer().0).collect();
    let place = order.iter().position(|&id| id == 1);
    // Three fit next to the first, with 39 entries and steps.
    assert_eq!(place, Some(4), "{order:?}");
    engine_under_test.end();
}

#[test]
fn short_request_passes_wide_ones_that_fit_before_it() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(0, 2).batch_size(4));
    assert_eq!(engine_under_test.called(), [0]);
    for id in 1..=5 {
        engine_under_test.submit(Spec::new(id, 3).batch_size(4));
    }
    engine_under_test.submit(Spec::new(6, 1));
    engine_under_test.run();
    let order: Vec<usize> = (0..7).map(|_| engine_under_test.answer().0).collect();
    assert_eq!(order, [0, 6, 1, 2, 3, 4, 5]);
    engine_under_test.end();
}

#[test]
fn wide_requests_do_not_starve_one_another() {
    let mut engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(0, 40));
    assert_eq!(engine_under_test.called(), [0]);
    for id in 1..=10 {
        engine_under_test.submit(Spec::new(id, 3).batch_size(4));
    }
    engine_under_test.submit(Spec::new(11, 2));
    engine_under_test.run();
    let order: Vec<usize> = (0..12).map(|_| engine_under_test.answer().0).collect();
    assert_eq!(order, [11, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    engine_under_test.end();
}

#[test]
fn submit_blocks_while_the_queue_is_full() {
    for (max_requests, max_bytes) in [(2, usize::MAX), (100, 2)] {
        let limits = QueueLimits {
            max_requests,
            max_bytes,
        };
        let engine_under_test = TestEngine::with_limits(1, limits, |_, _| {});
        engine_under_test.submit(Spec::new(1, 2));
        assert_eq!(engine_under_test.called(), [1]);
        engine_under_test.submit(Spec::new(2, 1));
        engine_under_test.submit(Spec::new(3, 1));
        engine_under_test.submit_to_full(Spec::new(4, 1));
        let cancelled = engine_under_test.submit_to_full(Spec::new(5, 1));
        cancelled.cancel();
        let (id, outcome) = engine_under_test.answer();
        assert_eq!((id, kind(&outcome)), (5, Some(ErrorKind::Cancelled)));
        let late = engine_under_test.submit_to_full(Spec::new(6, 1).limit(Duration::from_millis(60)));
        let (id, outcome) = engine_under_test.answer();
        assert_eq!(id, 6);
        assert!(matches!(outcome, Err(Error::DeadlineExceeded(_))), "{outcome:?}");
        drop(late);
        engine_under_test.go();
        for id in [1, 2, 3, 4] {
            assert_eq!(engine_under_test.step(), [id]);
            assert_eq!(engine_under_test.answer().0, id);
        }
        engine_under_test.end();
    }
}

#[test]
fn request_larger_than_the_queue_is_accepted() {
    let limits = QueueLimits {
        max_requests: 0,
        max_bytes: 0,
    };
    let mut engine_under_test = TestEngine::with_limits(1, limits, |_, _| {});
    engine_under_test.run();
    engine_under_test.submit(Spec::new(1, 1));
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 1))));
    engine_under_test.end();
}

#[test]
fn request_larger_than_the_capacity_runs_alone() {
    let engine_under_test = TestEngine::new(2);
    engine_under_test.submit(Spec::new(1, 2));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 2).batch_size(5));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1]);
    assert_eq!(engine_under_test.answer().0, 1);
    assert_eq!(engine_under_test.called(), [2]);
    engine_under_test.submit(Spec::new(3, 1));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [2], "the capacity is too small for 3");
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 2))));
    assert_eq!(engine_under_test.step(), [3]);
    assert_eq!(engine_under_test.answer().0, 3);
    engine_under_test.end();
}

#[test]
fn deadline_of_a_waiting_request_passes() {
    let engine_under_test = TestEngine::new(1);
    engine_under_test.submit(Spec::new(1, 2));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 1).limit(Duration::from_millis(5)));
    std::thread::sleep(Duration::from_millis(10));
    engine_under_test.go();
    let error = Error::deadline_exceeded("the time limit of 0.005 s passed while the request waited");
    assert_eq!(engine_under_test.answer(), (2, Err(error)));
    assert_eq!(engine_under_test.step(), [1]);
    assert_eq!(engine_under_test.answer().0, 1);
    let log = engine_under_test.log.get();
    assert_eq!(log.prepared, [1]);
    drop(log);
    engine_under_test.end();
}

#[test]
fn deadline_of_a_running_job_passes_between_steps() {
    let engine_under_test = TestEngine::new(4);
    engine_under_test.submit(Spec::new(1, 3));
    engine_under_test.submit(Spec::new(2, 9).limit(Duration::from_millis(200)));
    let mut first = engine_under_test.step();
    // 2 may come after the first step of 1.
    let mut taken = 0;
    while taken < 2 {
        taken += usize::from(first.contains(&2));
        if taken < 2 {
            first = engine_under_test.step();
        }
    }
    std::thread::sleep(Duration::from_millis(210));
    let mut engine_under_test = engine_under_test;
    engine_under_test.run();
    let answers = engine_under_test.answers(2);
    assert_eq!(answers[&1], Ok((1, 3)));
    let error = answers[&2].as_ref().map_err(Error::to_string);
    let error = error.err().unwrap_or_default();
    assert!(error.starts_with("the time limit of 0.200 s passed after "), "{error}");
    assert!(error.ends_with(" of 9 UNet calls"), "{error}");
    engine_under_test.end();
}

#[test]
fn request_cancelled_while_it_waits_is_answered() {
    let mut engine_under_test = TestEngine::new(1);
    engine_under_test.submit(Spec::new(1, 2));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 1)).cancel();
    engine_under_test.go();
    let (id, outcome) = engine_under_test.answer();
    assert_eq!((id, kind(&outcome)), (2, Some(ErrorKind::Cancelled)));
    engine_under_test.run();
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
    drop(log);
    engine_under_test.end();
}

#[test]
fn job_cancelled_while_it_runs_is_dropped_at_its_next_step() {
    let engine_under_test = TestEngine::new(2);
    let first = engine_under_test.submit(Spec::new(1, 100));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 3));
    engine_under_test.submit(Spec::new(3, 4));
    engine_under_test.go();
    assert_eq!(engine_under_test.called(), [1, 2]);
    first.cancel();
    engine_under_test.go();
    let (id, outcome) = engine_under_test.answer();
    assert_eq!((id, kind(&outcome)), (1, Some(ErrorKind::Cancelled)));
    // There is room for 3 now.
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.extend(engine_under_test.step());
    }
    assert!(!seen.contains(&1) && seen.contains(&2), "{seen:?}");
    let mut engine_under_test = engine_under_test;
    engine_under_test.run();
    assert!(engine_under_test.answers(2).values().all(Result::is_ok));
    engine_under_test.end();
}

#[test]
fn dropped_engine_computes_the_requests_that_it_has() {
    let mut engine_under_test = TestEngine::new(2);
    engine_under_test.submit(Spec::new(1, 3));
    let _ = engine_under_test.called();
    engine_under_test.submit(Spec::new(2, 3).side(16));
    engine_under_test.submit(Spec::new(3, 1));
    // The batch waits until the engine is being dropped.
    let engine = engine_under_test.engine.take().unwrap();
    let queue = std::sync::Arc::clone(&engine.queue);
    let dropped = std::thread::spawn(move || drop(engine));
    let start = std::time::Instant::now();
    while !queue.is_closed() {
        assert!(start.elapsed() < LIMIT, "the engine does not close");
        std::thread::yield_now();
    }
    engine_under_test.run();
    assert!(engine_under_test.answers(3).values().all(Result::is_ok));
    dropped.join().unwrap();
    engine_under_test.ended();
    let log = engine_under_test.log.get();
    assert_eq!((log.jobs, log.batch_size, log.failed.len()), (0, 0, 0));
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
    assert!(answers.values().all(Result::is_ok), "{answers:?}");
    engine_under_test.ended();
}

#[test]
fn handler_is_told_of_its_position_and_its_steps() {
    let mut engine_under_test = TestEngine::new(1);
    engine_under_test.submit(Spec::new(1, 3));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 3));
    engine_under_test.submit(Spec::new(3, 3));
    engine_under_test.run();
    assert_eq!(engine_under_test.answers(3).len(), 3);
    let log = engine_under_test.log.get();
    assert_eq!(
        log.steps,
        [(1, 1, 3), (1, 2, 3), (2, 1, 3), (2, 2, 3), (3, 1, 3), (3, 2, 3)]
    );
    let of = |id: usize| {
        log.positions
            .iter()
            .filter(move |(of, _)| *of == id)
            .map(|(_, position)| *position)
    };
    assert_eq!(of(1).count(), 0, "it never waits");
    assert!(of(2).all(|position| position == 0) && of(2).count() > 0);
    let third: Vec<usize> = of(3).collect();
    assert!(third.contains(&1) && third.ends_with(&[0]), "{third:?}");
    drop(log);
    engine_under_test.end();
}

#[test]
fn batch_of_two_owners_is_reported_to_each_once() {
    let mut engine_under_test = TestEngine::new(8);
    engine_under_test.submit(Spec::new(0, 1).side(32));
    assert_eq!(engine_under_test.called(), [0]);
    for (id, owner) in [(1, 0), (2, 1), (3, 0)] {
        engine_under_test.submit(Spec::new(id, 1).batch_size(id).owner(owner));
    }
    engine_under_test.run();
    assert_eq!(engine_under_test.answers(4).len(), 4);
    let observed = engine_under_test.log.get().observed.clone();
    assert!(
        observed.contains(&(0, 4, 6)) && observed.contains(&(1, 2, 6)),
        "{observed:?}"
    );
    assert_eq!(observed.iter().filter(|(_, _, size)| *size == 6).count(), 2);
    engine_under_test.end();
}

#[test]
fn owner_whose_places_are_taken_keeps_out_no_other_owner() {
    let limits = QueueLimits {
        max_requests: 1,
        max_bytes: usize::MAX,
    };
    let mut engine_under_test = TestEngine::with_limits(1, limits, |_, _| {});
    engine_under_test.submit(Spec::new(1, 2));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 1));
    engine_under_test.submit_to_full(Spec::new(3, 1));
    // Would block.
    engine_under_test.submit(Spec::new(4, 1).owner(1));
    engine_under_test.run();
    assert_eq!(engine_under_test.answers(4).len(), 4);
    engine_under_test.end();
}
