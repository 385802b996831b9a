//! A thread for what follows a job, so that the engine need not wait for images to be encoded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::JoinHandle;

use triton_api::log_error;

use diffusion_core::{Error, Result};

/// How much work may wait. A sender beyond it waits, so that images do not pile up behind a slow
/// encoder; the thread never waits for a sender's own thread, so it always comes to an end.
const WAITING: usize = 16;

/// What the thread does for one row.
pub type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread.
#[derive(Clone)]
pub struct Sender(mpsc::SyncSender<Work>);

impl Sender {
    /// Hands work over. Should the thread be gone, it is done here and now.
    pub fn send(&self, work: Work) {
        if let Err(mpsc::SendError(work)) = self.0.send(work) {
            run(work);
        }
    }
}

/// The thread; dropping it waits until all work is done.
pub struct Responder {
    sender: Option<Sender>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Internal` if the system gives no thread.
    pub fn start() -> Result<Self> {
        let (sender, works) = mpsc::sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("diffusion-responder".to_owned())
            .spawn(move || works.into_iter().for_each(run))
            .map_err(|error| Error::internal(format!("no thread for the responder: {error}")))?;
        Ok(Self {
            sender: Some(Sender(sender)),
            thread: Some(thread),
        })
    }

    /// A way to the thread. The thread lives as long as any is left.
    pub fn sender(&self) -> Sender {
        match &self.sender {
            Some(sender) => sender.clone(),
            // Only `drop` takes it; a channel without a receiver makes the caller do the work.
            None => Sender(mpsc::sync_channel(0).0),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Panics are caught in the thread; it ends when the last sender is gone.
            let _ = thread.join();
        }
    }
}

/// Does the work. What it owns answers for itself when it panics: a slot that is dropped does.
fn run(work: Work) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
        log_error!("an image could not be encoded: a fault inside the backend");
    }
}
