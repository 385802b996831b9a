//! The threads that compute kernels: one pool for the process.
//!
//! A kernel divides its work into tasks. The thread that calls the kernel takes tasks, and so do idle threads of the pool.
//! Several callers share the pool; each makes progress by its own thread even if the pool is busy elsewhere. A thread
//! without work waits a short time with the processor offered to others, then sleeps: threads never keep a processor from
//! other models, from loads and from other programs.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread waits for work before it sleeps. Waking a sleeping thread takes about as long.
const AWAKE: Duration = Duration::from_micros(50);

thread_local! {
    /// The threads that compute for this one, itself included.
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Whether the thread is computing a task. A kernel in a task is computed by the thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Limits the threads that compute the kernels of the calling thread, itself included; 0 for as many as there are.
pub fn set_thread_limit(threads: usize) {
    LIMIT.set(if threads == 0 { usize::MAX } else { threads });
}

/// Returns how many threads compute a kernel of the calling thread, itself included.
pub fn threads() -> usize {
    if IN_TASK.get() {
        1
    } else {
        LIMIT.get().min(pool().workers + 1)
    }
}

/// Calls `task` with each number below `count`, by several threads at once, and returns when all calls have ended.
///
/// # Panics
/// If a call panics, after the other calls have ended.
pub fn for_each(count: usize, task: impl Fn(usize) + Sync) {
    let helpers = (threads() - 1).min(count.saturating_sub(1));
    if helpers == 0 {
        (0..count).for_each(task);
        return;
    }
    pool().run(count, helpers, &task);
}

/// The work of one call of [`for_each`].
struct Work {
    /// Valid while `done` is below `count`.
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
    /// The next number; may exceed `count`.
    next: AtomicUsize,
    done: AtomicUsize,
    /// How many more threads of the pool may take part.
    places: AtomicUsize,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    caller: Thread,
}

// SAFETY: `task` may be called from any thread, since what it points to is `Sync`, and is called only while the caller of
// `Pool::run` waits (see there).
unsafe impl Send for Work {}
// SAFETY: as above; the other fields are `Sync`.
unsafe impl Sync for Work {}

impl Work {
    fn is_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.count
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) >= self.count
    }

    /// Computes tasks until none is left.
    fn compute(&self) {
        let was_in_task = IN_TASK.replace(true);
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                break;
            }
            // SAFETY: this call has not ended, so `done` is below `count` and `Pool::run` has not returned.
            let task = unsafe { &*self.task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(number))) {
                *lock(&self.panicked) = Some(panic);
            }
            let caller = self.caller.clone();
            if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
                caller.unpark();
            }
        }
        IN_TASK.set(was_in_task);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Pool {
    workers: usize,
    /// Work with tasks that nobody has taken yet.
    open: Mutex<Vec<Arc<Work>>>,
    /// The length of `open`, to look at without the lock.
    count: AtomicUsize,
    /// Signaled for new work.
    opened: Condvar,
    sleeping: AtomicUsize,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pool: &'static Pool = Box::leak(Box::new(Pool {
            workers: cores - 1,
            open: Mutex::default(),
            count: AtomicUsize::new(0),
            opened: Condvar::new(),
            sleeping: AtomicUsize::new(0),
        }));
        for number in 0..pool.workers {
            let name = format!("kernels-{number}");
            // Without this thread the others do its work.
            let _ = thread::Builder::new().name(name).spawn(|| pool.work());
        }
        pool
    })
}

impl Pool {
    fn run(&self, count: usize, helpers: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: changes the lifetime alone. `task` is called only by calls that `done` has not counted, and this
        // function returns, in every case, only when `done` has counted all.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let work = Arc::new(Work {
            task,
            count,
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            places: AtomicUsize::new(helpers),
            panicked: Mutex::new(None),
            caller: thread::current(),
        });
        self.open(Arc::clone(&work), helpers);
        work.compute();
        wait_until(|| work.is_done());
        while !work.is_done() {
            thread::park();
        }
        let panic = lock(&work.panicked).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn open(&self, work: Arc<Work>, helpers: usize) {
        let mut open = lock(&self.open);
        open.retain(|work| !work.is_taken());
        open.push(work);
        self.count.store(open.len(), Ordering::Release);
        drop(open);
        let sleeping = self.sleeping.load(Ordering::Acquire);
        for _ in 0..helpers.min(sleeping) {
            self.opened.notify_one();
        }
    }

    /// Finds work that has a place for one more thread; of several the one with the most places.
    fn take(&self, open: &mut Vec<Arc<Work>>) -> Option<Arc<Work>> {
        open.retain(|work| !work.is_taken());
        self.count.store(open.len(), Ordering::Release);
        let places = |work: &Arc<Work>| work.places.load(Ordering::Relaxed);
        let work = open
            .iter()
            .max_by_key(|work| places(work))
            .filter(|work| places(work) > 0)?;
        // Places change under the lock of `open` alone.
        work.places.fetch_sub(1, Ordering::Relaxed);
        Some(Arc::clone(work))
    }

    /// The life of a thread of the pool.
    fn work(&self) {
        let mut open = lock(&self.open);
        loop {
            if let Some(work) = self.take(&mut open) {
                drop(open);
                work.compute();
                wait_until(|| self.count.load(Ordering::Acquire) > 0);
                open = lock(&self.open);
                continue;
            }
            self.sleeping.fetch_add(1, Ordering::AcqRel);
            open = self.opened.wait(open).unwrap_or_else(PoisonError::into_inner);
            self.sleeping.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Waits for a condition for a short time, and offers the processor to other threads meanwhile.
fn wait_until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() && started.elapsed() < AWAKE {
        for _ in 0..16 {
            std::hint::spin_loop();
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn every_number_is_computed_once_by_several_callers_at_once() {
        thread::scope(|scope| {
            for caller in 1..5 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let counts: Vec<_> = (0..caller * 7 + round % 3).map(|_| AtomicUsize::new(0)).collect();
                        for_each(counts.len(), |number| {
                            counts[number].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn limit_of_one_computes_on_the_calling_thread() {
        set_thread_limit(1);
        let caller = thread::current().id();
        for_each(8, |_| assert_eq!(thread::current().id(), caller));
        set_thread_limit(0);
        assert!(threads() >= 1);
    }

    #[test]
    fn kernel_in_a_task_is_computed_by_the_thread_alone() {
        for_each(4, |_| {
            let thread = thread::current().id();
            assert_eq!(threads(), 1);
            for_each(4, |_| assert_eq!(thread::current().id(), thread));
        });
    }

    #[test]
    fn panic_of_a_task_reaches_the_caller_after_all_tasks() {
        let count = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            for_each(16, |number| {
                count.fetch_add(1, Ordering::Relaxed);
                if number == 3 {
                    panic!("as armed");
                }
            });
        }));
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"as armed"));
        if threads() > 1 {
            assert_eq!(count.load(Ordering::Relaxed), 16);
        }
        for_each(2, |_| {});
    }
}
