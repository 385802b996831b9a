//! Chooses the jobs of the next batch.

/// The entries that a job adds to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEntries {
    /// Their number, at least 1.
    pub count: usize,
    /// The shape of each entry, and whatever else the entries of a batch must have in common. Only entries of one shape
    /// share a batch.
    pub shape: Vec<i64>,
    /// What a step costs for one entry, in any unit that all jobs of the engine share.
    pub cost: u64,
}

impl BatchEntries {
    /// What a step costs for all entries, at least 1.
    pub fn step_cost(&self) -> u64 {
        (self.count as u64).saturating_mul(self.cost).max(1)
    }
}

/// A job that can take a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The entries of its next step.
    pub entries: BatchEntries,
    /// What its steps have cost so far, counted from those of the jobs that ran when it started.
    pub spent: u64,
}

/// Returns the indices of the jobs of the next batch: the job that has spent least, and jobs of its shape. Of equal jobs
/// the first comes first.
///
/// So jobs of different sizes get equal shares of the computing, and none starves. A batch has at most `max_batch_size`
/// entries, unless a single job has more.
///
/// Source: the start-time fair scheduler of Goyal, Vin and Cheng (1996), with one flow for each job.
pub fn next_batch(jobs: &[Turn], max_batch_size: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&index| jobs[index].spent);
    let Some(&first) = order.first() else {
        return Vec::new();
    };
    let shape = &jobs[first].entries.shape;
    let mut size = 0;
    let mut batch: Vec<usize> = order
        .into_iter()
        .filter(|&index| {
            let entries = &jobs[index].entries;
            let joins = index == first || (entries.shape == *shape && size + entries.count <= max_batch_size);
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

    fn turn(count: usize, side: i64, spent: u64) -> Turn {
        Turn {
            entries: BatchEntries {
                count,
                shape: vec![4, side, side],
                cost: side.unsigned_abs().pow(2),
            },
            spent,
        }
    }

    #[test]
    fn jobs_of_equal_shape_share_a_batch_up_to_its_limit() {
        let jobs = [turn(2, 8, 0), turn(1, 16, 0), turn(2, 8, 0), turn(1, 8, 0)];
        assert_eq!(next_batch(&jobs, 16), [0, 2, 3]);
        assert_eq!(next_batch(&jobs, 4), [0, 2]);
        assert_eq!(next_batch(&[turn(9, 8, 0)], 4), [0], "a large job runs alone");
        assert_eq!(next_batch(&[], 4), [] as [usize; 0]);
    }

    #[test]
    fn job_that_has_spent_least_comes_first() {
        let jobs = [turn(2, 8, 3), turn(1, 16, 1), turn(2, 8, 2)];
        assert_eq!(next_batch(&jobs, 16), [1]);
        let jobs = [turn(2, 8, 3), turn(1, 16, 9), turn(3, 8, 2)];
        assert_eq!(next_batch(&jobs, 4), [2], "there is no room for the first job");
    }

    #[test]
    fn jobs_of_two_sizes_get_equal_shares() {
        let mut jobs = [turn(1, 8, 0), turn(1, 32, 0)];
        let mut cost = [0, 0];
        for _ in 0..170 {
            for index in next_batch(&jobs, 4) {
                let step = jobs[index].entries.step_cost();
                jobs[index].spent += step;
                cost[index] += step;
            }
        }
        assert_eq!(cost, [160 * 64, 10 * 1024]);
    }

    proptest! {
        #[test]
        fn batch_fits_and_has_the_job_that_has_spent_least(
            jobs in prop::collection::vec((1usize..5, 1i64..4, 0u64..5), 1..20),
            max_batch_size in 1usize..12,
        ) {
            let jobs: Vec<Turn> = jobs.iter().map(|&(count, side, spent)| turn(count, side, spent)).collect();
            let batch = next_batch(&jobs, max_batch_size);
            let size: usize = batch.iter().map(|&i| jobs[i].entries.count).sum();
            prop_assert!(size <= max_batch_size || batch.len() == 1);
            prop_assert!(batch.is_sorted_by(|a, b| a < b));
            prop_assert!(batch.iter().all(|&i| jobs[i].entries.shape == jobs[batch[0]].entries.shape));
            let least = jobs.iter().map(|job| job.spent).min();
            prop_assert!(batch.iter().any(|&i| Some(jobs[i].spent) == least));
        }
    }
}
