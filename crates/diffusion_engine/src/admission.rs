//! Bounded admission to the engine, and its end.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diffusion_core::Error;

/// How often a request that waits for capacity is asked whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(20);

/// A request that waits for capacity.
pub trait Admissible {
    /// Entries that the request adds to a batch, at least 1.
    fn batch_size(&self) -> usize;
    /// Whether the client has cancelled the request.
    fn is_cancelled(&self) -> bool;
    /// Answers the request without running it.
    fn reject(self, reason: Error);
}

struct State<T> {
    /// Admitted, not yet taken by the engine's thread.
    queued: VecDeque<T>,
    /// Batch entries of all requests that were admitted and not released.
    batch_size: usize,
    /// Why nothing is admitted anymore. Set once.
    closed: Option<Error>,
}

/// Limits the batch entries of all requests in the engine.
pub struct Admission<T> {
    max_batch_size: usize,
    state: Mutex<State<T>>,
    /// Notified on every change of `state`.
    changed: Condvar,
}

impl<T> Admission<T> {
    /// Creates an admission with a capacity of `max_batch_size` batch entries.
    pub fn new(max_batch_size: usize) -> Self {
        let state = State {
            queued: VecDeque::new(),
            batch_size: 0,
            closed: None,
        };
        Self {
            max_batch_size,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Returns the capacity in batch entries.
    pub fn max_batch_size(&self) -> usize {
        self.max_batch_size
    }

    /// Returns the requests that were admitted since the last call. Waits for one if `wait` is set. `None` means that
    /// the admission is closed.
    pub fn take_admitted(&self, wait: bool) -> Option<Vec<T>> {
        let mut state = self.lock();
        while wait && state.queued.is_empty() && state.closed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.closed.is_none().then(|| state.queued.drain(..).collect())
    }

    /// Frees the capacity that a request used.
    pub fn release(&self, batch_size: usize) {
        let mut state = self.lock();
        state.batch_size = state.batch_size.saturating_sub(batch_size);
        drop(state);
        self.changed.notify_all();
    }

    /// Closes the admission. Later calls keep the first reason.
    pub fn close(&self, reason: Error) {
        self.lock().closed.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Returns why the admission is closed, and the requests that were admitted and never taken.
    pub fn drain(&self) -> (Option<Error>, Vec<T>) {
        let mut state = self.lock();
        let queued = state.queued.drain(..).collect();
        (state.closed.clone(), queued)
    }

    /// Returns whether the admission is closed.
    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Admissible> Admission<T> {
    /// Admits requests in order and blocks until there is capacity for all of them. Requests that fit together are
    /// admitted together. A request that is larger than the capacity is admitted when the engine is empty.
    ///
    /// Rejects a request that is cancelled while it waits, and all requests once the admission is closed.
    /// `is_cancelled` and `reject` are called without the lock, because they may call another library.
    pub fn admit(&self, requests: impl IntoIterator<Item = T>) {
        let mut requests: VecDeque<T> = requests.into_iter().collect();
        let mut state = self.lock();
        loop {
            if let Some(reason) = state.closed.clone() {
                drop(state);
                return requests.into_iter().for_each(|request| request.reject(reason.clone()));
            }
            while let Some(request) = requests.pop_front() {
                let batch_size = state.batch_size.saturating_add(request.batch_size());
                if state.batch_size > 0 && batch_size > self.max_batch_size {
                    requests.push_front(request);
                    break;
                }
                state.batch_size = batch_size;
                state.queued.push_back(request);
                self.changed.notify_all();
            }
            drop(state);
            let (cancelled, waiting): (VecDeque<T>, VecDeque<T>) = requests.into_iter().partition(T::is_cancelled);
            requests = waiting;
            for request in cancelled {
                request.reject(Error::cancelled("the request was cancelled"));
            }
            if requests.is_empty() {
                return;
            }
            let waited = self.changed.wait_timeout(self.lock(), CANCEL_POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
