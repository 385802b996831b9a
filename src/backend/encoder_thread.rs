//! A thread that encodes images and sends responses, so the engine does not wait for either.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::JoinHandle;

use diffusion_core::{Error, Result};
use triton_api::log_error;

/// Tasks that may wait. A sender blocks beyond this number, so images do not pile up when encoding is slow. The thread
/// never waits for a thread that sends, so it always ends.
const MAX_QUEUED_TASKS: usize = 16;

/// What the thread does for one batch element.
pub type EncodeTask = Box<dyn FnOnce() + Send>;

/// Sends tasks to the encoder thread.
#[derive(Clone)]
pub struct EncoderHandle(mpsc::SyncSender<EncodeTask>);

impl EncoderHandle {
    /// Hands a task to the encoder thread. Runs the task on the calling thread if the encoder thread has ended.
    pub fn run(&self, task: EncodeTask) {
        if let Err(mpsc::SendError(task)) = self.0.send(task) {
            run(task);
        }
    }
}

/// Owns the encoder thread. Dropping it waits until all tasks are done.
pub struct EncoderThread {
    handle: Option<EncoderHandle>,
    thread: Option<JoinHandle<()>>,
}

impl EncoderThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Internal` if the system refuses the thread.
    pub fn start() -> Result<Self> {
        let (sender, tasks) = mpsc::sync_channel(MAX_QUEUED_TASKS);
        let thread = std::thread::Builder::new()
            .name("diffusion-encoder".to_owned())
            .spawn(move || tasks.into_iter().for_each(run))
            .map_err(|error| Error::internal(format!("cannot start the encoder thread: {error}")))?;
        Ok(Self {
            handle: Some(EncoderHandle(sender)),
            thread: Some(thread),
        })
    }

    /// Returns a handle to the thread. The thread runs as long as a handle exists.
    pub fn handle(&self) -> EncoderHandle {
        match &self.handle {
            Some(handle) => handle.clone(),
            // Only `drop` takes the handle. A channel without a receiver makes the caller run the task.
            None => EncoderHandle(mpsc::sync_channel(0).0),
        }
    }
}

impl Drop for EncoderThread {
    fn drop(&mut self) {
        self.handle = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // The thread catches panics. It ends when the last handle is gone.
            let _ = thread.join();
        }
    }
}

/// Runs a task. A slot that is dropped by a panic answers its request.
fn run(task: EncodeTask) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(task)) {
        // The destructor of a payload may panic.
        std::mem::forget(payload);
        log_error!("internal error: a panic while an image was encoded");
    }
}
