//! The requests that run, by the addresses of their clients: for clients that ask for progress on another connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::update::Progress;

/// The jobs of all clients.
#[derive(Default)]
pub struct RunningJobs {
    clients: Mutex<HashMap<IpAddr, Vec<Arc<Job>>>>,
}

/// A request that runs.
pub struct Job {
    progress: Mutex<Progress>,
    interrupted: watch::Sender<bool>,
}

/// A job in the list of its client, until this is dropped.
pub struct Registered {
    jobs: Arc<RunningJobs>,
    client: IpAddr,
    job: Arc<Job>,
}

impl RunningJobs {
    /// Begins a job of a client.
    pub fn begin(self: &Arc<Self>, client: IpAddr) -> Registered {
        let job = Arc::new(Job {
            progress: Mutex::default(),
            interrupted: watch::Sender::new(false),
        });
        lock(&self.clients).entry(client).or_default().push(Arc::clone(&job));
        Registered {
            jobs: Arc::clone(self),
            client,
            job,
        }
    }

    /// Returns the jobs of a client, the oldest first.
    pub fn of(&self, client: IpAddr) -> Vec<Arc<Job>> {
        lock(&self.clients).get(&client).cloned().unwrap_or_default()
    }
}

impl Job {
    /// Sets the progress. The last preview stays until there is another one.
    pub fn set(&self, mut progress: Progress) {
        let mut last = lock(&self.progress);
        if progress.images.is_empty() {
            progress.images = std::mem::take(&mut last.images);
        }
        *last = progress;
    }

    /// Returns the last progress.
    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Asks for the end of the job.
    pub fn interrupt(&self) {
        self.interrupted.send_replace(true);
    }

    /// Returns whether the end of the job was asked for.
    pub fn is_interrupted(&self) -> bool {
        *self.interrupted.borrow()
    }

    /// Waits until the end of the job is asked for.
    pub async fn interrupted(&self) {
        // The sender lives as long as the job.
        let _ = self.interrupted.subscribe().wait_for(|is| *is).await;
    }
}

impl Registered {
    /// Returns the job.
    pub fn job(&self) -> &Job {
        &self.job
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut clients = lock(&self.jobs.clients);
        if let Some(jobs) = clients.get_mut(&self.client) {
            jobs.retain(|job| !Arc::ptr_eq(job, &self.job));
            if jobs.is_empty() {
                clients.remove(&self.client);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn jobs_are_those_of_their_client_until_they_end() {
        let jobs = Arc::new(RunningJobs::default());
        let (first, second) = (jobs.begin(ONE), jobs.begin(ONE));
        let other = jobs.begin(OTHER);
        let is = |client: IpAddr, expected: &[&Registered]| {
            let found = jobs.of(client);
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(job, one)| Arc::ptr_eq(job, &one.job)));
        };
        is(ONE, &[&first, &second]);
        is(OTHER, &[&other]);
        drop(first);
        is(ONE, &[&second]);
        drop((second, other));
        assert!(lock(&jobs.clients).is_empty());
    }

    #[test]
    fn last_preview_stays() {
        let jobs = Arc::new(RunningJobs::default());
        let running = jobs.begin(ONE);
        let progress = |step, image: Option<&str>| Progress {
            step,
            images: image.map(str::to_owned).into_iter().collect(),
            ..Progress::default()
        };
        running.job().set(progress(1, Some("one")));
        running.job().set(progress(2, None));
        assert_eq!(running.job().progress(), progress(2, Some("one")));
        running.job().set(progress(3, Some("two")));
        assert_eq!(running.job().progress(), progress(3, Some("two")));
    }

    #[tokio::test]
    async fn interrupt_is_seen_before_and_after_the_wait_begins() {
        let jobs = Arc::new(RunningJobs::default());
        let running = jobs.begin(ONE);
        assert!(!running.job().is_interrupted());
        let waits = running.job().interrupted();
        running.job().interrupt();
        waits.await;
        running.job().interrupted().await;
        assert!(running.job().is_interrupted());
    }
}
