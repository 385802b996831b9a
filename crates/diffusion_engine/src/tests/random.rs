//! Whatever comes, each task is answered once and the room is never too full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::fake::{Fault, Place, Spec};
use super::kind;
use super::rig::Rig;
use diffusion_core::ErrorKind;

fn place() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![Place::Prepare, Place::Step, Place::Call, Place::Finish])
}

fn spec() -> impl Strategy<Value = Spec> {
    let fault = prop::sample::select(vec![Fault::Error, Fault::OutOfMemory]);
    let faults = prop::option::weighted(0.2, (place(), fault));
    let cancel = prop::option::weighted(0.3, 0usize..8);
    (0usize..7, 1usize..6, 1i64..4, faults, cancel).prop_map(|(steps, rows, side, fault, cancel_after)| Spec {
        fault,
        cancel_after,
        ..Spec::new(0, steps).rows(rows).side(side)
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

/// Submits the tasks from several threads.
fn submit_all(rig: &Rig, specs: &[Spec], submitters: usize) {
    let mut shares: Vec<Vec<_>> = (0..submitters).map(|_| Vec::new()).collect();
    for spec in specs {
        shares[spec.id % submitters].push(rig.task(spec.clone()).0);
    }
    for share in shares {
        let engine = rig.engine();
        std::thread::spawn(move || share.into_iter().for_each(|task| engine.submit([task])));
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 300,
        failure_persistence: None,
        // A case that hangs takes its time, and threads do not fail twice in the same way.
        max_shrink_time: 10_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_task_is_answered_once(
        specs in specs(1..40),
        submitters in 1usize..5,
        max_unet_batch_size in 1usize..9,
        memory_rows in 3usize..12,
    ) {
        let mut rig = Rig::with(max_unet_batch_size, |pipeline, _| pipeline.memory_rows = memory_rows);
        rig.run();
        submit_all(&rig, &specs, submitters);
        let answers = rig.answers(specs.len());
        // A call fails for whoever shares it.
        let unlucky = specs.iter().any(|spec| spec.fault == Some((Place::Call, Fault::Error)));
        for spec in &specs {
            let outcome = &answers[&spec.id];
            let expected = match kind(outcome) {
                None => {
                    *outcome == Ok((spec.id, spec.steps))
                        && spec.fault.is_none_or(|(place, _)| {
                            spec.steps == 0 && matches!(place, Place::Step | Place::Call)
                        })
                }
                Some(ErrorKind::Cancelled) => spec.cancel_after.is_some(),
                Some(ErrorKind::InvalidArgument) => {
                    unlucky || matches!(spec.fault, Some((_, Fault::Error)))
                }
                Some(ErrorKind::Unavailable) => {
                    spec.rows > memory_rows || matches!(spec.fault, Some((_, Fault::OutOfMemory)))
                }
                Some(_) => false,
            };
            prop_assert!(expected, "{:?}: {:?}", spec, outcome);
        }
        prop_assert!(rig.log.get().poisoned.is_empty());
        rig.end();
    }

    #[test]
    fn a_panic_among_many_leaves_nobody_without_an_answer(
        specs in specs(2..25),
        victim in any::<prop::sample::Index>(),
        at in place(),
        submitters in 1usize..5,
        max_unet_batch_size in 1usize..9,
    ) {
        let victim = victim.index(specs.len());
        let mut specs = specs;
        specs[victim] = Spec::new(victim, 2).side(9).fault(at, Fault::Panic);
        let mut rig = Rig::new(max_unet_batch_size);
        rig.run();
        submit_all(&rig, &specs, submitters);
        let answers = rig.answers(specs.len());
        for (id, outcome) in &answers {
            let internal = kind(outcome) == Some(ErrorKind::Internal);
            prop_assert_eq!(internal, *id == victim, "{}: {:?}", id, outcome);
        }
        prop_assert_eq!(rig.log.get().poisoned.len(), 1);
        rig.submit(Spec::new(99, 1));
        prop_assert_eq!(kind(&rig.answer().1), Some(ErrorKind::Unavailable));
        rig.end();
    }

    #[test]
    fn an_engine_that_ends_at_any_moment_answers_everybody(
        specs in specs(1..20),
        max_unet_batch_size in 8usize..100,
        after in 0u64..300,
    ) {
        let mut rig = Rig::new(max_unet_batch_size);
        rig.run();
        submit_all(&rig, &specs, 1);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(after) {
            std::thread::yield_now();
        }
        // The submitter may hold the engine still, and then it is the one that ends it.
        let engine = Arc::clone(rig.engine.as_ref().unwrap());
        rig.engine = None;
        drop(engine);
        let answers = rig.answers(specs.len());
        prop_assert!(answers.values().all(|outcome| kind(outcome) != Some(ErrorKind::Internal)));
        rig.ended();
        let log = rig.log.get();
        prop_assert_eq!((log.jobs, &log.wrong, &log.poisoned), (0, &vec![], &vec![]));
    }
}
