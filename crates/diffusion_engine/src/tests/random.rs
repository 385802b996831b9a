//! Random scripts: every request is answered once, and jobs never have more entries than allowed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::fakes::{FailPoint, Fault, Spec};
use super::kind;
use super::support::TestEngine;
use diffusion_core::ErrorKind;

fn place() -> impl Strategy<Value = FailPoint> {
    prop::sample::select(vec![
        FailPoint::Prepare,
        FailPoint::Step,
        FailPoint::Batch,
        FailPoint::Finish,
    ])
}

fn spec() -> impl Strategy<Value = Spec> {
    let fault = prop::sample::select(vec![Fault::Error, Fault::OutOfMemory]);
    let faults = prop::option::weighted(0.2, (place(), fault));
    let cancel = prop::option::weighted(0.3, 0usize..8);
    (0usize..7, 1usize..6, 1i64..4, faults, cancel).prop_map(|(steps, batch_size, side, fault, cancel_after)| Spec {
        fault,
        cancel_after,
        ..Spec::new(0, steps).batch_size(batch_size).side(side)
    })
}

fn specs(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Spec>> {
    prop::collection::vec(spec(), count).prop_map(|mut specs| {
        for (id, spec) in specs.iter_mut().enumerate() {
            spec.id = id;
        }
        specs
    })
}

/// Submits the requests from several threads.
fn submit_all(engine_under_test: &TestEngine, specs: &[Spec], submitters: usize) {
    let mut shares: Vec<Vec<_>> = (0..submitters).map(|_| Vec::new()).collect();
    for spec in specs {
        shares[spec.id % submitters].push(engine_under_test.request(spec.clone()).0);
    }
    for share in shares {
        let engine = engine_under_test.engine();
        std::thread::spawn(move || share.into_iter().for_each(|request| engine.submit([request])));
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 300,
        failure_persistence: None,
        // A hanging case is slow, and threads do not fail twice in the same way.
        max_shrink_time: 10_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_request_is_answered_once(
        specs in specs(1..40),
        submitters in 1usize..5,
        max_batch_size in 1usize..9,
        memory_batch_size in 3usize..12,
    ) {
        let mut engine_under_test = TestEngine::with(max_batch_size, |pipeline, _| pipeline.memory_batch_size = memory_batch_size);
        engine_under_test.run();
        submit_all(&engine_under_test, &specs, submitters);
        let answers = engine_under_test.answers(specs.len());
        // A failed batch fails all its jobs.
        let unlucky = specs.iter().any(|spec| spec.fault == Some((FailPoint::Batch, Fault::Error)));
        for spec in &specs {
            let outcome = &answers[&spec.id];
            let expected = match kind(outcome) {
                None => {
                    *outcome == Ok((spec.id, spec.steps))
                        && spec.fault.is_none_or(|(place, _)| {
                            spec.steps == 0 && matches!(place, FailPoint::Step | FailPoint::Batch)
                        })
                }
                Some(ErrorKind::Cancelled) => spec.cancel_after.is_some(),
                Some(ErrorKind::InvalidArgument) => {
                    unlucky || matches!(spec.fault, Some((_, Fault::Error)))
                }
                Some(ErrorKind::Unavailable) => {
                    spec.batch_size > memory_batch_size || matches!(spec.fault, Some((_, Fault::OutOfMemory)))
                }
                Some(_) => false,
            };
            prop_assert!(expected, "{:?}: {:?}", spec, outcome);
        }
        prop_assert!(engine_under_test.log.get().failed.is_empty());
        engine_under_test.end();
    }

    #[test]
    fn panic_leaves_no_request_unanswered(
        specs in specs(2..25),
        victim in any::<prop::sample::Index>(),
        at in place(),
        submitters in 1usize..5,
        max_batch_size in 1usize..9,
    ) {
        let victim = victim.index(specs.len());
        let mut specs = specs;
        specs[victim] = Spec::new(victim, 2).side(9).fault(at, Fault::Panic);
        let mut engine_under_test = TestEngine::new(max_batch_size);
        engine_under_test.run();
        submit_all(&engine_under_test, &specs, submitters);
        let answers = engine_under_test.answers(specs.len());
        for (id, outcome) in &answers {
            let internal = kind(outcome) == Some(ErrorKind::Internal);
            prop_assert_eq!(internal, *id == victim, "{}: {:?}", id, outcome);
        }
        {
            let log = engine_under_test.log.get();
            prop_assert_eq!((log.restarts, log.failed.len()), (1, 0));
        }
        engine_under_test.submit(Spec::new(99, 1));
        prop_assert_eq!(engine_under_test.answer(), (99, Ok((99, 1))));
        engine_under_test.end();
    }

    #[test]
    fn shutdown_at_any_moment_answers_all_requests(
        specs in specs(1..20),
        max_batch_size in 8usize..100,
        after in 0u64..300,
    ) {
        let mut engine_under_test = TestEngine::new(max_batch_size);
        engine_under_test.run();
        submit_all(&engine_under_test, &specs, 1);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(after) {
            std::thread::yield_now();
        }
        // The submitting thread may hold the last handle, and then ends the engine.
        let engine = Arc::clone(engine_under_test.engine.as_ref().unwrap());
        engine_under_test.engine = None;
        drop(engine);
        let answers = engine_under_test.answers(specs.len());
        prop_assert!(answers.values().all(|outcome| kind(outcome) != Some(ErrorKind::Internal)));
        engine_under_test.ended();
        let log = engine_under_test.log.get();
        prop_assert_eq!((log.jobs, &log.wrong, &log.failed), (0, &vec![], &vec![]));
    }
}
