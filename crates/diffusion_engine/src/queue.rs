//! The bounded queue between the threads that submit requests and the engine's thread.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diffusion_core::Error;

/// How often a request that waits for a place in the queue is asked whether it has ended.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long [`Queue::take`] waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Never,
    /// A moment, so that the caller can look again at what changes without a notice.
    Moment,
    /// Until there is one.
    Always,
}

/// A request on its way through the queue.
pub trait Queueable {
    /// The memory that the request holds while it waits, in bytes.
    fn bytes(&self) -> usize;
    /// Why the request must not go on: it is cancelled, or its deadline has passed.
    fn ended(&self) -> Option<Error>;
    /// Answers the request without running it.
    fn reject(self, reason: Error);
}

/// The limits of a queue. One request is always allowed, however large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// The largest number of requests that wait.
    pub max_requests: usize,
    /// The memory of all requests that wait, in bytes.
    pub max_bytes: usize,
}

struct State<T> {
    /// Submitted, not yet taken by the engine's thread.
    submitted: VecDeque<T>,
    /// Requests in the queue: submitted, or taken and not yet started.
    requests: usize,
    /// Their memory.
    bytes: usize,
    /// Why nothing is accepted anymore. Set once.
    closed: Option<Error>,
    /// Whether the requests in the queue are served after the end.
    drains: bool,
}

/// A bounded queue with several senders and one receiver, the engine's thread.
pub struct Queue<T> {
    limits: QueueLimits,
    state: Mutex<State<T>>,
    /// Notified on every change of `state`.
    changed: Condvar,
}

impl<T> Queue<T> {
    /// Creates an empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        let state = State {
            submitted: VecDeque::new(),
            requests: 0,
            bytes: 0,
            closed: None,
            drains: false,
        };
        Self {
            limits,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Returns the requests that were submitted since the last call, and waits for one as `wait` says. `None` means that the
    /// queue is closed, and, if it drains, that no submitted request is left.
    pub fn take(&self, wait: Wait) -> Option<Vec<T>> {
        let mut state = self.lock();
        let nothing_new = |state: &State<T>| state.submitted.is_empty() && state.closed.is_none();
        match wait {
            Wait::Never => {}
            Wait::Moment if nothing_new(&state) => {
                let waited = self.changed.wait_timeout(state, POLL_INTERVAL);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            Wait::Moment => {}
            Wait::Always => {
                while nothing_new(&state) {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        let has_more = wait != Wait::Always || !state.submitted.is_empty();
        let goes_on = state.closed.is_none() || state.drains && has_more;
        goes_on.then(|| state.submitted.drain(..).collect())
    }

    /// Returns the number of requests in the queue: submitted, or taken and not yet started.
    pub fn len(&self) -> usize {
        self.lock().requests
    }

    /// Frees the place of a request that is started or answered.
    pub fn leave(&self, bytes: usize) {
        let mut state = self.lock();
        state.requests = state.requests.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(bytes);
        drop(state);
        self.changed.notify_all();
    }

    /// Closes the queue. The requests in it are not served. Later calls keep the first reason.
    pub fn close(&self, reason: Error) {
        let mut state = self.lock();
        state.closed.get_or_insert(reason);
        state.drains = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Closes the queue after the requests in it. Does nothing if the queue is closed.
    pub fn finish(&self, reason: Error) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some(reason);
            state.drains = true;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns why the queue is closed, and the requests that were submitted and never taken.
    pub fn drain(&self) -> (Option<Error>, Vec<T>) {
        let mut state = self.lock();
        let submitted = state.submitted.drain(..).collect();
        (state.closed.clone(), submitted)
    }

    /// Returns whether the queue is closed.
    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Queueable> Queue<T> {
    /// Puts requests into the queue, in order. Blocks while the queue is full.
    ///
    /// Rejects a request that ends while it waits for a place, and all requests once the queue is closed. `ended` and
    /// `reject` are called without the lock, because they may call another library.
    pub fn submit(&self, requests: impl IntoIterator<Item = T>) {
        let mut requests: VecDeque<T> = requests.into_iter().collect();
        let mut state = self.lock();
        loop {
            if let Some(reason) = state.closed.clone() {
                drop(state);
                return requests.into_iter().for_each(|request| request.reject(reason.clone()));
            }
            while let Some(request) = requests.pop_front() {
                let bytes = state.bytes.saturating_add(request.bytes());
                let is_full = state.requests >= self.limits.max_requests || bytes > self.limits.max_bytes;
                if state.requests > 0 && is_full {
                    requests.push_front(request);
                    break;
                }
                state.requests += 1;
                state.bytes = bytes;
                state.submitted.push_back(request);
                self.changed.notify_all();
            }
            drop(state);
            if requests.is_empty() {
                return;
            }
            let mut waiting = VecDeque::new();
            for request in requests {
                match request.ended() {
                    Some(reason) => request.reject(reason),
                    None => waiting.push_back(request),
                }
            }
            requests = waiting;
            if requests.is_empty() {
                return;
            }
            let waited = self.changed.wait_timeout(self.lock(), POLL_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
