//! The engine over a pipeline that does as it is told.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod fake;
mod faults;
mod random;
mod rig;

use diffusion_core::{Error, ErrorKind};

use fake::{Outcome, Spec};
use rig::{LIMIT, Rig};

fn kind(outcome: &Outcome) -> Option<ErrorKind> {
    outcome.as_ref().err().map(Error::kind)
}

#[test]
fn a_short_job_that_comes_later_ends_first() {
    let rig = Rig::new(8);
    rig.submit(Spec::new(1, 6));
    assert_eq!(rig.called(), [1]);
    rig.submit(Spec::new(2, 2));
    rig.go();
    assert_eq!(rig.step(), [1, 2]);
    assert_eq!(rig.step(), [1, 2]);
    assert_eq!(rig.answer(), (2, Ok((2, 2))));
    for _ in 0..3 {
        assert_eq!(rig.step(), [1]);
    }
    assert_eq!(rig.answer(), (1, Ok((1, 6))));
    assert_eq!(rig.log.get().observed, [(1, 1), (2, 2), (2, 2), (1, 1), (1, 1), (1, 1)]);
    rig.end();
}

#[test]
fn jobs_of_one_shape_share_a_call_and_others_do_not() {
    let mut rig = Rig::new(16);
    rig.submit(Spec::new(0, 1));
    assert_eq!(rig.called(), [0]);
    for (id, side) in [(1, 8), (2, 16), (3, 8), (4, 16)] {
        rig.submit(Spec::new(id, 1).rows(id).side(side));
    }
    rig.run();
    assert_eq!(rig.called(), [1, 3]);
    assert_eq!(rig.called(), [2, 4]);
    assert!(rig.answers(5).values().all(Result::is_ok));
    assert_eq!(rig.log.get().observed, [(1, 1), (2, 4), (2, 6)]);
    rig.end();
}

#[test]
fn tasks_submitted_together_begin_together() {
    let mut rig = Rig::new(3);
    let (tasks, _handles): (Vec<_>, Vec<_>) = (1..=4).map(|id| rig.task(Spec::new(id, 1))).unzip();
    let engine = rig.engine();
    // On a thread of its own: the fourth waits for room.
    let submitting = std::thread::spawn(move || engine.submit(tasks));
    assert_eq!(rig.called(), [1, 2, 3]);
    rig.run();
    assert_eq!(rig.called(), [4]);
    assert!(rig.answers(4).values().all(Result::is_ok));
    submitting.join().unwrap();
    rig.end();
}

#[test]
fn a_call_has_no_more_rows_than_allowed() {
    let mut rig = Rig::new(4);
    rig.submit(Spec::new(0, 1));
    assert_eq!(rig.called(), [0]);
    // Wider than they said at the door, where there was room.
    for id in 1..4 {
        rig.submit(Spec::new(id, 1).batch_rows(2));
    }
    rig.run();
    assert_eq!(rig.called(), [1, 2]);
    assert_eq!(rig.called(), [3]);
    assert!(rig.answers(4).values().all(Result::is_ok));
    rig.end();
}

#[test]
fn a_job_without_steps_takes_none() {
    let mut rig = Rig::new(4);
    rig.run();
    rig.submit(Spec::new(1, 0));
    assert_eq!(rig.answer(), (1, Ok((1, 0))));
    assert_eq!(rig.log.get().calls, Vec::<Vec<usize>>::new());
    rig.end();
}

#[test]
fn submit_blocks_while_the_engine_is_full() {
    let rig = Rig::new(4);
    rig.submit(Spec::new(1, 2).rows(3));
    assert_eq!(rig.called(), [1]);
    rig.submit_to_full(Spec::new(2, 1).rows(2));
    rig.go();
    assert_eq!(rig.step(), [1], "2 has no room yet");
    assert_eq!(rig.answer(), (1, Ok((1, 2))));
    assert_eq!(rig.step(), [2]);
    assert_eq!(rig.answer(), (2, Ok((2, 1))));
    rig.end();
}

#[test]
fn a_task_wider_than_the_room_is_alone_in_it() {
    let rig = Rig::new(2);
    rig.submit(Spec::new(1, 2));
    assert_eq!(rig.called(), [1]);
    rig.submit_to_full(Spec::new(2, 2).rows(5));
    rig.go();
    assert_eq!(rig.step(), [1]);
    assert_eq!(rig.answer().0, 1);
    assert_eq!(rig.called(), [2]);
    rig.submit_to_full(Spec::new(3, 1));
    rig.go();
    assert_eq!(rig.step(), [2], "3 has no room beside it");
    assert_eq!(rig.answer(), (2, Ok((2, 2))));
    assert_eq!(rig.step(), [3]);
    assert_eq!(rig.answer().0, 3);
    rig.end();
}

#[test]
fn cancelled_at_the_door() {
    let rig = Rig::new(1);
    rig.submit(Spec::new(1, 1));
    assert_eq!(rig.called(), [1]);
    let waits = rig.submit_to_full(Spec::new(2, 1));
    waits.cancel();
    let (id, outcome) = rig.answer();
    assert_eq!((id, kind(&outcome)), (2, Some(ErrorKind::Cancelled)));
    rig.go();
    assert_eq!(rig.answer().0, 1);
    assert_eq!(rig.log.get().prepared, [1]);
    rig.end();
}

#[test]
fn cancelled_before_it_starts() {
    let rig = Rig::new(4);
    rig.submit(Spec::new(1, 2));
    assert_eq!(rig.called(), [1]);
    rig.submit(Spec::new(2, 1)).cancel();
    rig.go();
    let (id, outcome) = rig.answer();
    assert_eq!((id, kind(&outcome)), (2, Some(ErrorKind::Cancelled)));
    assert_eq!(rig.step(), [1]);
    assert_eq!(rig.answer(), (1, Ok((1, 2))));
    let log = rig.log.get();
    assert_eq!((log.started.as_slice(), log.prepared.as_slice()), (&[1][..], &[1][..]));
    assert_eq!(log.cancelled, 1);
    drop(log);
    rig.end();
}

#[test]
fn cancelled_while_it_runs() {
    let rig = Rig::new(2);
    let first = rig.submit(Spec::new(1, 100));
    assert_eq!(rig.called(), [1]);
    rig.submit(Spec::new(2, 3));
    rig.submit_to_full(Spec::new(3, 1));
    rig.go();
    assert_eq!(rig.called(), [1, 2]);
    first.cancel();
    rig.go();
    let (id, outcome) = rig.answer();
    assert_eq!((id, kind(&outcome)), (1, Some(ErrorKind::Cancelled)));
    // Its rows are free: 3 comes in now or with the next round.
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.extend(rig.step());
    }
    assert!(!seen.contains(&1) && seen.contains(&2), "{seen:?}");
    let mut rig = rig;
    rig.run();
    assert!(rig.answers(2).values().all(Result::is_ok));
    assert_eq!(rig.log.get().cancelled, 1);
    rig.end();
}

#[test]
fn the_end_answers_whoever_is_in_flight() {
    let mut rig = Rig::new(4);
    rig.submit(Spec::new(1, 100));
    rig.submit(Spec::new(2, 100).side(16));
    let _ = rig.called();
    rig.submit(Spec::new(3, 1));
    // The call waits until the engine is being dropped; 3 is let in and never taken.
    let engine = rig.engine.take().unwrap();
    let admission = std::sync::Arc::clone(&engine.admission);
    let dropped = std::thread::spawn(move || drop(engine));
    let start = std::time::Instant::now();
    while !admission.is_closed() {
        assert!(start.elapsed() < LIMIT, "the engine does not close");
        std::thread::yield_now();
    }
    rig.run();
    for (id, outcome) in rig.answers(3) {
        assert_eq!(kind(&outcome), Some(ErrorKind::Unavailable), "{id}: {outcome:?}");
    }
    dropped.join().unwrap();
    rig.ended();
    let log = rig.log.get();
    assert_eq!((log.jobs, log.rows, log.poisoned.len()), (0, 0, 0));
    assert!(!log.prepared.contains(&3));
}

#[test]
fn an_idle_engine_ends() {
    Rig::new(1).end();
}

#[test]
fn an_answer_may_drop_the_last_handle() {
    let mut rig = Rig::new(4);
    let engine = rig.engine.take().unwrap();
    let (sender, handles) = std::sync::mpsc::channel();
    let last = move || drop(handles.recv_timeout(LIMIT).unwrap());
    let (task, _) = rig.task_that(Spec::new(1, 1), Some(Box::new(last)));
    engine.submit([task]);
    assert_eq!(rig.called(), [1]);
    engine.submit([rig.task(Spec::new(2, 5)).0]);
    engine.submit([rig.task(Spec::new(3, 5)).0]);
    sender.send(engine).unwrap();
    rig.run();
    let answers = rig.answers(3);
    assert_eq!(answers[&1], Ok((1, 1)));
    assert_eq!(kind(&answers[&2]), Some(ErrorKind::Unavailable));
    assert_eq!(kind(&answers[&3]), Some(ErrorKind::Unavailable));
    rig.ended();
}
