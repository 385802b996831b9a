//! The way into the engine: back-pressure, and the end.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diffusion_core::Error;

/// How often a task that waits for room is asked whether it is still wanted.
const CANCEL_POLL: Duration = Duration::from_millis(20);

struct State<T> {
    /// Let in, not yet taken by the engine.
    waiting: VecDeque<T>,
    /// Rows of all tasks that were let in and have not left.
    rows: usize,
    /// Set once: why nothing is let in any more.
    closed: Option<Error>,
}

/// A door that lets tasks in while there is room for their rows.
pub struct Admission<T> {
    max_unet_batch_size: usize,
    state: Mutex<State<T>>,
    /// Rung when a task is let in, leaves, or the door closes.
    changed: Condvar,
}

impl<T> Admission<T> {
    /// A door to a room of `max_unet_batch_size` rows.
    pub fn new(max_unet_batch_size: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            rows: 0,
            closed: None,
        };
        Self {
            max_unet_batch_size,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// The rows that there is room for.
    pub fn max_unet_batch_size(&self) -> usize {
        self.max_unet_batch_size
    }

    /// Lets tasks in, in order, as soon as there is room for their `rows`: those that fit at once get in
    /// at once. A task that is wider than the room gets in when it is empty.
    ///
    /// Gives a task to `refuse` with the reason if `is_cancelled` says so while it waits, or if the door
    /// is closed. All three are called without the lock, since what they do may be another library's.
    pub fn enter(
        &self,
        tasks: impl IntoIterator<Item = T>,
        rows: impl Fn(&T) -> usize,
        is_cancelled: impl Fn(&T) -> bool,
        refuse: impl Fn(T, Error),
    ) {
        let mut tasks: VecDeque<(usize, T)> = tasks.into_iter().map(|task| (rows(&task), task)).collect();
        let mut state = self.lock();
        loop {
            if let Some(reason) = state.closed.clone() {
                drop(state);
                return tasks.into_iter().for_each(|(_, task)| refuse(task, reason.clone()));
            }
            while let Some((rows, task)) = tasks.pop_front() {
                if state.rows > 0 && state.rows.saturating_add(rows) > self.max_unet_batch_size {
                    tasks.push_front((rows, task));
                    break;
                }
                state.rows += rows;
                state.waiting.push_back(task);
                self.changed.notify_all();
            }
            drop(state);
            let (cancelled, waiting): (VecDeque<_>, VecDeque<_>) =
                tasks.into_iter().partition(|(_, task)| is_cancelled(task));
            tasks = waiting;
            for (_, task) in cancelled {
                refuse(task, Error::cancelled("the request was cancelled"));
            }
            if tasks.is_empty() {
                return;
            }
            state = self.wait_a_little(self.lock());
        }
    }

    /// Everything that was let in since the last call. With `idle` it waits for something; `None`
    /// means that the door is closed.
    pub fn take(&self, idle: bool) -> Option<Vec<T>> {
        let mut state = self.lock();
        while idle && state.waiting.is_empty() && state.closed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed.is_some() {
            return None;
        }
        Some(state.waiting.drain(..).collect())
    }

    /// Gives `rows` back.
    pub fn leave(&self, rows: usize) {
        let mut state = self.lock();
        state.rows = state.rows.saturating_sub(rows);
        drop(state);
        self.changed.notify_all();
    }

    /// Lets nothing in any more. The first reason stays.
    pub fn close(&self, reason: Error) {
        self.lock().closed.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Why the door is closed, and what was let in and never taken.
    pub fn leftovers(&self) -> (Option<Error>, Vec<T>) {
        let mut state = self.lock();
        let waiting = state.waiting.drain(..).collect();
        (state.closed.clone(), waiting)
    }

    /// Whether anything is let in any more.
    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_a_little<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed
            .wait_timeout(state, CANCEL_POLL)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// The error for whatever is in flight when the engine ends.
pub fn closing(reason: Option<Error>) -> Error {
    reason.unwrap_or_else(|| Error::unavailable("the engine has ended"))
}
