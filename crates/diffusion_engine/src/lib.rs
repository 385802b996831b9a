//! Continuous batching: one thread that owns a pipeline and advances all of its jobs step by step.
//!
//! Before every step the engine admits waiting requests, drops cancelled jobs and groups the rest: jobs whose entries
//! have one shape share a batch, whatever their step, number of steps, guidance, seed or scheduler. A short request
//! never waits for a long one to end. [`Engine::submit`] blocks only while the engine is full, so Triton's queue,
//! priorities and timeouts keep their meaning.
//!
//! The engine knows neither Triton nor tensors. A [`Pipeline`] computes the jobs, and a [`ResponseHandler`] gets the
//! result of each [`QueuedRequest`].

mod admission;
mod batching;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;

use diffusion_core::{Error, Result};

use admission::{Admissible, Admission};
pub use batching::BatchEntries;

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

    /// Returns whether the job has taken all its steps.
    fn is_done(&self, job: &Self::Job) -> bool;

    /// Advances jobs whose entries have one shape by one step.
    ///
    /// # Errors
    /// The step failed for all jobs, and none has advanced. Errors of single jobs are in the results.
    fn step(&mut self, jobs: &mut [&mut Self::Job]) -> Result<StepResults>;

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
/// The methods are called on the engine's thread. While the request waits for admission, and when it is rejected, they
/// are called on the thread that submits it. No method may submit a request: the engine's thread would wait for
/// capacity that only this thread can free.
pub trait ResponseHandler<Output>: Send {
    /// Returns whether the client has cancelled. Called between steps, and while the request waits for admission.
    fn is_cancelled(&self) -> bool;
    /// Called before the job is prepared.
    fn on_start(&self);
    /// Takes the result. Called exactly once for every request.
    fn send(self: Box<Self>, result: Result<Output>);
}

/// Observes the engine. All methods are called on the engine's thread.
pub trait Observer: Send {
    /// A batch of `jobs` jobs with `batch_size` entries has been executed.
    fn batch_executed(&self, jobs: usize, batch_size: usize);
    /// A job was dropped because its client had cancelled.
    fn job_cancelled(&self);
    /// The engine failed, by a panic or with its device, and accepts no more requests.
    fn engine_failed(&self, reason: &str);
}

/// A request on its way to the engine.
pub struct QueuedRequest<P: Pipeline> {
    /// The input of the job.
    pub request: P::Request,
    /// Entries that the job will add to a batch, at least 1.
    pub batch_size: usize,
    /// Gets the result.
    pub handler: Box<dyn ResponseHandler<P::Output>>,
}

impl<P: Pipeline> Admissible for QueuedRequest<P> {
    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn is_cancelled(&self) -> bool {
        self.handler.is_cancelled()
    }

    fn reject(self, reason: Error) {
        self.handler.send(Err(reason));
    }
}

/// A running engine. Dropping it answers all its jobs with UNAVAILABLE and joins the thread.
pub struct Engine<P: Pipeline> {
    admission: Arc<Admission<QueuedRequest<P>>>,
    thread: Option<JoinHandle<()>>,
}

impl<P: Pipeline> Engine<P> {
    /// Starts the thread `name`. `max_batch_size` limits the entries of a batch, and of all jobs in the engine.
    ///
    /// # Errors
    /// `Internal` if the system refuses the thread.
    pub fn start(name: &str, pipeline: P, max_batch_size: usize, observer: Box<dyn Observer>) -> Result<Self> {
        let admission = Arc::new(Admission::new(max_batch_size));
        let shared = Arc::clone(&admission);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || worker::run(pipeline, &shared, observer.as_ref()))
            .map_err(|error| Error::internal(format!("cannot start the engine thread: {error}")))?;
        Ok(Self {
            admission,
            thread: Some(thread),
        })
    }

    /// Submits requests; blocks while the engine is full. Requests that fit together start together. Each handler gets
    /// its result later, or before this returns if the engine is closed or the client cancels while the request waits.
    pub fn submit(&self, requests: impl IntoIterator<Item = QueuedRequest<P>>) {
        self.admission.admit(requests);
    }
}

impl<P: Pipeline> Drop for Engine<P> {
    fn drop(&mut self) {
        self.admission.close(Error::unavailable("the model is being unloaded"));
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
