//! Which jobs take the next UNet call together.

/// What a job adds to a UNet call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// The shape of each row. Only rows of one shape go together.
    pub shape: Vec<i64>,
}

/// The calls of one round: each job is in exactly one, jobs in a call have equal shape, a call has at
/// most `max_unet_batch_size` rows (unless one job alone has more), and jobs keep their order, so that an old
/// one never waits behind a young one.
pub fn calls(batches: &[Batch], max_unet_batch_size: usize) -> Vec<Vec<usize>> {
    let mut calls: Vec<(Vec<usize>, usize)> = Vec::new();
    for (index, batch) in batches.iter().enumerate() {
        let open = calls.iter_mut().find(|(jobs, rows)| {
            jobs.first()
                .and_then(|&first| batches.get(first))
                .is_some_and(|b| b.shape == batch.shape)
                && *rows + batch.rows <= max_unet_batch_size
        });
        match open {
            Some((jobs, rows)) => {
                jobs.push(index);
                *rows += batch.rows;
            }
            None => calls.push((vec![index], batch.rows)),
        }
    }
    calls.into_iter().map(|(jobs, _)| jobs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(rows: usize, side: i64) -> Batch {
        Batch {
            rows,
            shape: vec![4, side, side],
        }
    }

    #[test]
    fn equal_shapes_share_and_others_do_not() {
        let batches = [batch(2, 8), batch(1, 16), batch(2, 8), batch(1, 8)];
        assert_eq!(calls(&batches, 16), [vec![0, 2, 3], vec![1]]);
        assert_eq!(calls(&batches, 4), [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(calls(&[batch(9, 8)], 4), [vec![0]], "a wide job goes alone");
    }

    proptest! {
        #[test]
        fn each_job_is_in_one_call_that_it_fits(
            jobs in prop::collection::vec((1usize..5, 1i64..4), 0..20),
            max_unet_batch_size in 1usize..12,
        ) {
            let batches: Vec<Batch> = jobs.iter().map(|&(rows, side)| batch(rows, side)).collect();
            let calls = calls(&batches, max_unet_batch_size);
            let mut seen: Vec<usize> = calls.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..batches.len()).collect::<Vec<_>>());
            for call in &calls {
                let rows: usize = call.iter().map(|&i| batches[i].rows).sum();
                prop_assert!(rows <= max_unet_batch_size || call.len() == 1);
                prop_assert!(call.iter().all(|&i| batches[i].shape == batches[call[0]].shape));
                prop_assert!(call.is_sorted());
            }
        }
    }
}
