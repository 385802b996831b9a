//! A thread that encodes images and sends responses, so the engine does not wait for either.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use diffusion_core::{Error, Result};
use triton_api::log_error;

/// Images that may wait, in bytes of their pixels. A sender blocks beyond this, so images do not pile up when encoding is
/// slow. The thread never waits for a thread that sends, so it always ends.
const MAX_WAITING_BYTES: usize = 32 << 20;

/// What the thread does for one batch element.
pub type EncodeTask = Box<dyn FnOnce() + Send>;

/// The images that wait for the thread, or that it encodes.
#[derive(Default)]
struct Waiting {
    bytes: Mutex<usize>,
    changed: Condvar,
}

impl Waiting {
    /// Waits until there is room. One batch element is always allowed, however large.
    fn enter(self: Arc<Self>, bytes: usize) -> Entry {
        let mut waiting = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *waiting > 0 && waiting.saturating_add(bytes) > MAX_WAITING_BYTES {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting = waiting.saturating_add(bytes);
        drop(waiting);
        Entry { waiting: self, bytes }
    }
}

/// The images of one task, until they are encoded.
struct Entry {
    waiting: Arc<Waiting>,
    bytes: usize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut waiting = self.waiting.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = waiting.saturating_sub(self.bytes);
        drop(waiting);
        self.waiting.changed.notify_all();
    }
}

/// Sends tasks to the encoder thread.
#[derive(Clone)]
pub struct EncoderHandle {
    tasks: mpsc::Sender<(EncodeTask, Entry)>,
    waiting: Arc<Waiting>,
}

impl EncoderHandle {
    /// Hands a task without images to the encoder thread. Never waits, and drops the task if the encoder thread has ended.
    pub fn post(&self, task: EncodeTask) {
        let entry = Entry {
            waiting: Arc::clone(&self.waiting),
            bytes: 0,
        };
        let _ = self.tasks.send((task, entry));
    }

    /// Hands a task with images of so many bytes to the encoder thread. Runs the task on the calling thread if the encoder
    /// thread has ended.
    pub fn run(&self, task: EncodeTask, bytes: usize) {
        let entry = Arc::clone(&self.waiting).enter(bytes);
        if let Err(mpsc::SendError((task, _entry))) = self.tasks.send((task, entry)) {
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
        let (sender, tasks) = mpsc::channel::<(EncodeTask, Entry)>();
        let thread = std::thread::Builder::new()
            .name("diffusion-encoder".to_owned())
            .spawn(move || tasks.into_iter().for_each(|(task, _entry)| run(task)))
            .map_err(|error| Error::internal(format!("cannot start the encoder thread: {error}")))?;
        Ok(Self {
            handle: Some(EncoderHandle {
                tasks: sender,
                waiting: Arc::default(),
            }),
            thread: Some(thread),
        })
    }

    /// Returns a handle to the thread. The thread runs as long as a handle exists.
    pub fn handle(&self) -> EncoderHandle {
        match &self.handle {
            Some(handle) => handle.clone(),
            // Only `drop` takes the handle. A channel without a receiver makes the caller run the task.
            None => EncoderHandle {
                tasks: mpsc::channel().0,
                waiting: Arc::default(),
            },
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sender_waits_while_too_many_bytes_wait() {
        let waiting = Arc::<Waiting>::default();
        // Larger than the limit, but alone.
        let large = Arc::clone(&waiting).enter(MAX_WAITING_BYTES * 2);
        let (entered, enters) = mpsc::channel();
        let second = Arc::clone(&waiting);
        let thread = std::thread::spawn(move || {
            let _entry = second.enter(1);
            entered.send(())
        });
        assert!(enters.recv_timeout(Duration::from_millis(50)).is_err());
        drop(large);
        assert!(enters.recv_timeout(Duration::from_secs(20)).is_ok());
        assert!(thread.join().is_ok());
        assert_eq!(waiting.bytes.lock().ok().as_deref(), Some(&0));
    }
}
