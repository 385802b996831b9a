//! The memory that jobs reserve before they start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diffusion_core::{Error, Result};

/// The memory of the engine's device that a request needs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeed {
    /// From its start to its end.
    pub held: u64,
    /// In each step, for its entries of the batch.
    pub step: u64,
    /// While it is prepared, and while it is finished; no other job is computed then.
    pub alone: u64,
}

impl MemoryNeed {
    /// Returns the largest memory of an engine with these jobs.
    pub fn of_jobs(jobs: impl IntoIterator<Item = Self>) -> u64 {
        let (mut held, mut step, mut alone) = (0_u64, 0_u64, 0_u64);
        for job in jobs {
            held = held.saturating_add(job.held);
            step = step.saturating_add(job.step);
            alone = alone.max(job.alone);
        }
        held.saturating_add(step.max(alone))
    }
}

/// The answer to [`MemoryShare::reserve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The engine has reserved the memory.
    Granted,
    /// Other engines have reserved the memory. Nothing has changed.
    Occupied,
    /// The device does not have the memory, whatever other engines do. Nothing has changed.
    TooLarge {
        /// What an engine could reserve.
        available: u64,
    },
}

struct State {
    /// What each engine has reserved.
    reserved: HashMap<usize, u64>,
    /// The engine that asks for room, and how much it will reserve in all.
    claim: Option<(usize, u64)>,
    next_share: usize,
}

/// The memory of a device that jobs may use, which the engines on the device share.
pub struct MemoryBudget {
    available: Box<dyn Fn(u64) -> Option<u64> + Send + Sync>,
    state: Mutex<State>,
}

impl MemoryBudget {
    /// Makes a budget. `available` returns how much memory the jobs of all engines may use in all; `None` if that is
    /// unknown, which allows everything. It gets the memory that is asked for, and may free cached memory if that is more
    /// than there is.
    pub fn new(available: impl Fn(u64) -> Option<u64> + Send + Sync + 'static) -> Arc<Self> {
        let state = State {
            reserved: HashMap::new(),
            claim: None,
            next_share: 0,
        };
        Arc::new(Self {
            available: Box::new(available),
            state: Mutex::new(state),
        })
    }

    /// Makes a budget without a limit.
    pub fn unlimited() -> Arc<Self> {
        Self::new(|_| None)
    }

    /// Returns the share of one more engine.
    pub fn share(self: &Arc<Self>) -> MemoryShare {
        let mut state = self.lock();
        state.next_share += 1;
        MemoryShare {
            id: state.next_share,
            budget: Arc::clone(self),
        }
    }

    /// Checks that a request can run once no other job runs.
    ///
    /// # Errors
    /// `OutOfMemory` with what the request needs and what there is.
    pub fn check(&self, need: MemoryNeed) -> Result<()> {
        let needed = MemoryNeed::of_jobs([need]);
        match (self.available)(needed) {
            Some(available) if needed > available => Err(too_large(needed, available)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One engine's share of a [`MemoryBudget`]. Dropping it frees what the engine has reserved.
pub struct MemoryShare {
    budget: Arc<MemoryBudget>,
    id: usize,
}

impl MemoryShare {
    /// Reserves `bytes` for all jobs of the engine, in place of what it had reserved before. Less than before is always
    /// granted.
    pub fn reserve(&mut self, bytes: u64) -> Reservation {
        let mut state = self.budget.lock();
        let before = state.reserved.get(&self.id).copied().unwrap_or(0);
        if bytes > before {
            let of_others = |reserved: u64| reserved.saturating_sub(before);
            let others = of_others(state.reserved.values().sum());
            let claimed = match state.claim {
                Some((id, claimed)) if id != self.id => {
                    claimed.saturating_sub(state.reserved.get(&id).copied().unwrap_or(0))
                }
                _ => 0,
            };
            match (self.budget.available)(bytes.saturating_add(others)) {
                Some(available) if bytes > available => return Reservation::TooLarge { available },
                Some(available) if bytes.saturating_add(others).saturating_add(claimed) > available => {
                    return Reservation::Occupied;
                }
                _ => {}
            }
        }
        state.reserved.insert(self.id, bytes);
        Reservation::Granted
    }

    /// Asks other engines to leave room for `bytes` in all, or no longer to. Of several engines that ask, the first comes
    /// first.
    pub fn claim(&mut self, bytes: Option<u64>) {
        let mut state = self.budget.lock();
        if state.claim.is_none_or(|(id, _)| id == self.id) {
            state.claim = bytes.map(|bytes| (self.id, bytes));
        }
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.claim(None);
        self.budget.lock().reserved.remove(&self.id);
    }
}

/// The error of a request that needs more memory than its device has.
pub fn too_large(needed: u64, available: u64) -> Error {
    Error::out_of_memory(format!(
        "the request needs {} MiB, but only {} MiB are available",
        needed.div_ceil(1 << 20),
        available >> 20
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn jobs_share_the_memory_of_what_is_computed_for_one_at_a_time() {
        let job = |held, step, alone| MemoryNeed { held, step, alone };
        assert_eq!(MemoryNeed::of_jobs([]), 0);
        assert_eq!(MemoryNeed::of_jobs([job(1, 10, 30)]), 31);
        assert_eq!(MemoryNeed::of_jobs([job(1, 10, 30), job(2, 25, 20)]), 38);
        assert_eq!(MemoryNeed::of_jobs([job(u64::MAX, 1, 1), job(1, 1, 1)]), u64::MAX);
    }

    #[test]
    fn engines_reserve_what_others_leave() {
        let budget = MemoryBudget::new(|_| Some(100));
        let (mut one, mut two) = (budget.share(), budget.share());
        assert_eq!(one.reserve(60), Reservation::Granted);
        assert_eq!(two.reserve(41), Reservation::Occupied);
        assert_eq!(two.reserve(40), Reservation::Granted);
        assert_eq!(one.reserve(101), Reservation::TooLarge { available: 100 });
        assert_eq!(one.reserve(61), Reservation::Occupied);
        // In place of the 60, not in addition.
        assert_eq!(one.reserve(59), Reservation::Granted);
        drop(two);
        assert_eq!(one.reserve(100), Reservation::Granted);
    }

    #[test]
    fn less_is_granted_even_if_memory_has_become_short() {
        let left = Arc::new(Mutex::new(Some(100)));
        let available = Arc::clone(&left);
        let budget = MemoryBudget::new(move |_| *available.lock().unwrap());
        let mut share = budget.share();
        assert_eq!(share.reserve(80), Reservation::Granted);
        *left.lock().unwrap() = Some(10);
        assert_eq!(share.reserve(80), Reservation::Granted);
        assert_eq!(share.reserve(70), Reservation::Granted);
        assert_eq!(share.reserve(71), Reservation::TooLarge { available: 10 });
        *left.lock().unwrap() = None;
        assert_eq!(
            share.reserve(u64::MAX),
            Reservation::Granted,
            "unknown memory is not limited"
        );
    }

    #[test]
    fn claim_keeps_room_for_the_engine_that_asked_first() {
        let budget = MemoryBudget::new(|_| Some(100));
        let (mut wide, mut small, mut other) = (budget.share(), budget.share(), budget.share());
        assert_eq!(small.reserve(50), Reservation::Granted);
        assert_eq!(wide.reserve(80), Reservation::Occupied);
        wide.claim(Some(80));
        other.claim(Some(90));
        assert_eq!(small.reserve(51), Reservation::Occupied);
        assert_eq!(other.reserve(1), Reservation::Occupied);
        assert_eq!(small.reserve(20), Reservation::Granted);
        assert_eq!(wide.reserve(80), Reservation::Granted);
        wide.claim(None);
        assert_eq!(small.reserve(21), Reservation::Occupied);
        drop(wide);
        assert_eq!(other.reserve(80), Reservation::Granted);
    }

    #[test]
    fn request_that_no_other_job_keeps_from_running_is_refused_only_by_its_size() {
        let budget = MemoryBudget::new(|_| Some(100 << 20));
        let mut share = budget.share();
        assert_eq!(share.reserve(100 << 20), Reservation::Granted);
        let need = |step| MemoryNeed {
            step,
            ..MemoryNeed::default()
        };
        assert_eq!(budget.check(need(100 << 20)), Ok(()));
        let error = budget.check(need((100 << 20) + 1)).unwrap_err();
        assert_eq!(
            error,
            Error::out_of_memory("the request needs 101 MiB, but only 100 MiB are available")
        );
    }
}
