//! Continuous batching: one thread that owns a pipeline and advances all of its jobs step by step.
//!
//! Before every step the engine drops what is cancelled or too late, starts waiting requests for which there is room, and
//! chooses the jobs that take the step: the one that has waited longest for its work, and those that gain from sharing
//! its step. Jobs whose entries have one shape can share a batch, whatever their step, number of steps, guidance, seed or
//! scheduler. A request that fits may pass one that does not, so a short request waits neither for a long one nor for a
//! wide one to end.
//!
//! A request also needs memory, which it reserves in the [`MemoryBudget`] of the engine's device before it starts. It
//! waits while other jobs have reserved the memory, and fails if the device does not have that much.
//!
//! Requests wait in a queue that is bounded for each [`Owner`]. [`Engine::submit`] blocks only while the owner has no free
//! place, so Triton's own queue and its policies work then.
//!
//! A panic ends the jobs that run. The engine then goes on with a new pipeline.
//!
//! The engine knows neither Triton nor tensors. A [`Pipeline`] computes the jobs, and a [`ResponseHandler`] gets the
//! result of each [`QueuedRequest`].

mod admission;
mod batching;
mod jobs;
mod memory;
mod queue;
mod step_times;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diffusion_core::{Error, Result};

pub use batching::BatchEntries;
pub use memory::{MemoryBudget, MemoryNeed};
pub use queue::QueueLimits;
use queue::{Places, Queue, Queueable};

/// The stack of the engine's thread. Libraries such as libtorch expect the size of a main thread, which is 4 times the
/// default of Rust.
const STACK_SIZE: usize = 8 << 20;

/// The result of each job of a batch, in the order of the jobs.
pub type StepResults = Vec<Result<()>>;

/// Computes jobs. All methods are called on the engine's thread.
pub trait Pipeline: Send + 'static {
    /// The input of a job.
    type Request: Send;
    /// A request that the engine works on.
    type Job;
    /// The result of a job.
    type Output;
    /// What a client sees of a job that has not taken all its steps.
    type Preview;

    /// Prepares the engine's thread. Called once, before every other method.
    ///
    /// # Errors
    /// The thread cannot work on the device.
    fn init_thread(&mut self) -> Result<()>;

    /// Prepares a job.
    ///
    /// # Errors
    /// The request cannot be served. Other requests are not affected.
    fn prepare(&mut self, request: Self::Request) -> Result<Self::Job>;

    /// Returns what the job adds to its next batch. Called after [`Pipeline::prepare`] and before each step. The number of
    /// entries never changes; their shape may.
    fn batch_entries(&self, job: &Self::Job) -> BatchEntries;

    /// Returns how many steps the job takes in all.
    fn steps(&self, job: &Self::Job) -> usize;

    /// Returns whether the job has taken all its steps.
    fn is_done(&self, job: &Self::Job) -> bool;

    /// Advances jobs whose entries have one shape by one step.
    ///
    /// # Errors
    /// The step failed for all jobs, and none has advanced. Errors of single jobs are in the results.
    fn step(&mut self, jobs: &mut [&mut Self::Job]) -> Result<StepResults>;

    /// Returns whether a step is computed when [`Pipeline::step`] returns. If so, the engine learns from the times of steps
    /// whether jobs gain from a shared step. Otherwise jobs of one shape always share.
    fn is_synchronous(&self) -> bool;

    /// Returns the preview of a job that has taken a step; `None` for a job without one.
    ///
    /// # Errors
    /// The preview cannot be made. The job goes on.
    fn preview(&mut self, job: &Self::Job) -> Result<Option<Self::Preview>>;

    /// Turns a job that is done into its output.
    ///
    /// # Errors
    /// The output cannot be made. Other jobs are not affected.
    fn finish(&mut self, job: Self::Job) -> Result<Self::Output>;

    /// Frees cached memory. Called after an allocation failed.
    fn free_memory(&mut self);
}

/// Gets the result of a request.
///
/// The methods are called on the engine's thread. While the request waits for a place in the queue, and when it is
/// rejected there, they are called on the thread that submits it. No method may submit a request: the engine's thread
/// would wait for a place that only this thread can free.
pub trait ResponseHandler<Output, Preview>: Send {
    /// Returns whether the client has cancelled. Called between steps, and while the request waits.
    fn is_cancelled(&self) -> bool;
    /// Called while the request waits, before each step of the engine: so many requests come before it.
    fn on_wait(&self, position: usize);
    /// Called before the job is prepared.
    fn on_start(&self);
    /// Called after each step but the last: `taken` of the job's `steps` steps are taken. `preview` makes the preview, which
    /// delays the next step.
    fn on_step(&self, taken: usize, steps: usize, preview: &mut dyn FnMut() -> Result<Option<Preview>>);
    /// Takes the result. Called exactly once for every request.
    fn send(self: Box<Self>, result: Result<Output>);
}

/// Observes the engine. All methods are called on the engine's thread.
pub trait Observer: Send {
    /// The engine starts anew after a panic.
    fn engine_restarts(&self);
    /// The engine failed, by panics or with its device, and accepts no more requests.
    fn engine_failed(&self, reason: &str);
}

/// Observes the batches with jobs of one owner. Called on the engine's thread.
pub trait BatchObserver: Send + Sync {
    /// A batch of `batch_size` entries has been executed, and `entries` of them were of this owner's jobs.
    fn batch_executed(&self, entries: usize, batch_size: usize);
}

/// Whose requests they are, such as an instance of a model. Several owners can share an engine.
pub struct Owner {
    places: Places,
    observer: Arc<dyn BatchObserver>,
}

impl Owner {
    /// Makes an owner. `limits` bounds its requests that wait in an engine's queue.
    pub fn new(limits: QueueLimits, observer: Arc<dyn BatchObserver>) -> Self {
        Self {
            places: Places::new(limits),
            observer,
        }
    }
}

/// What a request asks the engine for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Entries that the job adds to a batch, at least 1.
    pub batch_size: usize,
    /// The number of steps, or about as many: a job may take more or fewer.
    pub steps: usize,
    /// What a step costs for one entry, in any unit that all requests share.
    pub entry_cost: u64,
}

impl Work {
    fn of_steps(&self, steps: usize) -> u64 {
        let step = (self.batch_size as u64).saturating_mul(self.entry_cost).max(1);
        step.saturating_mul(steps as u64)
    }

    fn total(&self) -> u64 {
        self.of_steps(self.steps)
    }
}

/// When a request must be answered at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The time.
    pub at: Instant,
    /// The duration that the client or the operator has set, for the error.
    pub limit: Duration,
}

/// A request on its way to the engine.
pub struct QueuedRequest<P: Pipeline> {
    /// The input of the job.
    pub request: P::Request,
    /// What the job asks for.
    pub work: Work,
    /// The memory of the device that the job needs.
    pub memory: MemoryNeed,
    /// The memory that the request holds while it waits, in bytes.
    pub bytes: usize,
    /// When it must be answered.
    pub deadline: Option<Deadline>,
    /// Whose request it is.
    pub owner: Arc<Owner>,
    /// Gets the result.
    pub handler: Box<dyn ResponseHandler<P::Output, P::Preview>>,
}

impl<P: Pipeline> Queueable for QueuedRequest<P> {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn places(&self) -> &Places {
        &self.owner.places
    }

    fn ended(&self) -> Option<Error> {
        ended(self.handler.as_ref(), self.deadline, None)
    }

    fn reject(self, reason: Error) {
        self.handler.send(Err(reason));
    }
}

/// Returns why a request must not go on. `progress` is the number of steps taken and to take of a job that runs.
fn ended<Output, Preview>(
    handler: &dyn ResponseHandler<Output, Preview>,
    deadline: Option<Deadline>,
    progress: Option<(usize, usize)>,
) -> Option<Error> {
    if handler.is_cancelled() {
        return Some(Error::cancelled("the request was cancelled"));
    }
    let Deadline { at, limit } = deadline?;
    (Instant::now() >= at).then(|| {
        let limit = limit.as_secs_f64();
        Error::deadline_exceeded(match progress {
            None => format!("the time limit of {limit:.3} s passed while the request waited"),
            Some((taken, steps)) => {
                format!("the time limit of {limit:.3} s passed after {taken} of {steps} UNet calls")
            }
        })
    })
}

/// A running engine. Dropping it computes the requests that it has, and joins the thread.
pub struct Engine<P: Pipeline> {
    queue: Arc<Queue<QueuedRequest<P>>>,
    thread: Option<JoinHandle<()>>,
}

impl<P: Pipeline> Engine<P> {
    /// Starts the thread `name`. `make_pipeline` is called now, and again after a panic. `max_batch_size` limits the
    /// entries of a batch, and of all jobs that run; `budget` limits their memory.
    ///
    /// # Errors
    /// `Internal` if the system refuses the thread.
    pub fn start(
        name: &str,
        mut make_pipeline: impl FnMut() -> P + Send + 'static,
        max_batch_size: usize,
        budget: &Arc<MemoryBudget>,
        observer: Box<dyn Observer>,
    ) -> Result<Self> {
        let queue = Arc::new(Queue::new());
        let memory = budget.share();
        let shared = Arc::clone(&queue);
        let pipeline = make_pipeline();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                worker::run(
                    pipeline,
                    Box::new(make_pipeline),
                    max_batch_size,
                    &shared,
                    memory,
                    observer.as_ref(),
                );
            })
            .map_err(|error| Error::internal(format!("cannot start the engine thread: {error}")))?;
        Ok(Self {
            queue,
            thread: Some(thread),
        })
    }

    /// Submits requests; blocks while the queue has no place for their owner. Requests that fit together start together. Each handler gets
    /// its result later, or before this returns if the engine has ended or the request ends while it waits for a place.
    pub fn submit(&self, requests: impl IntoIterator<Item = QueuedRequest<P>>) {
        self.queue.submit(requests);
    }
}

impl<P: Pipeline> Drop for Engine<P> {
    fn drop(&mut self) {
        self.queue.finish(Error::unavailable("the instance is being removed"));
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // The thread catches the panics of its jobs. If it panicked all the same, it has ended.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
