//! Chooses the jobs of the next batch.

use std::time::Duration;

/// The entries that a job adds to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEntries {
    /// Their number, at least 1.
    pub count: usize,
    /// The shape of each entry, and whatever else the entries of a batch must have in common. Only entries of one shape
    /// share a batch.
    pub shape: Vec<i64>,
}

/// A job that can take a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The entries of its next step.
    pub entries: BatchEntries,
    /// What all its steps cost, in any unit that all jobs of the engine share.
    pub work: u64,
    /// The time since its request arrived.
    pub age: Duration,
}

impl Turn {
    fn response_ratio(&self) -> f64 {
        response_ratio(self.age, self.work)
    }
}

/// Returns by how much a request is late for its work. The one with the highest ratio comes first.
///
/// So a short request passes a long one, each is delayed in proportion to its work, and none starves.
///
/// Source: the rule of the highest response ratio next, of Brinch Hansen (1971). Here it is looked at before each step.
pub fn response_ratio(age: Duration, work: u64) -> f64 {
    age.as_secs_f64() / work.max(1) as f64
}

/// Returns the indices of the jobs of the next batch: the job with the highest [`response_ratio`], and jobs of its shape that
/// gain from the shared step. Of equal jobs the first comes first.
///
/// Jobs of equal work end one after the other where no shared step is a gain. A batch has at most `max_batch_size` entries,
/// unless a single job has more. `gain` gets the shape, the entries so far and those of the job that would join.
pub fn next_batch(
    jobs: &[Turn],
    max_batch_size: usize,
    mut gain: impl FnMut(&[i64], usize, usize) -> bool,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by(|&one, &other| jobs[other].response_ratio().total_cmp(&jobs[one].response_ratio()));
    let Some(&first) = order.first() else {
        return Vec::new();
    };
    let shape = &jobs[first].entries.shape;
    let mut size = 0;
    let mut batch: Vec<usize> = order
        .into_iter()
        .filter(|&index| {
            let entries = &jobs[index].entries;
            let joins = index == first
                || (entries.shape == *shape
                    && size + entries.count <= max_batch_size
                    && gain(shape, size, entries.count));
            size += if joins { entries.count } else { 0 };
            joins
        })
        .collect();
    batch.sort_unstable();
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A job of one step, which is late by `ratio` times its work.
    fn turn(count: usize, side: i64, ratio: u64) -> Turn {
        let work = count as u64 * side.unsigned_abs().pow(2);
        Turn {
            entries: BatchEntries {
                count,
                shape: vec![4, side, side],
            },
            work,
            age: Duration::from_millis(ratio * work),
        }
    }

    fn shared(jobs: &[Turn], max_batch_size: usize) -> Vec<usize> {
        next_batch(jobs, max_batch_size, |_, _, _| true)
    }

    #[test]
    fn jobs_of_equal_shape_share_a_batch_up_to_its_limit() {
        let jobs = [turn(2, 8, 0), turn(1, 16, 0), turn(2, 8, 0), turn(1, 8, 0)];
        assert_eq!(shared(&jobs, 16), [0, 2, 3]);
        assert_eq!(shared(&jobs, 4), [0, 2]);
        assert_eq!(shared(&[turn(9, 8, 0)], 4), [0], "a large job runs alone");
        assert_eq!(shared(&[], 4), [] as [usize; 0]);
    }

    #[test]
    fn job_that_is_oldest_for_its_work_comes_first() {
        let jobs = [turn(2, 8, 3), turn(1, 16, 5), turn(2, 8, 2)];
        assert_eq!(shared(&jobs, 16), [1]);
        let jobs = [turn(2, 8, 3), turn(1, 16, 2), turn(3, 8, 9)];
        assert_eq!(shared(&jobs, 4), [2], "there is no room for the first job");
    }

    #[test]
    fn short_job_passes_a_long_one_that_is_older() {
        let age = Duration::from_millis;
        let long = Turn {
            work: 400,
            age: age(4000),
            ..turn(1, 8, 0)
        };
        let new = Turn {
            work: 2,
            age: age(10),
            ..turn(1, 16, 0)
        };
        assert_eq!(shared(&[long.clone(), new.clone()], 4), [0]);
        let later = Turn { age: age(30), ..new };
        assert_eq!(shared(&[long, later], 4), [1], "after 30 ms");
    }

    #[test]
    fn job_that_gains_nothing_does_not_join() {
        let jobs = [turn(1, 8, 2), turn(2, 8, 1), turn(1, 8, 1)];
        let mut asked = Vec::new();
        let batch = next_batch(&jobs, 16, |shape, entries, more| {
            asked.push((shape.to_vec(), entries, more));
            more == 1
        });
        assert_eq!(batch, [0, 2]);
        assert_eq!(asked, [(vec![4, 8, 8], 1, 2), (vec![4, 8, 8], 1, 1)]);
    }

    proptest! {
        #[test]
        fn batch_fits_and_has_the_job_that_is_oldest_for_its_work(
            jobs in prop::collection::vec((1usize..5, 1i64..4, 0u64..5), 1..20),
            max_batch_size in 1usize..12,
        ) {
            let jobs: Vec<Turn> = jobs.iter().map(|&(count, side, ratio)| turn(count, side, ratio)).collect();
            let batch = shared(&jobs, max_batch_size);
            let size: usize = batch.iter().map(|&i| jobs[i].entries.count).sum();
            prop_assert!(size <= max_batch_size || batch.len() == 1);
            prop_assert!(batch.is_sorted_by(|a, b| a < b));
            prop_assert!(batch.iter().all(|&i| jobs[i].entries.shape == jobs[batch[0]].entries.shape));
            let oldest = jobs.iter().map(Turn::response_ratio).fold(0.0, f64::max);
            prop_assert!(batch.iter().any(|&i| jobs[i].response_ratio() >= oldest));
        }
    }
}
