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
    /// The places that the request takes one of.
    fn places(&self) -> &Places;
    /// Why the request must not go on: it is cancelled, or its deadline has passed.
    fn ended(&self) -> Option<Error>;
    /// Answers the request without running it.
    fn reject(self, reason: Error);
}

/// The limits of an owner's places in a queue. One request is always allowed, however large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// The largest number of requests that wait.
    pub max_requests: usize,
    /// The memory of all requests that wait, in bytes.
    pub max_bytes: usize,
}

/// The places of one owner in a queue. So an owner with many requests does not keep out those of another.
#[derive(Debug)]
pub struct Places {
    limits: QueueLimits,
    /// The requests in the queue, submitted or taken and not yet started, and their memory in bytes.
    taken: Mutex<(usize, usize)>,
}

impl Places {
    /// Makes places, all of them free.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            taken: Mutex::default(),
        }
    }

    /// Takes a place, unless the queue is full.
    fn take(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (requests, before) = *taken;
        let bytes = before.saturating_add(bytes);
        let is_full = requests >= self.limits.max_requests || bytes > self.limits.max_bytes;
        let fits = requests == 0 || !is_full;
        if fits {
            *taken = (requests + 1, bytes);
        }
        fits
    }

    fn free(&self, bytes: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = (taken.0.saturating_sub(1), taken.1.saturating_sub(bytes));
    }
}

struct State<T> {
    /// Submitted, not yet taken by the engine's thread.
    submitted: VecDeque<T>,
    /// Why nothing is accepted anymore. Set once.
    closed: Option<Error>,
    /// Whether the requests in the queue are served after the end.
    drains: bool,
}

/// A queue with several senders and one receiver, the engine's thread. It is bounded for each owner of requests.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    /// Notified on every change of `state`.
    changed: Condvar,
}

impl<T> Queue<T> {
    /// Creates an empty queue.
    pub fn new() -> Self {
        let state = State {
            submitted: VecDeque::new(),
            closed: None,
            drains: false,
        };
        Self {
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

    /// Frees the place of a request that is started or answered.
    pub fn leave(&self, places: &Places, bytes: usize) {
        // Under the lock, so that a sender that found the queue full waits already and hears of it.
        let state = self.lock();
        places.free(bytes);
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
    /// Puts requests into the queue, in order. Blocks while the places of their owner are taken.
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
                if !request.places().take(request.bytes()) {
                    requests.push_front(request);
                    break;
                }
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
