//! Parallel work on the tensors of a load.

use rayon::prelude::*;

use diffusion_core::Result;

/// More threads do not make a disk or a memory bus faster.
const MAX_THREADS: usize = 8;

/// Applies `work` to all items on several threads and returns the results in the order of the items.
///
/// The threads are joined before the call returns: an unloaded model leaves no thread. If the system refuses threads,
/// the calling thread does all the work.
///
/// # Errors
/// An error of `work`; the remaining items are then skipped.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MAX_THREADS).min(items.len());
    if threads > 1 {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|_| "diffusion-load".to_owned());
        // One item at a time: the largest come first, and a thread should not get two of them in one run.
        let all = || items.par_iter().with_max_len(1).map(&work).collect();
        let done = pool.build_scoped(rayon::ThreadBuilder::run, |pool| pool.install(all));
        if let Ok(results) = done {
            return results;
        }
    }
    items.iter().map(work).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use diffusion_core::Error;

    #[test]
    fn in_parallel_keeps_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        let doubled = in_parallel(&items, |n| Ok(n * 2)).unwrap();
        assert!(std::iter::zip(items, doubled).all(|(n, twice)| twice == n * 2));
    }

    #[test]
    fn in_parallel_returns_the_error_of_an_item() {
        let outcome = in_parallel(&[1, 2, 3, 4, 5], |n| match n {
            3 => Err(Error::not_found("three")),
            n => Ok(*n),
        });
        assert_eq!(outcome, Err(Error::not_found("three")));
    }
}
