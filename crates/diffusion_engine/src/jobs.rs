//! The requests of an engine: waiting, and as jobs that run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diffusion_core::Error;

use super::admission::{Running, Waiting};
use super::batching::{BatchEntries, Turn};
use super::{Deadline, MemoryNeed, Owner, Pipeline, QueuedRequest, ResponseHandler, Work};

/// Requests that would delay a request may pass it for this long.
const MAX_PASSED_TIME: Duration = Duration::from_secs(10);

/// A result that a client waits for.
pub struct PendingResult<P: Pipeline> {
    /// Gets the result.
    pub handler: Box<dyn ResponseHandler<P::Output, P::Preview>>,
    /// When the request must be answered.
    pub deadline: Option<Deadline>,
    /// Whose request it is.
    pub owner: Arc<Owner>,
}

/// A request for which there is no room yet.
pub struct WaitingRequest<P: Pipeline> {
    /// The request, which has its place in the queue until it starts.
    pub request: QueuedRequest<P>,
    /// When the engine's thread got it.
    pub since: Instant,
    /// The work of the requests that have passed it.
    pub passed: u64,
}

/// A request that is being computed.
pub struct RunningJob<P: Pipeline> {
    /// The pipeline's state of it.
    pub job: P::Job,
    /// Its result.
    pub pending: PendingResult<P>,
    /// What the request has announced, with the number of steps that the job takes.
    pub work: Work,
    /// The memory that it needs.
    pub memory: MemoryNeed,
    /// The steps so far.
    pub steps_taken: usize,
    /// The entries of its next step.
    pub entries: BatchEntries,
    /// When the engine's thread got the request.
    pub since: Instant,
    /// Why the job cannot go on.
    pub failed: Option<Error>,
}

impl<P: Pipeline> WaitingRequest<P> {
    /// Returns what decides whether the request starts.
    pub fn admissible(&self, now: Instant) -> Waiting {
        let work = self.request.work.total();
        Waiting {
            batch_size: self.request.work.batch_size,
            work,
            // Passed by as much work as it asks for, it has waited its share.
            may_be_passed: self.passed < work && now.duration_since(self.since) < MAX_PASSED_TIME,
        }
    }
}

impl<P: Pipeline> RunningJob<P> {
    /// Returns the room that the job takes, and how much work is left.
    pub fn occupied(&self) -> Running {
        let steps_left = self.work.steps.saturating_sub(self.steps_taken);
        Running {
            batch_size: self.work.batch_size,
            work: self.work.of_steps(steps_left),
        }
    }

    /// Counts a step, and tells the handler unless it is the last one or has failed.
    pub fn count_step(&mut self, pipeline: &mut P) {
        self.steps_taken += 1;
        if self.failed.is_none() && self.steps_taken < self.work.steps {
            let mut preview = || pipeline.preview(&self.job);
            self.pending
                .handler
                .on_step(self.steps_taken, self.work.steps, &mut preview);
        }
    }

    /// Returns what decides when the job takes its next step.
    pub fn turn(&self, now: Instant) -> Turn {
        Turn {
            entries: self.entries.clone(),
            work: self.work.total(),
            age: now.duration_since(self.since),
        }
    }
}
