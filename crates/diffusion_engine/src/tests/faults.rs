//! Faults: errors stay with their job; a panic makes the engine start anew.

use super::super::QueueLimits;
use super::fakes::{FailPoint, Fault, Spec};
use super::kind;
use super::support::{LIMIT, TestEngine};
use diffusion_core::{Error, ErrorKind};

/// Makes the engine execute a batch of job 0, whose shape no other job has. What is submitted next is then admitted
/// together.
fn busy(engine_under_test: TestEngine) -> TestEngine {
    engine_under_test.submit(Spec::new(0, 2).side(32));
    assert_eq!(engine_under_test.called(), [0]);
    engine_under_test
}

#[test]
fn error_of_a_job_fails_it_alone() {
    for place in [FailPoint::Prepare, FailPoint::Step, FailPoint::Finish] {
        let mut engine_under_test = busy(TestEngine::new(8));
        engine_under_test.submit(Spec::new(1, 2));
        engine_under_test.submit(Spec::new(2, 2).fault(place, Fault::Error));
        engine_under_test.submit(Spec::new(3, 2));
        engine_under_test.run();
        let answers = engine_under_test.answers(4);
        assert_eq!(answers[&0], Ok((0, 2)), "{place:?}");
        assert_eq!(answers[&1], Ok((1, 2)), "{place:?}");
        assert_eq!(answers[&2], Err(Error::invalid_argument("planned")), "{place:?}");
        assert_eq!(answers[&3], Ok((3, 2)), "{place:?}");
        let shared = engine_under_test.log.get().calls.contains(&vec![1, 2, 3]);
        assert_eq!(shared, place != FailPoint::Prepare, "{place:?}");
        assert!(engine_under_test.log.get().freed_memory.is_empty(), "{place:?}");
        engine_under_test.end();
    }
}

#[test]
fn failed_batch_fails_all_its_jobs() {
    let mut engine_under_test = busy(TestEngine::new(8));
    engine_under_test.submit(Spec::new(1, 2));
    engine_under_test.submit(Spec::new(2, 2).fault(FailPoint::Batch, Fault::Error));
    engine_under_test.run();
    let answers = engine_under_test.answers(3);
    assert_eq!(answers[&0], Ok((0, 2)));
    assert_eq!(answers[&1], Err(Error::invalid_argument("planned")));
    assert_eq!(answers[&2], Err(Error::invalid_argument("planned")));
    // Failed batches are not counted.
    assert_eq!(engine_under_test.log.get().observed, [(0, 1, 1), (0, 1, 1)]);
    engine_under_test.end();
}

#[test]
fn batch_out_of_memory_is_run_one_by_one() {
    let mut engine_under_test = busy(TestEngine::with(8, |pipeline, _| pipeline.memory_batch_size = 3));
    engine_under_test.submit(Spec::new(1, 1).batch_size(2));
    engine_under_test.submit(Spec::new(2, 1).batch_size(3));
    engine_under_test.run();
    let answers = engine_under_test.answers(3);
    assert_eq!((&answers[&1], &answers[&2]), (&Ok((1, 1)), &Ok((2, 1))));
    let log = engine_under_test.log.get();
    let calls: Vec<_> = log.calls.iter().filter(|call| **call != [0]).collect();
    assert_eq!(calls, [&vec![1, 2], &vec![1], &vec![2]]);
    assert_eq!(log.freed_memory.len(), 1);
    drop(log);
    engine_under_test.end();
}

#[test]
fn job_out_of_memory_fails_alone() {
    let mut engine_under_test = busy(TestEngine::new(8));
    engine_under_test.submit(Spec::new(1, 2));
    engine_under_test.submit(Spec::new(2, 2).fault(FailPoint::Batch, Fault::OutOfMemory));
    engine_under_test.submit(Spec::new(3, 2));
    engine_under_test.run();
    let answers = engine_under_test.answers(4);
    assert_eq!(answers[&1], Ok((1, 2)));
    assert_eq!(answers[&2], Err(Error::out_of_memory("planned")));
    assert_eq!(answers[&3], Ok((3, 2)));
    engine_under_test.submit(Spec::new(4, 1));
    assert_eq!(engine_under_test.answer(), (4, Ok((4, 1))));
    engine_under_test.end();
}

#[test]
fn memory_is_freed_before_the_response() {
    for place in [FailPoint::Prepare, FailPoint::Step, FailPoint::Batch, FailPoint::Finish] {
        let mut engine_under_test = TestEngine::new(8);
        engine_under_test.run();
        let log = engine_under_test.log.clone();
        let check = move || {
            let mut log = log.get();
            if log.freed_memory.last() != Some(&0) {
                let text = format!("{place:?}: freed_memory with {:?} jobs", log.freed_memory);
                log.wrong.push(text);
            }
        };
        let spec = Spec::new(1, 1).fault(place, Fault::OutOfMemory);
        engine_under_test
            .engine()
            .submit([engine_under_test.request_that(spec, Some(Box::new(check))).0]);
        assert_eq!(
            engine_under_test.answer(),
            (1, Err(Error::out_of_memory("planned"))),
            "{place:?}"
        );
        engine_under_test.submit(Spec::new(2, 1));
        assert_eq!(engine_under_test.answer(), (2, Ok((2, 1))), "{place:?}");
        engine_under_test.end();
    }
}

/// Injects a panic of job 2 at `place` while other requests run, were just admitted, and wait.
fn panic_at(place: FailPoint, victim: Spec) {
    let mut engine_under_test = busy(TestEngine::new(4));
    engine_under_test.submit(Spec::new(1, 9).side(16));
    engine_under_test.submit(victim.fault(place, Fault::Panic));
    engine_under_test.submit(Spec::new(3, 9).side(16));
    engine_under_test.submit(Spec::new(4, 9).side(16));
    engine_under_test.run();
    for _ in 0..5 {
        let answer = engine_under_test.raw_answer();
        let (id, after_failure) = (answer.id, answer.after_failure);
        let outcome = answer
            .outcome
            .unwrap_or_else(|| panic!("{place:?}: {id} got no answer"));
        match (id, place) {
            // The panic comes after the result.
            (2, FailPoint::Send) => assert_eq!(outcome, Ok((2, 1))),
            (2, _) => {
                assert_eq!(kind(&outcome), Some(ErrorKind::Internal), "{place:?}: {outcome:?}");
                assert!(after_failure, "{place:?}: the report must not lag behind the answer");
            }
            _ => {
                let expected = outcome.is_ok() || kind(&outcome) == Some(ErrorKind::Unavailable);
                assert!(expected, "{place:?}: {id} {outcome:?}");
            }
        }
    }
    engine_under_test.submit(Spec::new(5, 1));
    assert_eq!(engine_under_test.answer(), (5, Ok((5, 1))), "{place:?}");
    let log = engine_under_test.log.get();
    assert_eq!((log.restarts, log.failed.len()), (1, 0), "{place:?}");
    drop(log);
    engine_under_test.end();
}

#[test]
fn panic_restarts_the_engine_and_answers_all_requests() {
    for place in [
        FailPoint::Prepare,
        FailPoint::BatchEntries,
        FailPoint::Step,
        FailPoint::IsDone,
        FailPoint::Finish,
        FailPoint::IsCancelled,
        FailPoint::OnStart,
        FailPoint::Send,
    ] {
        panic_at(place, Spec::new(2, 1));
    }
}

#[test]
fn panic_of_a_handler_that_is_told_its_position_fails_its_request() {
    let mut engine_under_test = busy(TestEngine::new(1));
    for id in [1, 2, 3] {
        let spec = Spec::new(id, 1);
        engine_under_test.submit(match id {
            2 => spec.fault(FailPoint::OnWait, Fault::Panic),
            _ => spec,
        });
    }
    engine_under_test.run();
    let answers = engine_under_test.answers(4);
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Internal));
    assert_eq!(kind(&answers[&0]), Some(ErrorKind::Unavailable), "it ran");
    assert_eq!([&answers[&1], &answers[&3]], [&Ok((1, 1)), &Ok((3, 1))]);
    engine_under_test.end();
}

#[test]
fn panic_of_a_handler_that_is_told_of_a_step_restarts_the_engine() {
    panic_at(FailPoint::OnStep, Spec::new(2, 2));
}

#[test]
fn panic_of_a_preview_restarts_the_engine() {
    panic_at(FailPoint::Preview, Spec::new(2, 2));
}

#[test]
fn panic_of_a_dropped_job_restarts_the_engine() {
    // Cancelled while it runs: asked while it waits, then before its first step.
    panic_at(
        FailPoint::DropJob,
        Spec {
            cancel_after: Some(1),
            ..Spec::new(2, 9)
        },
    );
}

#[test]
fn panic_leaves_waiting_requests_as_they_are() {
    let mut engine_under_test = busy(TestEngine::new(1));
    engine_under_test.submit(Spec::new(1, 2).fault(FailPoint::Step, Fault::Panic));
    for id in 2..6 {
        engine_under_test.submit(Spec::new(id, 2));
    }
    engine_under_test.run();
    let answers = engine_under_test.answers(6);
    assert_eq!(kind(&answers[&1]), Some(ErrorKind::Internal));
    for id in 2..6 {
        assert_eq!(answers[&id], Ok((id, 2)));
    }
    engine_under_test.end();
}

#[test]
fn panics_without_a_computed_request_between_them_end_the_engine() {
    let mut engine_under_test = busy(TestEngine::new(1));
    engine_under_test.run();
    assert_eq!(engine_under_test.answer().0, 0);
    for (id, fault) in [Some(()), Some(()), None, Some(()), Some(()), Some(())]
        .into_iter()
        .enumerate()
    {
        let spec = Spec::new(id, 1);
        engine_under_test.submit(match fault {
            Some(()) => spec.fault(FailPoint::Step, Fault::Panic),
            None => spec,
        });
        let outcome = engine_under_test.answer().1;
        assert_eq!(kind(&outcome), fault.map(|()| ErrorKind::Internal), "{id}");
    }
    engine_under_test.submit(Spec::new(9, 1));
    assert_eq!(kind(&engine_under_test.answer().1), Some(ErrorKind::Unavailable));
    let log = engine_under_test.log.get();
    assert_eq!((log.restarts, log.failed.len()), (4, 1));
    drop(log);
    engine_under_test.end();
}

#[test]
fn panic_of_a_batch_fails_all_its_jobs() {
    let mut engine_under_test = busy(TestEngine::new(8));
    engine_under_test.submit(Spec::new(1, 2));
    engine_under_test.submit(Spec::new(2, 2).fault(FailPoint::Batch, Fault::Panic));
    engine_under_test.submit(Spec::new(3, 9).side(16));
    engine_under_test.run();
    let answers = engine_under_test.answers(4);
    assert_eq!(kind(&answers[&1]), Some(ErrorKind::Internal));
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Internal));
    assert_eq!(kind(&answers[&3]), Some(ErrorKind::Unavailable));
    engine_under_test.end();
}

#[test]
fn panic_while_memory_is_freed_restarts_the_engine() {
    let mut engine_under_test = busy(TestEngine::with(8, |pipeline, _| pipeline.free_memory_panics = true));
    engine_under_test.submit(Spec::new(1, 9));
    engine_under_test.submit(Spec::new(2, 9).fault(FailPoint::Prepare, Fault::OutOfMemory));
    engine_under_test.submit(Spec::new(3, 9));
    engine_under_test.run();
    let answers = engine_under_test.answers(4);
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Internal));
    for id in [0, 1] {
        assert_eq!(kind(&answers[&id]), Some(ErrorKind::Unavailable), "{id}");
    }
    assert_eq!(answers[&3], Ok((3, 9)));
    engine_under_test.end();
}

#[test]
fn panicking_observer_leaves_no_request_unanswered() {
    let mut engine_under_test = busy(TestEngine::with(2, |_, observer| observer.panics = true));
    engine_under_test.submit(Spec::new(1, 1).fault(FailPoint::Prepare, Fault::Panic));
    engine_under_test.submit(Spec::new(2, 1));
    engine_under_test.run();
    let answers = engine_under_test.answers(3);
    assert_eq!(kind(&answers[&1]), Some(ErrorKind::Internal));
    assert_eq!(answers[&2], Ok((2, 1)));
    engine_under_test.end();
}

#[test]
fn panicking_handlers_leave_no_request_unanswered() {
    let mut engine_under_test = busy(TestEngine::new(8));
    engine_under_test.submit(Spec::new(1, 9).fault(FailPoint::Send, Fault::Panic));
    engine_under_test.submit(Spec::new(2, 9).fault(FailPoint::DropJob, Fault::Panic));
    engine_under_test.submit(Spec::new(3, 9).fault(FailPoint::Prepare, Fault::Panic));
    engine_under_test.submit(Spec::new(4, 9).fault(FailPoint::Send, Fault::Panic));
    engine_under_test.submit(Spec::new(5, 9));
    engine_under_test.run();
    let answers = engine_under_test.answers(6);
    assert_eq!(kind(&answers[&3]), Some(ErrorKind::Internal));
    for id in [0, 1, 2, 5] {
        assert_eq!(kind(&answers[&id]), Some(ErrorKind::Unavailable), "{id}");
    }
    // It waited during the first panic, and panicked after its result.
    assert_eq!(answers[&4], Ok((4, 9)));
    engine_under_test.end();
}

#[test]
fn failed_init_thread_rejects_all_requests() {
    for (fault, code) in [
        (Fault::Error, ErrorKind::Internal),
        (Fault::Panic, ErrorKind::Unavailable),
    ] {
        let engine_under_test = TestEngine::with(4, |pipeline, _| pipeline.init_thread = Some(fault));
        // Either before the failure or after it.
        for id in 0..3 {
            engine_under_test.submit(Spec::new(id, 1));
            let (answered, outcome) = engine_under_test.answer();
            assert_eq!((answered, kind(&outcome)), (id, Some(code)), "{fault:?}");
        }
        assert_eq!(engine_under_test.log.get().failed.len(), 1, "{fault:?}");
        assert!(engine_under_test.log.get().prepared.is_empty(), "{fault:?}");
        engine_under_test.end();
    }
}

#[test]
fn panicking_handler_that_waits_for_a_place_does_not_stop_the_engine() {
    let limits = QueueLimits {
        max_requests: 1,
        max_bytes: usize::MAX,
    };
    let mut engine_under_test = TestEngine::with_limits(1, limits, |_, _| {});
    engine_under_test.submit(Spec::new(1, 1));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(4, 1));
    let (request, _) = engine_under_test.request(Spec::new(2, 1).fault(FailPoint::IsCancelled, Fault::Panic));
    let engine = engine_under_test.engine();
    let (done, submitted) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.submit([request])));
        drop(engine);
        let _ = done.send(panicked.is_err());
    });
    assert_eq!(submitted.recv_timeout(LIMIT), Ok(true));
    // The panic is on the thread that submits, which drops the handler.
    assert_eq!(engine_under_test.raw_answer().id, 2);
    engine_under_test.run();
    assert_eq!(engine_under_test.answer(), (1, Ok((1, 1))));
    assert_eq!(engine_under_test.answer(), (4, Ok((4, 1))));
    engine_under_test.submit(Spec::new(3, 1));
    assert_eq!(engine_under_test.answer(), (3, Ok((3, 1))));
    engine_under_test.end();
}
