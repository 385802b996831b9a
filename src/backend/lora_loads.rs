//! Threads that load LoRAs, so that neither Triton's thread nor the engine waits for a file.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use triton_api::log_warn;

/// Loads at the same time. Further ones run on the calling thread, so that Triton's queue works then.
const MAX_THREADS: usize = 16;

/// The threads that load LoRAs for requests. Dropping it waits for them.
#[derive(Default)]
pub struct LoraLoads {
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl LoraLoads {
    /// Runs `load` on a new thread, or on the calling thread if there are too many or the system refuses one.
    pub fn run(&self, load: impl FnOnce() + Send + 'static) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        if threads.len() >= MAX_THREADS {
            drop(threads);
            return load();
        }
        // A refused thread drops its function, and the request in it: this function stays here until one takes it.
        let load = Arc::new(Mutex::new(Some(load)));
        let taken = Arc::clone(&load);
        let take = |load: &Mutex<Option<_>>| load.lock().unwrap_or_else(PoisonError::into_inner).take();
        let name = "diffusion-loras".to_owned();
        let started = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(load) = take(&taken) {
                load();
            }
        });
        match started {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                drop(threads);
                log_warn!("diffusion: cannot start a thread that loads LoRAs: {error}");
                if let Some(load) = take(&load) {
                    load();
                }
            }
        }
    }
}

impl Drop for LoraLoads {
    fn drop(&mut self) {
        let threads = std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has ended, and its request was answered when it was dropped.
            let _ = thread.join();
        }
    }
}
