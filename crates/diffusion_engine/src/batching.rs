//! Groups jobs into batches.

/// The entries that a job adds to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEntries {
    /// Their number, at least 1.
    pub count: usize,
    /// The shape of each entry, and whatever else the entries of a batch must have in common. Only entries of one shape
    /// share a batch.
    pub shape: Vec<i64>,
}

/// Groups jobs into the batches of one round. Returns the indices of the jobs of each batch.
///
/// Every job is in exactly one batch, and all entries of a batch have one shape. A batch has at most `max_batch_size`
/// entries, unless a single job has more. Jobs keep their order, so an old job never waits for a young one.
pub fn batches(jobs: &[BatchEntries], max_batch_size: usize) -> Vec<Vec<usize>> {
    struct Batch<'a> {
        shape: &'a [i64],
        size: usize,
        jobs: Vec<usize>,
    }
    let mut batches: Vec<Batch<'_>> = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let fitting = batches
            .iter_mut()
            .find(|batch| batch.shape == job.shape && batch.size + job.count <= max_batch_size);
        match fitting {
            Some(batch) => {
                batch.jobs.push(index);
                batch.size += job.count;
            }
            None => batches.push(Batch {
                shape: &job.shape,
                size: job.count,
                jobs: vec![index],
            }),
        }
    }
    batches.into_iter().map(|batch| batch.jobs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(count: usize, side: i64) -> BatchEntries {
        BatchEntries {
            count,
            shape: vec![4, side, side],
        }
    }

    #[test]
    fn jobs_of_equal_shape_share_a_batch_up_to_its_limit() {
        let jobs = [entries(2, 8), entries(1, 16), entries(2, 8), entries(1, 8)];
        assert_eq!(batches(&jobs, 16), [vec![0, 2, 3], vec![1]]);
        assert_eq!(batches(&jobs, 4), [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(batches(&[entries(9, 8)], 4), [vec![0]], "a large job runs alone");
    }

    proptest! {
        #[test]
        fn every_job_is_in_one_batch_that_it_fits(
            jobs in prop::collection::vec((1usize..5, 1i64..4), 0..20),
            max_batch_size in 1usize..12,
        ) {
            let jobs: Vec<BatchEntries> = jobs.iter().map(|&(count, side)| entries(count, side)).collect();
            let batches = batches(&jobs, max_batch_size);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..jobs.len()).collect::<Vec<_>>());
            for batch in &batches {
                let size: usize = batch.iter().map(|&i| jobs[i].count).sum();
                prop_assert!(size <= max_batch_size || batch.len() == 1);
                prop_assert!(batch.iter().all(|&i| jobs[i].shape == jobs[batch[0]].shape));
                prop_assert!(batch.is_sorted());
            }
        }
    }
}
