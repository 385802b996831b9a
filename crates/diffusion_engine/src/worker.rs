//! The engine's thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use diffusion_core::failpoint::{self, FailPoint};
use diffusion_core::{Error, Result};

use super::admission::Admission;
use super::batching::{BatchEntries, batches};
use super::{Observer, Pipeline, QueuedRequest, ResponseHandler};

/// A result that a client waits for, and the capacity that its request uses.
struct PendingResult<P: Pipeline> {
    handler: Box<dyn ResponseHandler<P::Output>>,
    batch_size: usize,
}

struct RunningJob<P: Pipeline> {
    job: P::Job,
    entries: BatchEntries,
    pending: PendingResult<P>,
    /// Why the job cannot go on.
    failed: Option<Error>,
}

/// Works until the admission is closed, a call panics, or the device is lost. Then answers all requests that are left.
pub fn run<P: Pipeline>(pipeline: P, admission: &Admission<QueuedRequest<P>>, observer: &dyn Observer) {
    let mut worker = Worker {
        pipeline,
        admission,
        observer,
        queued: VecDeque::new(),
        running: Vec::new(),
    };
    match catch_panic(|| worker.work()) {
        // A failure of a call for certain jobs has been reported.
        Ok(Ok(()) | Err(Stopped)) => {}
        Err(Stopped) => worker.report_failure(PANIC),
    }
    worker.shut_down();
}

/// The engine must end: a call panicked, and the state of what panicked cannot be trusted, or the device is lost.
struct Stopped;

/// The result of a call, unless the call ends the engine.
type Caught<T> = std::result::Result<T, Stopped>;

/// The reason of an engine that ends after a panic.
const PANIC: &str = "a panic while a request was computed";

/// Failures of libtorch are errors; a panic is a mistake in this project.
fn catch_panic<T>(call: impl FnOnce() -> T) -> Caught<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        // The destructor of a payload may panic.
        std::mem::forget(payload);
        Stopped
    })
}

/// Owns the pending result of every request, so [`Worker::shut_down`] can answer all of them.
struct Worker<'a, P: Pipeline> {
    pipeline: P,
    admission: &'a Admission<QueuedRequest<P>>,
    observer: &'a dyn Observer,
    /// Admitted, not yet prepared.
    queued: VecDeque<QueuedRequest<P>>,
    running: Vec<RunningJob<P>>,
}

impl<P: Pipeline> Worker<'_, P> {
    fn work(&mut self) -> Caught<()> {
        if let Err(error) = self.pipeline.init_thread() {
            self.observer.engine_failed("its thread cannot work on the device");
            self.admission.close(error);
        }
        while let Some(requests) = self.admission.take_admitted(self.running.is_empty()) {
            self.queued.extend(requests);
            self.drop_cancelled()?;
            while let Some(request) = self.queued.pop_front() {
                self.start(request)?;
            }
            // A job may have no steps at all.
            self.complete_finished()?;
            self.step_all()?;
            self.complete_finished()?;
        }
        Ok(())
    }

    /// Calls on behalf of one request. If the call panics, the request is answered with `Internal` and the engine ends.
    fn call_for<T>(
        &mut self,
        pending: PendingResult<P>,
        call: impl FnOnce(&mut P, &dyn ResponseHandler<P::Output>) -> T,
    ) -> Caught<(PendingResult<P>, T)> {
        match catch_panic(|| call(&mut self.pipeline, pending.handler.as_ref())) {
            Ok(value) => Ok((pending, value)),
            Err(Stopped) => {
                self.report_failure(PANIC);
                let _ = catch_panic(|| self.send(pending, Err(internal_error())));
                Err(Stopped)
            }
        }
    }

    /// Calls on behalf of the running jobs with these indices. If the call panics, they fail with `Internal` and the
    /// engine ends.
    fn call_for_running<T>(
        &mut self,
        jobs: &[usize],
        call: impl FnOnce(&mut P, &mut [RunningJob<P>]) -> T,
    ) -> Caught<T> {
        let result = catch_panic(|| call(&mut self.pipeline, &mut self.running));
        if result.is_err() {
            self.fail(jobs, &internal_error());
            self.report_failure(PANIC);
        }
        result
    }

    fn start(&mut self, request: QueuedRequest<P>) -> Caught<()> {
        let QueuedRequest {
            request,
            batch_size,
            handler,
        } = request;
        let pending = PendingResult { handler, batch_size };
        let (pending, prepared) = self.call_for(pending, |pipeline, handler| {
            if handler.is_cancelled() {
                return None;
            }
            handler.on_start();
            let job = failpoint::maybe_fail(FailPoint::Prepare).and_then(|()| pipeline.prepare(request));
            Some(job.map(|job| (pipeline.batch_entries(&job), job)))
        })?;
        match prepared {
            None => self.cancel(pending),
            Some(Err(error)) => self.complete(pending, Err(error)),
            Some(Ok((entries, job))) => {
                self.running.push(RunningJob {
                    job,
                    entries,
                    pending,
                    failed: None,
                });
                Ok(())
            }
        }
    }

    /// Advances every job by one step.
    fn step_all(&mut self) -> Caught<()> {
        for index in 0..self.running.len() {
            self.call_for_running(&[index], |pipeline, running| {
                if let Some(running) = running.get_mut(index) {
                    running.entries = pipeline.batch_entries(&running.job);
                }
            })?;
        }
        let entries: Vec<BatchEntries> = self.running.iter().map(|running| running.entries.clone()).collect();
        for jobs in batches(&entries, self.admission.max_batch_size()) {
            self.step_batch(&jobs)?;
        }
        Ok(())
    }

    fn step_batch(&mut self, jobs: &[usize]) -> Caught<()> {
        let Err(error) = self.run_batch(jobs)? else {
            return Ok(());
        };
        let out_of_memory = matches!(error, Error::OutOfMemory(_));
        if !out_of_memory || jobs.len() == 1 {
            self.fail(jobs, &error);
        }
        if out_of_memory {
            self.call_for_running(&[], |pipeline, _| pipeline.free_memory())?;
            if jobs.len() > 1 {
                // No job has advanced. Each gets another try alone, in less memory.
                for &job in jobs {
                    self.step_batch(&[job])?;
                }
            }
        }
        Ok(())
    }

    /// Runs one batch. The inner error is that of the batch as a whole.
    fn run_batch(&mut self, jobs: &[usize]) -> Caught<Result<()>> {
        let results = self.call_for_running(jobs, |pipeline, running| {
            let mut batch: Vec<&mut P::Job> = running
                .iter_mut()
                .enumerate()
                .filter(|(index, _)| jobs.contains(index))
                .map(|(_, running)| &mut running.job)
                .collect();
            failpoint::maybe_fail(FailPoint::Step).and_then(|()| pipeline.step(&mut batch))
        })?;
        let results = match results {
            Ok(results) => results,
            Err(error) => return Ok(Err(error)),
        };
        let entries = jobs.iter().filter_map(|&job| self.running.get(job));
        let batch_size = entries.map(|running| running.entries.count).sum();
        self.observer.batch_executed(jobs.len(), batch_size);
        for (&job, result) in jobs.iter().zip(results) {
            if let Err(error) = result {
                self.fail(&[job], &error);
            }
        }
        Ok(Ok(()))
    }

    fn fail(&mut self, jobs: &[usize], error: &Error) {
        for &job in jobs {
            if let Some(running) = self.running.get_mut(job) {
                running.failed.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// Completes the jobs that are done or have failed.
    fn complete_finished(&mut self) -> Caught<()> {
        let mut index = 0;
        while index < self.running.len() {
            let goes_on = self.call_for_running(&[index], |pipeline, running| {
                running
                    .get(index)
                    .is_some_and(|running| running.failed.is_none() && !pipeline.is_done(&running.job))
            })?;
            if goes_on {
                index += 1;
                continue;
            }
            let RunningJob {
                job, pending, failed, ..
            } = self.running.remove(index);
            let (pending, result) = self.call_for(pending, |pipeline, _| match failed {
                Some(error) => {
                    // The memory is free before the client hears of the error.
                    drop(job);
                    Err(error)
                }
                None => failpoint::maybe_fail(FailPoint::Finish).and_then(|()| pipeline.finish(job)),
            })?;
            self.complete(pending, result)?;
        }
        Ok(())
    }

    fn drop_cancelled(&mut self) -> Caught<()> {
        let mut index = 0;
        while let Some(running) = self.running.get(index) {
            if running.pending.handler.is_cancelled() {
                let RunningJob { job, pending, .. } = self.running.remove(index);
                let (pending, ()) = self.call_for(pending, |_, _| drop(job))?;
                self.cancel(pending)?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    fn cancel(&mut self, pending: PendingResult<P>) -> Caught<()> {
        let observer = self.observer;
        let (pending, ()) = self.call_for(pending, |_, _| observer.job_cancelled())?;
        self.complete(pending, Err(Error::cancelled("the request was cancelled")))
    }

    /// Ends a request with its result, and the engine with a lost device.
    fn complete(&mut self, pending: PendingResult<P>, result: Result<P::Output>) -> Caught<()> {
        let (pending, goes_on) = match &result {
            Err(Error::OutOfMemory(_)) => (self.call_for(pending, |pipeline, _| pipeline.free_memory())?.0, Ok(())),
            Err(Error::DeviceLost(reason)) => {
                self.report_failure(reason);
                (pending, Err(Stopped))
            }
            _ => (pending, Ok(())),
        };
        self.send(pending, result);
        goes_on
    }

    fn send(&self, pending: PendingResult<P>, result: Result<P::Output>) {
        // Capacity first: a waiting request need not wait until the response is written.
        self.admission.release(pending.batch_size);
        pending.handler.send(result);
    }

    /// Reports a failure and closes the admission, before any client is answered.
    fn report_failure(&self, reason: &str) {
        let _ = catch_panic(|| self.observer.engine_failed(reason));
        self.admission
            .close(Error::unavailable("the instance failed earlier and can no longer work"));
    }

    /// Answers every request that is left with the reason of the end. After a panic, what is dropped or called here may
    /// panic too; one response that fails does not keep the others from being sent.
    fn shut_down(mut self) {
        let (reason, admitted) = self.admission.drain();
        let error = reason.unwrap_or_else(|| Error::unavailable("the engine has ended"));
        for running in std::mem::take(&mut self.running) {
            let RunningJob {
                job, pending, failed, ..
            } = running;
            let _ = catch_panic(|| drop(job));
            let _ = catch_panic(|| self.send(pending, Err(failed.unwrap_or_else(|| error.clone()))));
        }
        for queued in std::mem::take(&mut self.queued).into_iter().chain(admitted) {
            let QueuedRequest {
                request,
                batch_size,
                handler,
            } = queued;
            let _ = catch_panic(|| drop(request));
            let _ = catch_panic(|| self.send(PendingResult { handler, batch_size }, Err(error.clone())));
        }
        let Self { pipeline, .. } = self;
        let _ = catch_panic(|| drop(pipeline));
    }
}

fn internal_error() -> Error {
    Error::internal("internal error; see the server log")
}
