//! The threads of libtorch's operators.

use std::sync::{Mutex, PoisonError};
use std::thread;

use tch::{Device, Kind, Tensor};

use super::kernels;

/// Limits the threads that compute for the calling thread, itself included; 0 for as many as the machine has.
///
/// With `fast` the limit is that of [`kernels`], and libtorch's own operators, of which few are left, run on the calling
/// thread alone: OpenMP's threads wait for work with a busy loop, which slows all other threads of the machine.
pub fn limit(threads: usize, fast: bool) {
    kernels::set_thread_limit(threads);
    if fast {
        limit_libtorch(1);
    } else if threads > 0 {
        limit_libtorch(threads);
    }
}

/// Calls `f` with libtorch's operators on up to `threads` threads, 0 for as many as the machine has, where [`limit`] has
/// left them one.
pub fn with_libtorch_threads<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    let before = tch::get_num_threads();
    let machine = thread::available_parallelism().map_or(1, usize::from);
    let wanted = if threads == 0 { machine } else { threads };
    limit_libtorch(wanted);
    let result = f();
    limit_libtorch(usize::try_from(before).unwrap_or(1));
    result
}

/// Lets OpenMP's threads wait for work a hundredth of the usual time before they sleep, in the whole process.
///
/// They wait in a busy loop, for milliseconds, unless there are more of them than processors
/// (`gomp_throttled_spin_count_var` in GCC's `libgomp/team.c`). So a thread that sleeps for the life of the process has as
/// many of them as there are processors. A user's `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT` is left alone.
pub fn shorten_waits() {
    let chosen = |name| std::env::var_os(name).is_some();
    if chosen("OMP_WAIT_POLICY") || chosen("GOMP_SPINCOUNT") {
        return;
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let (made, wait) = std::sync::mpsc::channel();
    // Without the thread OpenMP waits as usual.
    let spawned = thread::Builder::new()
        .name(String::from("openmp-waits"))
        .spawn(move || {
            limit_libtorch(processors + 1);
            let _ = make_threads(processors + 1);
            let _ = made.send(());
            loop {
                thread::park();
            }
        });
    if spawned.is_ok() {
        let _ = wait.recv();
    }
}

/// Runs an operator that is large enough for so many threads (`at::internal::GRAIN_SIZE` is 32768 elements).
fn make_threads(threads: usize) -> Result<(), tch::TchError> {
    let elements = i64::try_from(threads * 2 * 32768).unwrap_or(i64::MAX);
    let zeros = Tensor::f_zeros([elements], (Kind::Float, Device::Cpu))?;
    zeros.f_cos().map(drop)
}

/// Sets the number of libtorch's threads for the calling thread alone.
///
/// `at::set_num_threads` also sets what threads get that call libtorch later (`aten/src/ATen/ParallelOpenMP.cpp`). Another
/// thread, which had that number before, sets it back.
fn limit_libtorch(threads: usize) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(before) = thread::spawn(tch::get_num_threads).join() else {
        return;
    };
    // The first question on a thread sets its number, which must not happen later.
    let _ = tch::get_num_threads();
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    // Fails only if the thread cannot be made; then later threads have this limit.
    let _ = thread::spawn(move || tch::set_num_threads(before)).join();
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn limit_is_of_the_calling_thread() {
        let others = thread::spawn(tch::get_num_threads).join().unwrap();
        let limited = thread::spawn(|| {
            limit(1, true);
            let inside = with_libtorch_threads(3, tch::get_num_threads);
            (tch::get_num_threads(), inside)
        });
        assert_eq!(limited.join().unwrap(), (1, 3));
        assert_eq!(thread::spawn(tch::get_num_threads).join().unwrap(), others);
    }
}
