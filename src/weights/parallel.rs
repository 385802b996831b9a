//! The same work over many items, by several threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use diffusion_core::{Error, Result};

/// Threads that read; more do not make a disk or a memory bus faster.
const MAX_THREADS: usize = 8;

/// `work` over all items, by as many threads as help; the results in the items' order.
///
/// # Errors
/// The first that `work` returned to the thread that is asked first; then what is left is not begun.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MAX_THREADS).min(items.len()).max(1);
    let next = AtomicUsize::new(0);
    let run = || -> Result<Vec<(usize, R)>> {
        let mut results = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(n) else {
                return Ok(results);
            };
            match work(item) {
                Ok(result) => results.push((n, result)),
                Err(error) => {
                    // The others need not go on.
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let outcomes: Vec<Result<Vec<(usize, R)>>> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads)
            .filter_map(|_| {
                std::thread::Builder::new()
                    .name("diffusion-load".to_owned())
                    .spawn_scoped(scope, run)
                    .ok()
            })
            .collect();
        let mut outcomes = vec![run()];
        outcomes.extend(helpers.into_iter().map(|helper| {
            helper
                .join()
                .unwrap_or_else(|_| Err(Error::internal("a thread that loads weights panicked")))
        }));
        outcomes
    });
    let mut results = Vec::with_capacity(items.len());
    for outcome in outcomes {
        results.extend(outcome?);
    }
    results.sort_unstable_by_key(|(n, _)| *n);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        let doubled = in_parallel(&items, |n| Ok(n * 2)).unwrap();
        assert!(std::iter::zip(items, doubled).all(|(n, twice)| twice == n * 2));
    }

    #[test]
    fn one_failure_ends_the_work() {
        let outcome = in_parallel(&[1, 2, 3, 4, 5], |n| match n {
            3 => Err(Error::not_found("three")),
            n => Ok(*n),
        });
        assert_eq!(outcome, Err(Error::not_found("three")));
    }
}
