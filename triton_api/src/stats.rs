//! The times of a request, and their report to Triton's statistics.

use std::ptr::NonNull;

use crate::error::{Error, check};
use crate::sys;

/// Returns the time of the steady clock that the server uses (`CLOCK_MONOTONIC`) in nanoseconds; never 0.
pub fn steady_clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to `now` only. The call cannot fail: the clock exists and the pointer is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    (seconds * 1_000_000_000 + nanoseconds).max(1)
}

/// The four times of Triton's statistics in nanoseconds of [`steady_clock_ns`], in order.
///
/// Each time is at least the one before, because Triton subtracts neighbors as unsigned integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamps {
    /// When the backend began to work on the request; the time before counts as `queue`.
    pub exec_start: u64,
    /// When the inputs were read; the time before counts as `compute_input`.
    pub compute_start: u64,
    /// When the request was computed; the time before counts as `compute_infer`.
    pub compute_end: u64,
    /// When the request was answered; the time before counts as `compute_output`.
    pub exec_end: u64,
}

/// Collects the times of one request.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    exec_start: u64,
    compute_start: Option<u64>,
    compute_end: Option<u64>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            exec_start: steady_clock_ns(),
            compute_start: None,
            compute_end: None,
        }
    }

    pub(crate) fn mark_exec_start(&mut self) {
        self.exec_start = steady_clock_ns();
    }

    pub(crate) fn mark_compute_start(&mut self) {
        self.compute_start = Some(steady_clock_ns());
    }

    pub(crate) fn mark_compute_end(&mut self) {
        self.compute_end = Some(steady_clock_ns());
    }

    /// Returns whether computing has begun.
    pub(crate) fn has_computed(&self) -> bool {
        self.compute_start.is_some()
    }

    /// Returns the times with `exec_end` as the end. Without a mark for the start of computing, all
    /// time counts as input; without one for the end, all later time counts as computing.
    pub(crate) fn stop(&self, exec_end: u64) -> Timestamps {
        let exec_end = exec_end.max(self.exec_start);
        let compute_start = self.compute_start.unwrap_or(exec_end).clamp(self.exec_start, exec_end);
        let compute_end = self.compute_end.unwrap_or(exec_end).clamp(compute_start, exec_end);
        Timestamps {
            exec_start: self.exec_start,
            compute_start,
            compute_end,
            exec_end,
        }
    }
}

/// Reports the times of a request (`TRITONBACKEND_ModelInstanceReportStatistics`).
///
/// # Safety
///
/// `instance` has not been finalized and `request` has not been released.
pub(crate) unsafe fn report_request(
    instance: NonNull<sys::TRITONBACKEND_ModelInstance>,
    request: NonNull<sys::TRITONBACKEND_Request>,
    success: bool,
    times: &Timestamps,
) -> Result<(), Error> {
    // SAFETY: the caller guarantees both handles.
    unsafe {
        check(sys::TRITONBACKEND_ModelInstanceReportStatistics(
            instance.as_ptr(),
            request.as_ptr(),
            success,
            times.exec_start,
            times.compute_start,
            times.compute_end,
            times.exec_end,
        ))
    }
}

/// Reports the times of a batch (`TRITONBACKEND_ModelInstanceReportBatchStatistics`).
///
/// # Safety
///
/// `instance` has not been finalized.
pub(crate) unsafe fn report_batch(
    instance: NonNull<sys::TRITONBACKEND_ModelInstance>,
    batch_size: u64,
    times: &Timestamps,
) -> Result<(), Error> {
    // SAFETY: the caller guarantees the handle.
    unsafe {
        check(sys::TRITONBACKEND_ModelInstanceReportBatchStatistics(
            instance.as_ptr(),
            batch_size,
            times.exec_start,
            times.compute_start,
            times.compute_end,
            times.exec_end,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopwatch(compute_start: Option<u64>, compute_end: Option<u64>) -> Stopwatch {
        Stopwatch {
            exec_start: 100,
            compute_start,
            compute_end,
        }
    }

    #[test]
    fn stop_marks_in_order_are_unchanged() {
        let times = stopwatch(Some(110), Some(150)).stop(160);
        assert_eq!(
            times,
            Timestamps {
                exec_start: 100,
                compute_start: 110,
                compute_end: 150,
                exec_end: 160
            }
        );
    }

    #[test]
    fn stop_missing_or_unordered_marks_are_ordered() {
        for (start, end) in [
            (None, None),
            (Some(110), None),
            (None, Some(110)),
            (Some(150), Some(110)),
            (Some(1), Some(999)),
        ] {
            for stop in [50, 100, 160] {
                let times = stopwatch(start, end).stop(stop);
                assert!(times.exec_start <= times.compute_start, "{times:?}");
                assert!(times.compute_start <= times.compute_end, "{times:?}");
                assert!(times.compute_end <= times.exec_end, "{times:?}");
            }
        }
    }

    #[test]
    fn steady_clock_is_monotonic_and_not_zero() {
        let first = steady_clock_ns();
        assert!(first > 0);
        assert!(steady_clock_ns() >= first);
    }
}
