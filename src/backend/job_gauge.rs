//! Counts a batch element in the gauges of its model: as waiting, then as running.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::metrics::Counters;

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// A batch element in the gauges of its model, until it ends or is dropped.
pub struct JobGauge {
    counters: Arc<Counters>,
    state: AtomicU8,
}

impl JobGauge {
    /// Counts a batch element that waits.
    pub fn new(counters: Arc<Counters>) -> Self {
        counters.load_changed(1, 0);
        Self {
            counters,
            state: AtomicU8::new(WAITING),
        }
    }

    /// The batch element is computed from now on.
    pub fn start(&self) {
        if self.state.swap(RUNNING, Ordering::Relaxed) == WAITING {
            self.counters.load_changed(-1, 1);
        }
    }

    /// The batch element is no longer computed.
    pub fn end(&self) {
        match self.state.swap(ENDED, Ordering::Relaxed) {
            WAITING => self.counters.load_changed(-1, 0),
            RUNNING => self.counters.load_changed(0, -1),
            _ => {}
        }
    }
}

impl Drop for JobGauge {
    fn drop(&mut self) {
        self.end();
    }
}
