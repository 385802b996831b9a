//! Chooses which of the waiting requests start.
//!
//! Requests start as far as they fit, first those that are oldest for their work ([`response_ratio`]). A request that fits may pass one that does not, until
//! the latter has been passed often enough ([`Waiting::may_be_passed`]). From then on the latter has a reservation: it can
//! be passed only by requests that do not delay it, because they end before there is room for it, or because there is room
//! for both.
//!
//! [`response_ratio`]: super::batching::response_ratio
//!
//! Source: the EASY scheduler of Lifka, "The ANL/IBM SP Scheduling System" (1995), with work in the place of time.

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Entries that the request adds to a batch, at least 1.
    pub batch_size: usize,
    /// The work of all its steps.
    pub work: u64,
    /// Whether later requests may still delay it.
    pub may_be_passed: bool,
}

/// A job that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its entries.
    pub batch_size: usize,
    /// The work of the steps that are left.
    pub work: u64,
}

/// Room that is kept for a request.
struct Reservation {
    /// A job with at most this work ends before there is room for the request.
    work: u64,
    /// Entries that are free next to the request once there is room for it.
    free: usize,
}

/// Returns the indices of the waiting requests that start now, in order. The first of `waiting` come first. All requests that run have together at most
/// `capacity` entries, unless a single request has more, which then runs alone.
pub fn admit(waiting: &[Waiting], running: &[Running], capacity: usize) -> Vec<usize> {
    let mut running = running.to_vec();
    let mut reservation: Option<Reservation> = None;
    let mut admitted = Vec::new();
    for (index, request) in waiting.iter().enumerate() {
        if !fits(request.batch_size, entries(&running), capacity) {
            if !request.may_be_passed && reservation.is_none() {
                reservation = Some(reserve(request.batch_size, &running, capacity));
            }
            continue;
        }
        if let Some(reserved) = &mut reservation
            && request.work > reserved.work
        {
            if request.batch_size > reserved.free {
                continue;
            }
            reserved.free -= request.batch_size;
        }
        running.push(Running {
            batch_size: request.batch_size,
            work: request.work,
        });
        admitted.push(index);
    }
    admitted
}

fn entries(running: &[Running]) -> usize {
    running.iter().map(|job| job.batch_size).sum()
}

fn fits(batch_size: usize, used: usize, capacity: usize) -> bool {
    used == 0 || used.saturating_add(batch_size) <= capacity
}

/// Finds when there is room for a request. Jobs share the computing, so the one with the least work ends first.
fn reserve(batch_size: usize, running: &[Running], capacity: usize) -> Reservation {
    let mut jobs = running.to_vec();
    jobs.sort_by_key(|job| job.work);
    let mut used = entries(&jobs);
    let mut work = 0;
    for job in &jobs {
        if fits(batch_size, used, capacity) {
            break;
        }
        used -= job.batch_size;
        work = job.work;
    }
    Reservation {
        work,
        free: capacity.saturating_sub(used.saturating_add(batch_size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting(batch_size: usize, work: u64) -> Waiting {
        Waiting {
            batch_size,
            work,
            may_be_passed: true,
        }
    }

    fn old(batch_size: usize, work: u64) -> Waiting {
        Waiting {
            may_be_passed: false,
            ..waiting(batch_size, work)
        }
    }

    fn running(batch_size: usize, work: u64) -> Running {
        Running { batch_size, work }
    }

    #[test]
    fn request_that_fits_passes_one_that_does_not() {
        let jobs = [running(2, 400)];
        let requests = [waiting(4, 100), waiting(2, 1000), waiting(1, 1)];
        assert_eq!(admit(&requests, &jobs, 4), [1]);
        assert_eq!(admit(&requests, &[], 4), [0]);
    }

    #[test]
    fn old_request_is_passed_only_by_requests_that_end_before_there_is_room_for_it() {
        let jobs = [running(1, 50), running(1, 90)];
        assert_eq!(admit(&[old(3, 100), waiting(2, 51)], &jobs, 4), [] as [usize; 0]);
        assert_eq!(admit(&[old(3, 100), waiting(2, 50)], &jobs, 4), [1]);
        // All jobs must end for a request of 4 entries.
        assert_eq!(admit(&[old(4, 100), waiting(2, 90)], &jobs, 4), [1]);
        assert_eq!(admit(&[old(9, 100), waiting(2, 91)], &jobs, 4), [] as [usize; 0]);
    }

    #[test]
    fn old_request_is_passed_by_requests_that_leave_room_for_it() {
        let jobs = [running(3, 50), running(1, 90)];
        // Once the first job has ended, 7 of 8 entries are free, and 2 of them are not reserved.
        let requests = [old(5, 100), waiting(1, 1000), waiting(1, 1000), waiting(1, 1000)];
        assert_eq!(admit(&requests, &jobs, 8), [1, 2]);
    }

    #[test]
    fn request_larger_than_the_capacity_runs_alone() {
        assert_eq!(admit(&[waiting(9, 1), waiting(1, 1)], &[], 4), [0]);
        assert_eq!(admit(&[waiting(9, 1)], &[running(1, 1)], 4), [] as [usize; 0]);
    }

    proptest! {
        #[test]
        fn admitted_requests_fit_and_an_idle_engine_starts_the_oldest(
            requests in prop::collection::vec((1usize..6, 1u64..100, any::<bool>()), 0..12),
            jobs in prop::collection::vec((1usize..4, 1u64..100), 0..4),
            capacity in 1usize..10,
        ) {
            let requests: Vec<Waiting> = requests
                .iter()
                .map(|&(batch_size, work, may_be_passed)| Waiting { batch_size, work, may_be_passed })
                .collect();
            let jobs: Vec<Running> = jobs.iter().map(|&(batch_size, work)| running(batch_size, work)).collect();
            let admitted = admit(&requests, &jobs, capacity);
            prop_assert!(admitted.is_sorted_by(|a, b| a < b));
            let used = entries(&jobs);
            let new: usize = admitted.iter().map(|&index| requests[index].batch_size).sum();
            prop_assert!(admitted.is_empty() || used + new <= capacity || (used == 0 && admitted.len() == 1));
            if jobs.is_empty() && !requests.is_empty() {
                prop_assert_eq!(admitted.first(), Some(&0));
            }
        }

        #[test]
        fn reservation_is_kept(
            jobs in prop::collection::vec((1usize..4, 1u64..100), 1..4),
            requests in prop::collection::vec((1usize..4, 1u64..200), 0..8),
            capacity in 4usize..10,
        ) {
            let jobs: Vec<Running> = jobs.iter().map(|&(batch_size, work)| running(batch_size, work)).collect();
            let wide = old(capacity, 100);
            let mut all = vec![wide];
            all.extend(requests.iter().map(|&(batch_size, work)| waiting(batch_size, work)));
            // A request of the whole capacity starts when all jobs have ended.
            let end = jobs.iter().map(|job| job.work).max().unwrap_or(0);
            for index in admit(&all, &jobs, capacity) {
                prop_assert!(all[index].work <= end);
            }
        }
    }
}
