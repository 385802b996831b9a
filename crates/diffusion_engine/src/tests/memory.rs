//! Requests that wait for memory, and requests that no device has the memory for.

use diffusion_core::ErrorKind;

use super::super::memory::{MemoryBudget, Reservation};
use super::fakes::Spec;
use super::kind;
use super::support::TestEngine;

#[test]
fn request_waits_for_the_memory_of_another_and_is_passed() {
    let engine_under_test = TestEngine::with_budget(8, &MemoryBudget::new(|_| Some(100)));
    engine_under_test.submit(Spec::new(1, 3).memory(60));
    assert_eq!(engine_under_test.called(), [1]);
    engine_under_test.submit(Spec::new(2, 9).memory(50));
    engine_under_test.submit(Spec::new(3, 2).memory(40));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1, 3]);
    assert_eq!(engine_under_test.step(), [1, 3]);
    assert_eq!(engine_under_test.answers(2).len(), 2);
    for _ in 0..9 {
        assert_eq!(engine_under_test.step(), [2]);
    }
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 9))));
    engine_under_test.end();
}

#[test]
fn request_that_waits_for_memory_is_not_passed_for_ever() {
    let mut engine_under_test = TestEngine::with_budget(8, &MemoryBudget::new(|_| Some(100)));
    engine_under_test.submit(Spec::new(1, 6).memory(60));
    assert_eq!(engine_under_test.called(), [1]);
    // As much work as the second asks for may pass it: one request of two steps.
    engine_under_test.submit(Spec::new(2, 2).memory(50));
    engine_under_test.submit(Spec::new(3, 2).memory(40));
    engine_under_test.go();
    assert_eq!(engine_under_test.step(), [1, 3]);
    engine_under_test.submit(Spec::new(4, 9).memory(40));
    assert_eq!(engine_under_test.step(), [1, 3]);
    for _ in 0..3 {
        assert_eq!(engine_under_test.step(), [1]);
    }
    assert_eq!(engine_under_test.step(), [2, 4]);
    engine_under_test.run();
    assert_eq!(engine_under_test.answers(4).len(), 4);
    engine_under_test.end();
}

#[test]
fn request_waits_for_the_memory_of_another_engine() {
    let budget = MemoryBudget::new(|_| Some(100));
    let mut other = budget.share();
    assert_eq!(other.reserve(60), Reservation::Granted);
    let mut engine_under_test = TestEngine::with_budget(8, &budget);
    engine_under_test.run();
    let cancelled = engine_under_test.submit(Spec::new(1, 1).memory(50));
    engine_under_test.submit(Spec::new(2, 1).memory(45));
    engine_under_test.submit(Spec::new(3, 1).memory(40));
    assert_eq!(engine_under_test.answer(), (3, Ok((3, 1))));
    cancelled.cancel();
    let (id, outcome) = engine_under_test.answer();
    assert_eq!((id, kind(&outcome)), (1, Some(ErrorKind::Cancelled)));
    assert_eq!(other.reserve(55), Reservation::Granted);
    assert_eq!(engine_under_test.answer(), (2, Ok((2, 1))));
    engine_under_test.end();
    // The engine has freed what it had reserved.
    assert_eq!(other.reserve(100), Reservation::Granted);
}

#[test]
fn request_larger_than_the_memory_fails_and_others_do_not() {
    let mut engine_under_test = TestEngine::with_budget(8, &MemoryBudget::new(|_| Some(100)));
    engine_under_test.run();
    engine_under_test.submit(Spec::new(1, 1).memory(101));
    engine_under_test.submit(Spec::new(2, 1).memory(100));
    let answers = engine_under_test.answers(2);
    assert_eq!(kind(&answers[&1]), Some(ErrorKind::Unavailable));
    assert_eq!(answers[&2], Ok((2, 1)));
    engine_under_test.end();
}
