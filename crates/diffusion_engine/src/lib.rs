//! Steps, not requests: one thread that owns a pipeline and moves all of its jobs on together.
//!
//! Between two steps the engine admits jobs that wait, drops jobs that were cancelled and regroups
//! the rest: jobs of equal shape share a UNet call whatever their step, number of steps, guidance,
//! seed or scheduler. So a short request never waits for a long one to end. [`Engine::submit`] blocks
//! only while the engine is full, which leaves Triton's own queue, priorities and timeouts their
//! meaning.
//!
//! The engine knows neither Triton nor libtorch: jobs belong to a [`Pipeline`], answers go to whoever
//! submitted a [`Task`].

mod admission;
mod batching;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;

use diffusion_core::{Error, Result};

use admission::Admission;
pub use batching::Batch;

/// How each job fared in a step, in the order of the jobs.
pub type StepOutcome = Vec<Result<()>>;

/// What an engine runs.
pub trait Pipeline: Send + 'static {
    /// What a job is made of.
    type Request: Send;
    /// A request in flight.
    type Job;
    /// What a job comes to.
    type Output;

    /// Called once, first, on the thread that will make every other call.
    ///
    /// # Errors
    /// The thread cannot work on the device.
    fn enter_thread(&mut self) -> Result<()>;

    /// A job at its start.
    ///
    /// # Errors
    /// The request cannot be served; no other request is concerned.
    fn prepare(&mut self, request: Self::Request) -> Result<Self::Job>;

    /// What the job adds to a UNet call. It does not change while the job lives.
    fn batch(&self, job: &Self::Job) -> Batch;

    /// Whether all steps are behind the job.
    fn is_done(&self, job: &Self::Job) -> bool;

    /// One UNet call for jobs of equal shape.
    ///
    /// # Errors
    /// The call failed for all, and no job has moved; what befell single jobs is in the outcome.
    fn step(&mut self, jobs: &mut [&mut Self::Job]) -> Result<StepOutcome>;

    /// The end of a job.
    ///
    /// # Errors
    /// The job's own.
    fn finish(&mut self, job: Self::Job) -> Result<Self::Output>;

    /// Gives unused memory back, after memory ran out.
    fn relieve(&mut self);
}

/// Whoever waits for a job. Called on the engine's thread; while the task waits to be let in, and if it
/// is turned away, on the thread that submits it. No call may submit: the engine's thread would wait for
/// room that only it can make.
pub trait Client<Output>: Send {
    /// Whether the answer is no longer wanted. Asked between steps, and while the task waits.
    fn is_cancelled(&self) -> bool;
    /// The job is about to be prepared.
    fn started(&self);
    /// The answer; exactly one for every task.
    fn answer(self: Box<Self>, outcome: Result<Output>);
}

/// What the engine tells of its work. All calls come from the engine's thread.
pub trait Observer: Send {
    /// A UNet call of this many jobs and rows is done.
    fn unet_call(&self, jobs: usize, rows: usize);
    /// A job was dropped because its client had cancelled.
    fn cancelled(&self);
    /// The engine can no longer work.
    fn poisoned(&self, reason: &str);
}

/// A request on its way to the engine.
pub struct Task<P: Pipeline> {
    /// The request.
    pub request: P::Request,
    /// Rows that it will add to a UNet call, at least 1.
    pub rows: usize,
    /// Whoever waits for it.
    pub client: Box<dyn Client<P::Output>>,
}

/// A running engine. Dropping it answers what is in flight with UNAVAILABLE and joins the thread.
pub struct Engine<P: Pipeline> {
    admission: Arc<Admission<Task<P>>>,
    thread: Option<JoinHandle<()>>,
}

impl<P: Pipeline> Engine<P> {
    /// Starts the thread `name`. At most `max_unet_batch_size` rows are in flight, and in one UNet call.
    ///
    /// # Errors
    /// `Internal` if the system gives no thread.
    pub fn start(name: &str, pipeline: P, max_unet_batch_size: usize, observer: Box<dyn Observer>) -> Result<Self> {
        let admission = Arc::new(Admission::new(max_unet_batch_size));
        let shared = Arc::clone(&admission);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || worker::run(pipeline, &shared, observer.as_ref()))
            .map_err(|error| Error::internal(format!("no thread for the engine: {error}")))?;
        Ok(Self {
            admission,
            thread: Some(thread),
        })
    }

    /// Hands tasks over; blocks while the engine is full. Tasks that there is room for begin together. A
    /// task's client gets its answer later, or at once if the engine is closed or the client cancels while
    /// it waits.
    pub fn submit(&self, tasks: impl IntoIterator<Item = Task<P>>) {
        self.admission.enter(
            tasks,
            |task| task.rows,
            |task| task.client.is_cancelled(),
            |task, error| task.client.answer(Err(error)),
        );
    }
}

impl<P: Pipeline> Drop for Engine<P> {
    fn drop(&mut self) {
        self.admission.close(Error::unavailable("the model is being unloaded"));
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // The thread catches every panic of its jobs; one that it could not is over now.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
