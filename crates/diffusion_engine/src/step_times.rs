//! What steps take, and whether jobs gain from a shared step.

use std::collections::HashMap;
use std::time::Duration;

/// A shared step must save at least this much of the time of the step that joins it.
const LEAST_GAIN: f64 = 0.2;
/// Steps that are seen before their time decides. The first steps of a shape are slower.
const MIN_STEPS: usize = 3;
/// How much of the difference a slower step adds to the time that is kept: the fast steps show what a step costs, and the
/// others what else the processor did.
const SLOWER_WEIGHT: f64 = 0.05;
/// What is left of the kept time of a shared step after a refusal. So it is tried again, some 20 refusals later.
const AFTER_REFUSAL: f64 = 0.99;
/// Times that are kept. A shape has one for each number of entries.
const MAX_TIMES: usize = 256;

/// The times of steps, by shape and number of entries.
///
/// A shared step costs less than two steps if much of a step does not depend on its entries: reading the weights, or
/// starting many small kernels. A large image keeps a CPU busy alone. Then a shared step delays one job and gains nothing.
#[derive(Default)]
pub struct StepTimes {
    times: HashMap<(Vec<i64>, usize), StepTime>,
}

struct StepTime {
    steps: usize,
    seconds: f64,
}

impl StepTimes {
    /// Records a step of so many entries of that shape.
    pub fn record(&mut self, shape: &[i64], entries: usize, time: Duration) {
        if self.times.len() >= MAX_TIMES {
            self.times.clear();
        }
        let seconds = time.as_secs_f64();
        let kept = self
            .times
            .entry((shape.to_vec(), entries))
            .or_insert(StepTime { steps: 0, seconds });
        kept.steps += 1;
        let slower = seconds - kept.seconds;
        kept.seconds += if slower > 0.0 { slower * SLOWER_WEIGHT } else { slower };
    }

    /// Returns whether a job of `more` entries should join a step of `entries` entries: whether that takes less time than a
    /// separate step, or is not known yet.
    pub fn gains(&mut self, shape: &[i64], entries: usize, more: usize) -> bool {
        let seconds = |entries| self.seconds(shape, entries);
        let (Some(first), Some(other), Some(shared)) = (seconds(entries), seconds(more), seconds(entries + more))
        else {
            return true;
        };
        let gains = shared - first <= other * (1.0 - LEAST_GAIN);
        if !gains && let Some(kept) = self.times.get_mut(&(shape.to_vec(), entries + more)) {
            kept.seconds *= AFTER_REFUSAL;
        }
        gains
    }

    /// Returns what a step takes, if that is known.
    fn seconds(&self, shape: &[i64], entries: usize) -> Option<f64> {
        let kept = self.times.get(&(shape.to_vec(), entries))?;
        (kept.steps >= MIN_STEPS).then_some(kept.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [i64; 3] = [4, 8, 8];

    /// Steps of 1, 2 and 4 entries that take so many milliseconds.
    fn times(milliseconds: [u64; 3]) -> StepTimes {
        let mut times = StepTimes::default();
        for (entries, milliseconds) in [1, 2, 4].into_iter().zip(milliseconds) {
            for _ in 0..MIN_STEPS {
                times.record(&SHAPE, entries, Duration::from_millis(milliseconds));
            }
        }
        times
    }

    #[test]
    fn jobs_share_a_step_that_takes_less_than_two() {
        assert!(times([10, 15, 40]).gains(&SHAPE, 1, 1));
        assert!(!times([10, 19, 40]).gains(&SHAPE, 1, 1));
        assert!(!times([10, 20, 40]).gains(&SHAPE, 2, 2));
    }

    #[test]
    fn unknown_steps_are_shared() {
        let mut times = times([10, 20, 40]);
        assert!(times.gains(&SHAPE, 2, 1), "3 entries have not been seen");
        assert!(times.gains(&[4, 16, 16], 1, 1), "another shape");
        let mut slow_at_first = StepTimes::default();
        for milliseconds in [90, 14] {
            slow_at_first.record(&SHAPE, 2, Duration::from_millis(milliseconds));
        }
        for _ in 0..MIN_STEPS {
            slow_at_first.record(&SHAPE, 1, Duration::from_millis(10));
        }
        assert!(slow_at_first.gains(&SHAPE, 1, 1), "too few steps were seen");
        slow_at_first.record(&SHAPE, 2, Duration::from_millis(14));
        assert!(slow_at_first.gains(&SHAPE, 1, 1), "the fastest step counts");
    }

    #[test]
    fn refused_step_is_tried_again() {
        let mut times = times([10, 20, 40]);
        let refusals = (0..100).take_while(|_| !times.gains(&SHAPE, 1, 1)).count();
        assert!((5..50).contains(&refusals), "{refusals}");
    }

    #[test]
    fn times_follow_a_machine_that_became_slower() {
        let mut times = times([10, 15, 40]);
        for _ in 0..100 {
            times.record(&SHAPE, 2, Duration::from_millis(21));
        }
        assert!(!times.gains(&SHAPE, 1, 1));
    }

    #[test]
    fn times_are_bounded() {
        let mut times = StepTimes::default();
        for entries in 0..3 * MAX_TIMES {
            times.record(&SHAPE, entries, Duration::from_millis(1));
        }
        assert!(times.times.len() <= MAX_TIMES);
    }
}
