//! What goes wrong concerns nobody else, unless it is a panic.

use super::fake::{Fault, Place, Spec};
use super::kind;
use super::rig::{LIMIT, Rig};
use diffusion_core::{Error, ErrorKind};

/// A rig whose engine is in the call of a job 0 of one more step, of a shape of its own; so what is
/// submitted next is taken in one piece.
fn busy(rig: Rig) -> Rig {
    rig.submit(Spec::new(0, 2).side(32));
    assert_eq!(rig.called(), [0]);
    rig
}

#[test]
fn an_error_fails_its_job_alone() {
    for place in [Place::Prepare, Place::Step, Place::Finish] {
        let mut rig = busy(Rig::new(8));
        rig.submit(Spec::new(1, 2));
        rig.submit(Spec::new(2, 2).fault(place, Fault::Error));
        rig.submit(Spec::new(3, 2));
        rig.run();
        let answers = rig.answers(4);
        assert_eq!(answers[&0], Ok((0, 2)), "{place:?}");
        assert_eq!(answers[&1], Ok((1, 2)), "{place:?}");
        assert_eq!(answers[&2], Err(Error::invalid_argument("planned")), "{place:?}");
        assert_eq!(answers[&3], Ok((3, 2)), "{place:?}");
        let shared = rig.log.get().calls.contains(&vec![1, 2, 3]);
        assert_eq!(shared, place != Place::Prepare, "{place:?}");
        assert!(rig.log.get().relieved.is_empty(), "{place:?}");
        rig.end();
    }
}

#[test]
fn a_failed_call_fails_whoever_shared_it() {
    let mut rig = busy(Rig::new(8));
    rig.submit(Spec::new(1, 2));
    rig.submit(Spec::new(2, 2).fault(Place::Call, Fault::Error));
    rig.run();
    let answers = rig.answers(3);
    assert_eq!(answers[&0], Ok((0, 2)));
    assert_eq!(answers[&1], Err(Error::invalid_argument("planned")));
    assert_eq!(answers[&2], Err(Error::invalid_argument("planned")));
    // Only what was done is counted.
    assert_eq!(rig.log.get().observed, [(1, 1), (1, 1)]);
    rig.end();
}

#[test]
fn a_shared_call_without_memory_is_made_one_by_one() {
    let mut rig = busy(Rig::with(8, |pipeline, _| pipeline.memory_rows = 3));
    rig.submit(Spec::new(1, 1).rows(2));
    rig.submit(Spec::new(2, 1).rows(3));
    rig.run();
    let answers = rig.answers(3);
    assert_eq!((&answers[&1], &answers[&2]), (&Ok((1, 1)), &Ok((2, 1))));
    let log = rig.log.get();
    assert_eq!(log.calls, [vec![0], vec![0], vec![1, 2], vec![1], vec![2]]);
    assert_eq!(log.relieved, [3]);
    drop(log);
    rig.end();
}

#[test]
fn a_job_without_memory_of_its_own_fails_alone() {
    let mut rig = busy(Rig::new(8));
    rig.submit(Spec::new(1, 2));
    rig.submit(Spec::new(2, 2).fault(Place::Call, Fault::OutOfMemory));
    rig.submit(Spec::new(3, 2));
    rig.run();
    let answers = rig.answers(4);
    assert_eq!(answers[&1], Ok((1, 2)));
    assert_eq!(answers[&2], Err(Error::out_of_memory("planned")));
    assert_eq!(answers[&3], Ok((3, 2)));
    rig.submit(Spec::new(4, 1));
    assert_eq!(rig.answer(), (4, Ok((4, 1))));
    rig.end();
}

#[test]
fn memory_goes_back_before_the_answer() {
    for place in [Place::Prepare, Place::Step, Place::Call, Place::Finish] {
        let mut rig = Rig::new(8);
        rig.run();
        let log = rig.log.clone();
        let check = move || {
            let mut log = log.get();
            if log.relieved.last() != Some(&0) {
                let text = format!("{place:?}: relieved with {:?} jobs", log.relieved);
                log.wrong.push(text);
            }
        };
        let spec = Spec::new(1, 1).fault(place, Fault::OutOfMemory);
        rig.engine().submit([rig.task_that(spec, Some(Box::new(check))).0]);
        assert_eq!(rig.answer(), (1, Err(Error::out_of_memory("planned"))), "{place:?}");
        rig.submit(Spec::new(2, 1));
        assert_eq!(rig.answer(), (2, Ok((2, 1))), "{place:?}");
        rig.end();
    }
}

/// A panic of job 2 at `place`, with others in flight, just taken and at the door.
fn panic_at(place: Place, victim: Spec) {
    let mut rig = busy(Rig::new(4));
    rig.submit(Spec::new(1, 9).side(16));
    rig.submit(victim.fault(place, Fault::Panic));
    rig.submit(Spec::new(3, 9).side(16));
    rig.submit_to_full(Spec::new(4, 9));
    rig.run();
    for _ in 0..5 {
        let answer = rig.raw_answer();
        let (id, after_poison) = (answer.id, answer.after_poison);
        let outcome = answer
            .outcome
            .unwrap_or_else(|| panic!("{place:?}: {id} got no answer"));
        match (id, place) {
            // It has its answer, and the panic comes after it.
            (2, Place::Answer) => assert_eq!(outcome, Ok((2, 1))),
            (2, _) => {
                assert_eq!(kind(&outcome), Some(ErrorKind::Internal), "{place:?}: {outcome:?}");
                assert!(after_poison, "{place:?}: readiness must not lag behind the answer");
            }
            (0, _) if outcome == Ok((0, 2)) => {}
            _ => {
                assert_eq!(
                    kind(&outcome),
                    Some(ErrorKind::Unavailable),
                    "{place:?}: {id} {outcome:?}"
                );
            }
        }
    }
    rig.submit(Spec::new(5, 1));
    let (id, outcome) = rig.answer();
    assert_eq!((id, kind(&outcome)), (5, Some(ErrorKind::Unavailable)), "{place:?}");
    assert_eq!(rig.log.get().poisoned.len(), 1, "{place:?}");
    assert!(!rig.log.get().prepared.contains(&5));
    rig.end();
}

#[test]
fn a_panic_ends_the_engine_and_answers_everybody() {
    for place in [
        Place::Prepare,
        Place::Batch,
        Place::Step,
        Place::IsDone,
        Place::Finish,
        Place::IsCancelled,
        Place::Started,
        Place::Answer,
    ] {
        panic_at(place, Spec::new(2, 1));
    }
}

#[test]
fn a_panic_of_a_job_that_is_dropped() {
    // Cancelled once it runs: asked when it is admitted, then before its second step.
    panic_at(
        Place::DropJob,
        Spec {
            cancel_after: Some(1),
            ..Spec::new(2, 9)
        },
    );
}

#[test]
fn a_panic_of_a_shared_call_concerns_all_in_it() {
    let mut rig = busy(Rig::new(8));
    rig.submit(Spec::new(1, 2));
    rig.submit(Spec::new(2, 2).fault(Place::Call, Fault::Panic));
    rig.submit(Spec::new(3, 9).side(16));
    rig.run();
    let answers = rig.answers(4);
    assert_eq!(kind(&answers[&1]), Some(ErrorKind::Internal));
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Internal));
    assert_eq!(kind(&answers[&3]), Some(ErrorKind::Unavailable));
    rig.end();
}

#[test]
fn a_panic_while_memory_is_given_back() {
    let mut rig = busy(Rig::with(8, |pipeline, _| pipeline.relieve_panics = true));
    rig.submit(Spec::new(1, 9));
    rig.submit(Spec::new(2, 9).fault(Place::Prepare, Fault::OutOfMemory));
    rig.submit(Spec::new(3, 9));
    rig.run();
    let answers = rig.answers(4);
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Internal));
    for id in [0, 1, 3] {
        assert_eq!(kind(&answers[&id]), Some(ErrorKind::Unavailable), "{id}");
    }
    rig.end();
}

#[test]
fn an_observer_that_panics_keeps_nobody_waiting() {
    let mut rig = busy(Rig::with(2, |_, observer| observer.panics = true));
    rig.submit(Spec::new(1, 1).fault(Place::Prepare, Fault::Panic));
    rig.submit_to_full(Spec::new(2, 1));
    rig.run();
    let answers = rig.answers(3);
    assert_eq!(kind(&answers[&1]), Some(ErrorKind::Internal));
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Unavailable));
    rig.end();
}

#[test]
fn answers_that_panic_at_the_end_keep_nobody_waiting() {
    let mut rig = busy(Rig::new(8));
    rig.submit(Spec::new(1, 9).fault(Place::Answer, Fault::Panic));
    rig.submit(Spec::new(2, 9).fault(Place::DropJob, Fault::Panic));
    rig.submit(Spec::new(3, 1).fault(Place::Prepare, Fault::Panic));
    rig.submit(Spec::new(4, 9).fault(Place::Answer, Fault::Panic));
    rig.submit(Spec::new(5, 9));
    rig.run();
    let answers = rig.answers(6);
    assert_eq!(kind(&answers[&3]), Some(ErrorKind::Internal));
    for id in [0, 1, 2, 4, 5] {
        assert_eq!(kind(&answers[&id]), Some(ErrorKind::Unavailable), "{id}");
    }
    rig.end();
}

#[test]
fn a_thread_that_cannot_work_on_the_device() {
    for (fault, code) in [
        (Fault::Error, ErrorKind::Internal),
        (Fault::Panic, ErrorKind::Unavailable),
    ] {
        let rig = Rig::with(4, |pipeline, _| pipeline.enter_thread = Some(fault));
        // Whether it comes before the failure or after it.
        for id in 0..3 {
            rig.submit(Spec::new(id, 1));
            let (answered, outcome) = rig.answer();
            assert_eq!((answered, kind(&outcome)), (id, Some(code)), "{fault:?}");
        }
        assert_eq!(rig.log.get().poisoned.len(), 1, "{fault:?}");
        assert!(rig.log.get().prepared.is_empty(), "{fault:?}");
        rig.end();
    }
}

#[test]
fn a_client_that_panics_at_the_door_is_its_own_affair() {
    let mut rig = Rig::new(1);
    rig.submit(Spec::new(1, 1));
    assert_eq!(rig.called(), [1]);
    let (task, _) = rig.task(Spec::new(2, 1).fault(Place::IsCancelled, Fault::Panic));
    let engine = rig.engine();
    let (done, submitted) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.submit([task])));
        drop(engine);
        let _ = done.send(panicked.is_err());
    });
    assert_eq!(submitted.recv_timeout(LIMIT), Ok(true));
    // The panic is the submitter's, and so is the client that it dropped.
    assert_eq!(rig.raw_answer().id, 2);
    rig.run();
    assert_eq!(rig.answer(), (1, Ok((1, 1))));
    rig.submit(Spec::new(3, 1));
    assert_eq!(rig.answer(), (3, Ok((3, 1))));
    rig.end();
}
