//! The engine's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::admission::{Admission, closing};
use super::group::calls;
use super::{Batch, Client, Observer, Pipeline, StepOutcome, Task};
use crate::error::{Error, Result};
use crate::fault::{self, Point};

/// A job with its client.
struct Active<P: Pipeline> {
    job: P::Job,
    batch: Batch,
    client: Box<dyn Client<P::Output>>,
    rows: usize,
    /// Set when the job cannot go on.
    failed: Option<Error>,
}

/// Something of the pipeline panicked; its state is not to be trusted any more.
struct Panicked;

/// Works until the door closes or the pipeline panics; then answers everything that is left.
pub fn run<P: Pipeline>(pipeline: P, admission: &Admission<Task<P>>, observer: &dyn Observer) {
    let mut worker = Worker { pipeline, admission, observer, active: Vec::new() };
    if let Err(Panicked) = worker.work() {
        observer.poisoned("a panic while a request was computed");
        admission.close(Error::unavailable("the instance failed earlier and can no longer work"));
    }
    worker.end();
}

struct Worker<'a, P: Pipeline> {
    pipeline: P,
    admission: &'a Admission<Task<P>>,
    observer: &'a dyn Observer,
    active: Vec<Active<P>>,
}

/// Runs a call of the pipeline. libtorch's failures are errors; a panic is a mistake of ours.
fn guarded<T>(call: impl FnOnce() -> Result<T>) -> std::result::Result<Result<T>, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
        Panicked
    })
}

impl<P: Pipeline> Worker<'_, P> {
    fn work(&mut self) -> std::result::Result<(), Panicked> {
        if let Err(error) = guarded(|| self.pipeline.enter_thread())? {
            self.observer.poisoned("its thread cannot work on the device");
            self.admission.close(error);
        }
        while let Some(tasks) = self.admission.take(self.active.is_empty()) {
            self.drop_cancelled();
            for task in tasks {
                self.admit(task)?;
            }
            self.step_all()?;
            self.retire()?;
        }
        Ok(())
    }

    fn admit(&mut self, task: Task<P>) -> std::result::Result<(), Panicked> {
        let Task { request, rows, client } = task;
        if client.is_cancelled() {
            self.cancel(client, rows);
            return Ok(());
        }
        client.started();
        let prepared = guarded(|| {
            fault::check(Point::Prepare)?;
            self.pipeline.prepare(request)
        });
        match prepared {
            Ok(Ok(job)) => {
                let batch = self.pipeline.batch(&job);
                self.active.push(Active { job, batch, client, rows, failed: None });
                Ok(())
            }
            Ok(Err(error)) => {
                if matches!(error, Error::OutOfMemory(_)) {
                    self.pipeline.relieve();
                }
                self.answer(client, rows, Err(error));
                Ok(())
            }
            Err(Panicked) => {
                self.answer(client, rows, Err(panicked()));
                Err(Panicked)
            }
        }
    }

    /// One step for every job.
    fn step_all(&mut self) -> std::result::Result<(), Panicked> {
        let batches: Vec<Batch> = self.active.iter().map(|active| active.batch.clone()).collect();
        for call in calls(&batches, self.admission.max_rows()) {
            self.step_together(&call)?;
        }
        Ok(())
    }

    fn step_together(&mut self, members: &[usize]) -> std::result::Result<(), Panicked> {
        match self.unet_call(members)? {
            Ok(()) => Ok(()),
            Err(error) if matches!(error, Error::OutOfMemory(_)) && members.len() > 1 => {
                // No job has moved; each gets another chance with the device to itself.
                self.pipeline.relieve();
                for &member in members {
                    if let Err(error) = self.unet_call(&[member])? {
                        self.pipeline.relieve();
                        self.fail(&[member], &error);
                    }
                }
                Ok(())
            }
            Err(error) => {
                if matches!(error, Error::OutOfMemory(_)) {
                    self.pipeline.relieve();
                }
                self.fail(members, &error);
                Ok(())
            }
        }
    }

    /// One UNet call; the error is that of the call as a whole.
    fn unet_call(&mut self, members: &[usize]) -> std::result::Result<Result<()>, Panicked> {
        let Self { pipeline, active, .. } = self;
        let mut jobs: Vec<&mut P::Job> = active
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| members.contains(index))
            .map(|(_, active)| &mut active.job)
            .collect();
        let outcome = guarded(|| {
            fault::check(Point::Step)?;
            pipeline.step(&mut jobs)
        });
        match outcome {
            Ok(Ok(outcome)) => {
                let rows = members.iter().filter_map(|&i| self.active.get(i)).map(|a| a.batch.rows).sum();
                self.observer.unet_call(members.len(), rows);
                self.note(members, outcome);
                Ok(Ok(()))
            }
            Ok(Err(error)) => Ok(Err(error)),
            Err(Panicked) => {
                self.fail(members, &panicked());
                Err(Panicked)
            }
        }
    }

    fn note(&mut self, members: &[usize], outcome: StepOutcome) {
        for (&member, outcome) in members.iter().zip(outcome) {
            if let Err(error) = outcome {
                self.fail(&[member], &error);
            }
        }
    }

    fn fail(&mut self, members: &[usize], error: &Error) {
        for &member in members {
            if let Some(active) = self.active.get_mut(member) {
                active.failed.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// Answers the jobs that are at their end, one way or the other.
    fn retire(&mut self) -> std::result::Result<(), Panicked> {
        let mut index = 0;
        while let Some(active) = self.active.get(index) {
            if active.failed.is_none() && !self.pipeline.is_done(&active.job) {
                index += 1;
                continue;
            }
            let Active { job, client, rows, failed, .. } = self.active.remove(index);
            let outcome = match failed {
                Some(error) => Ok(Err(error)),
                None => guarded(|| {
                    fault::check(Point::Finish)?;
                    self.pipeline.finish(job)
                }),
            };
            match outcome {
                Ok(outcome) => {
                    if matches!(outcome, Err(Error::OutOfMemory(_))) {
                        self.pipeline.relieve();
                    }
                    self.answer(client, rows, outcome);
                }
                Err(Panicked) => {
                    self.answer(client, rows, Err(panicked()));
                    return Err(Panicked);
                }
            }
        }
        Ok(())
    }

    fn drop_cancelled(&mut self) {
        let (cancelled, active) = std::mem::take(&mut self.active)
            .into_iter()
            .partition(|active| active.client.is_cancelled());
        self.active = active;
        for Active { client, rows, .. } in cancelled {
            self.cancel(client, rows);
        }
    }

    fn cancel(&self, client: Box<dyn Client<P::Output>>, rows: usize) {
        self.observer.cancelled();
        self.answer(client, rows, Err(Error::cancelled("the request was cancelled")));
    }

    fn answer(&self, client: Box<dyn Client<P::Output>>, rows: usize, outcome: Result<P::Output>) {
        // Room first: whoever waits for it need not wait for the answer to be written.
        self.admission.leave(rows);
        client.answer(outcome);
    }

    /// Everything that is left gets the reason why.
    fn end(mut self) {
        let (reason, waiting) = self.admission.leftovers();
        let error = closing(reason);
        for Active { client, rows, failed, .. } in std::mem::take(&mut self.active) {
            self.answer(client, rows, Err(failed.unwrap_or_else(|| error.clone())));
        }
        for Task { client, rows, .. } in waiting {
            self.answer(client, rows, Err(error.clone()));
        }
        // What the pipeline drops may be in pieces after a panic; nothing may leave this thread.
        let Self { pipeline, .. } = self;
        let _ = catch_unwind(AssertUnwindSafe(move || drop(pipeline)));
    }
}

fn panicked() -> Error {
    Error::internal("the request met a fault inside the backend; its log says more")
}
