//! The engine's thread.
//!
//! A panic anywhere on it ends the work. At every moment [`Worker`] holds whoever waits for an answer, so
//! that [`Worker::end`] can give each of them one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::admission::{Admission, closing};
use super::batching::calls;
use super::{Batch, Client, Observer, Pipeline, StepOutcome, Task};
use diffusion_core::failpoint::{self, FailPoint};
use diffusion_core::{Error, Result};

/// Whoever waits for an answer, and the rows that there is room for after it.
struct Waiter<P: Pipeline> {
    client: Box<dyn Client<P::Output>>,
    rows: usize,
}

/// A job with its client.
struct Active<P: Pipeline> {
    job: P::Job,
    batch: Batch,
    waiter: Waiter<P>,
    /// Set when the job cannot go on.
    failed: Option<Error>,
}

/// Works until the door closes or something panics; then answers everything that is left.
pub fn run<P: Pipeline>(pipeline: P, admission: &Admission<Task<P>>, observer: &dyn Observer) {
    let mut worker = Worker {
        pipeline,
        admission,
        observer,
        arrived: VecDeque::new(),
        in_hand: None,
        active: Vec::new(),
        concerned: Vec::new(),
    };
    if let Err(Panicked) = guarded(|| worker.work()) {
        worker.poison();
    }
    worker.end();
}

/// The state of what panicked is not to be trusted any more.
struct Panicked;

/// libtorch's failures are errors; a panic is a mistake of ours.
fn guarded<T>(call: impl FnOnce() -> T) -> std::result::Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
        Panicked
    })
}

struct Worker<'a, P: Pipeline> {
    pipeline: P,
    admission: &'a Admission<Task<P>>,
    observer: &'a dyn Observer,
    /// Taken from the door and not looked at yet.
    arrived: VecDeque<Task<P>>,
    /// Whose job is being prepared, finished or dropped. If that panics, the fault is met here.
    in_hand: Option<Waiter<P>>,
    active: Vec<Active<P>>,
    /// The jobs of `active` that the pipeline is called for. If it panics, they meet the fault.
    concerned: Vec<usize>,
}

impl<P: Pipeline> Worker<'_, P> {
    fn work(&mut self) {
        if let Err(error) = self.pipeline.enter_thread() {
            self.observer.poisoned("its thread cannot work on the device");
            self.admission.close(error);
        }
        while let Some(tasks) = self.admission.take(self.active.is_empty()) {
            self.arrived.extend(tasks);
            self.drop_cancelled();
            while let Some(task) = self.arrived.pop_front() {
                self.admit(task);
            }
            // A job may have no steps at all.
            self.retire();
            self.step_all();
            self.retire();
        }
    }

    fn admit(&mut self, task: Task<P>) {
        let Task { request, rows, client } = task;
        let Waiter { client, .. } = self.in_hand.insert(Waiter { client, rows });
        if client.is_cancelled() {
            return self.cancel();
        }
        client.started();
        match self.prepare(request) {
            Ok((job, batch)) => {
                if let Some(waiter) = self.in_hand.take() {
                    self.active.push(Active {
                        job,
                        batch,
                        waiter,
                        failed: None,
                    });
                }
            }
            Err(error) => self.conclude(Err(error)),
        }
    }

    fn prepare(&mut self, request: P::Request) -> Result<(P::Job, Batch)> {
        failpoint::maybe_fail(FailPoint::Prepare)?;
        let job = self.pipeline.prepare(request)?;
        let batch = self.pipeline.batch(&job);
        Ok((job, batch))
    }

    /// One step for every job.
    fn step_all(&mut self) {
        let batches: Vec<Batch> = self.active.iter().map(|active| active.batch.clone()).collect();
        for call in calls(&batches, self.admission.max_unet_batch_size()) {
            self.step_together(&call);
        }
    }

    fn step_together(&mut self, members: &[usize]) {
        let Err(error) = self.unet_call(members) else {
            return;
        };
        if !matches!(error, Error::OutOfMemory(_)) {
            return self.fail(members, &error);
        }
        if let &[member] = members {
            self.fail(&[member], &error);
            return self.pipeline.relieve();
        }
        // No job has moved; each gets another chance with the device to itself.
        self.pipeline.relieve();
        for &member in members {
            self.step_together(&[member]);
        }
    }

    /// One UNet call; the error is that of the call as a whole.
    fn unet_call(&mut self, members: &[usize]) -> Result<()> {
        self.concerned.extend_from_slice(members);
        let mut jobs: Vec<&mut P::Job> = self
            .active
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| members.contains(index))
            .map(|(_, active)| &mut active.job)
            .collect();
        let outcome = failpoint::maybe_fail(FailPoint::Step).and_then(|()| self.pipeline.step(&mut jobs));
        self.concerned.clear();
        let outcome = outcome?;
        let rows = members
            .iter()
            .filter_map(|&i| self.active.get(i))
            .map(|a| a.batch.rows)
            .sum();
        self.observer.unet_call(members.len(), rows);
        self.note(members, outcome);
        Ok(())
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
    fn retire(&mut self) {
        let mut index = 0;
        while let Some(active) = self.active.get(index) {
            self.concerned.push(index);
            let stays = active.failed.is_none() && !self.pipeline.is_done(&active.job);
            self.concerned.clear();
            if stays {
                index += 1;
                continue;
            }
            let Active {
                job, waiter, failed, ..
            } = self.active.remove(index);
            self.in_hand = Some(waiter);
            let outcome = match failed {
                Some(error) => {
                    // Its memory is free before anybody hears of it.
                    drop(job);
                    Err(error)
                }
                None => failpoint::maybe_fail(FailPoint::Finish).and_then(|()| self.pipeline.finish(job)),
            };
            self.conclude(outcome);
        }
    }

    fn drop_cancelled(&mut self) {
        let mut index = 0;
        while let Some(active) = self.active.get(index) {
            if active.waiter.client.is_cancelled() {
                let Active { job, waiter, .. } = self.active.remove(index);
                self.in_hand = Some(waiter);
                drop(job);
                self.cancel();
            } else {
                index += 1;
            }
        }
    }

    fn cancel(&mut self) {
        self.observer.cancelled();
        self.conclude(Err(Error::cancelled("the request was cancelled")));
    }

    /// Answers who is in hand.
    fn conclude(&mut self, outcome: Result<P::Output>) {
        if matches!(outcome, Err(Error::OutOfMemory(_))) {
            self.pipeline.relieve();
        }
        if let Some(waiter) = self.in_hand.take() {
            self.answer(waiter, outcome);
        }
    }

    fn answer(&self, waiter: Waiter<P>, outcome: Result<P::Output>) {
        // Room first: whoever waits for it need not wait for the answer to be written.
        self.admission.leave(waiter.rows);
        waiter.client.answer(outcome);
    }

    /// Tells of the panic, and that nothing can be let in, before anybody is answered.
    fn poison(&mut self) {
        let concerned = std::mem::take(&mut self.concerned);
        self.fail(&concerned, &panicked());
        let _ = guarded(|| self.observer.poisoned("a panic while a request was computed"));
        self.admission
            .close(Error::unavailable("the instance failed earlier and can no longer work"));
    }

    /// Everything that is left gets the reason why. What is dropped or called here may be in pieces
    /// after a panic; that one answer fails is no reason not to give the others.
    fn end(mut self) {
        let (reason, waiting) = self.admission.leftovers();
        let error = closing(reason);
        if let Some(waiter) = self.in_hand.take() {
            let _ = guarded(|| self.answer(waiter, Err(panicked())));
        }
        for Active {
            job, waiter, failed, ..
        } in std::mem::take(&mut self.active)
        {
            let _ = guarded(|| drop(job));
            let _ = guarded(|| self.answer(waiter, Err(failed.unwrap_or_else(|| error.clone()))));
        }
        for task in std::mem::take(&mut self.arrived).into_iter().chain(waiting) {
            let Task { request, rows, client } = task;
            let _ = guarded(|| drop(request));
            let _ = guarded(|| self.answer(Waiter { client, rows }, Err(error.clone())));
        }
        let Self { pipeline, .. } = self;
        let _ = guarded(|| drop(pipeline));
    }
}

fn panicked() -> Error {
    Error::internal("the request met a fault inside the backend; its log says more")
}
