//! The engine's thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use diffusion_core::failpoint::{self, FailPoint};
use diffusion_core::{Error, Result};

use super::admission::{Running, Waiting, admit};
use super::batching::{Turn, next_batch, response_ratio};
use super::jobs::{PendingResult, RunningJob, WaitingRequest};
use super::memory::{MemoryNeed, MemoryShare, Reservation, too_large};
use super::queue::{Queue, Queueable, Wait};
use super::step_times::StepTimes;
use super::{Observer, Owner, Pipeline, QueuedRequest, ResponseHandler, Work};

/// The engine ends after this many panics without a computed request between them.
const MAX_PANICS: usize = 3;

/// The reason of an engine that ends after panics.
const PANICS: &str = "panics while requests were computed";

/// Makes a pipeline, also anew after a panic.
pub type MakePipeline<P> = Box<dyn FnMut() -> P + Send>;

/// Works until the queue is closed, the device is lost, or panics follow on each other. Then answers all requests that
/// are left.
pub fn run<P: Pipeline>(
    pipeline: P,
    mut make_pipeline: MakePipeline<P>,
    max_batch_size: usize,
    queue: &Queue<QueuedRequest<P>>,
    memory: MemoryShare,
    observer: &dyn Observer,
) {
    let mut worker = Worker {
        pipeline,
        max_batch_size,
        queue,
        memory,
        observer,
        waiting: VecDeque::new(),
        starting: VecDeque::new(),
        running: Vec::new(),
        memory_is_taken: false,
        step_times: StepTimes::default(),
        panics: 0,
    };
    loop {
        let ended = match catch_panic(|| worker.work()) {
            Ok(ended) => ended,
            Err(stopped) => {
                // The panic of a call for certain jobs has been reported.
                worker.report_panic();
                Err(stopped)
            }
        };
        if ended != Err(Stopped::Panic) || !worker.restart(&mut make_pipeline) {
            break;
        }
    }
    worker.shut_down();
}

/// Why the engine cannot go on as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// A call panicked, and the state of what panicked cannot be trusted.
    Panic,
    /// The device is lost.
    DeviceLost,
}

/// The result of a call, unless the call stops the engine.
type Caught<T> = std::result::Result<T, Stopped>;

/// Failures of libtorch are errors; a panic is a mistake in this project.
fn catch_panic<T>(call: impl FnOnce() -> T) -> Caught<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        // The destructor of a payload may panic.
        std::mem::forget(payload);
        Stopped::Panic
    })
}

/// Owns the pending result of every request, so [`Worker::shut_down`] can answer all of them.
struct Worker<'a, P: Pipeline> {
    pipeline: P,
    max_batch_size: usize,
    queue: &'a Queue<QueuedRequest<P>>,
    memory: MemoryShare,
    observer: &'a dyn Observer,
    /// In the order in which they start, if they fit.
    waiting: VecDeque<WaitingRequest<P>>,
    /// Chosen to start, not yet prepared.
    starting: VecDeque<WaitingRequest<P>>,
    running: Vec<RunningJob<P>>,
    /// Whether no request could start although no job of this engine ran, since other engines have the memory.
    memory_is_taken: bool,
    step_times: StepTimes,
    /// Panics since a request was computed.
    panics: usize,
}

impl<P: Pipeline> Worker<'_, P> {
    fn work(&mut self) -> Caught<()> {
        if let Err(error) = self.pipeline.init_thread() {
            self.observer.engine_failed("its thread cannot work on the device");
            self.queue.close(error);
        }
        // The jobs of before a panic have ended.
        self.free_reserved();
        while let Some(submitted) = self.queue.take(self.wait()) {
            let since = Instant::now();
            self.waiting.extend(submitted.into_iter().map(|request| WaitingRequest {
                request,
                since,
                passed: 0,
            }));
            self.drop_ended_waiting()?;
            self.drop_ended_running()?;
            self.start_admitted()?;
            self.report_positions()?;
            // A job may have no steps at all.
            self.complete_finished()?;
            self.step()?;
            self.complete_finished()?;
            self.free_reserved();
        }
        Ok(())
    }

    /// Returns how long to wait for requests. Requests that wait for the memory of other engines are looked at again soon.
    fn wait(&self) -> Wait {
        match (self.running.is_empty(), self.waiting.is_empty()) {
            (true, true) => Wait::Always,
            (true, false) if self.memory_is_taken => Wait::Moment,
            _ => Wait::Never,
        }
    }

    /// Frees the reserved memory of jobs that have ended.
    fn free_reserved(&mut self) {
        self.memory
            .reserve(MemoryNeed::of_jobs(self.running.iter().map(|running| running.memory)));
    }

    /// Calls on behalf of one request. If the call panics, the request is answered with `Internal`.
    fn call_for<T>(
        &mut self,
        pending: PendingResult<P>,
        call: impl FnOnce(&mut P, &dyn ResponseHandler<P::Output, P::Preview>) -> T,
    ) -> Caught<(PendingResult<P>, T)> {
        match catch_panic(|| call(&mut self.pipeline, pending.handler.as_ref())) {
            Ok(value) => Ok((pending, value)),
            Err(stopped) => {
                self.report_panic();
                let _ = catch_panic(|| pending.handler.send(Err(internal_error())));
                Err(stopped)
            }
        }
    }

    /// Calls on behalf of the running jobs with these indices. If the call panics, they fail with `Internal`.
    fn call_for_running<T>(
        &mut self,
        jobs: &[usize],
        call: impl FnOnce(&mut P, &mut [RunningJob<P>]) -> T,
    ) -> Caught<T> {
        let result = catch_panic(|| call(&mut self.pipeline, &mut self.running));
        if result.is_err() {
            self.fail(jobs, &internal_error());
            self.report_panic();
        }
        result
    }

    /// Ends the waiting requests that are cancelled or too late.
    fn drop_ended_waiting(&mut self) -> Caught<()> {
        let mut index = 0;
        while let Some(waiting) = self.waiting.get(index) {
            let ended = catch_panic(|| waiting.request.ended());
            if ended == Ok(None) {
                index += 1;
                continue;
            }
            let Some(waiting) = self.waiting.remove(index) else {
                break;
            };
            let (_, _, pending) = self.leave_queue(waiting.request);
            match ended {
                Ok(reason) => self.complete(pending, Err(reason.unwrap_or_else(internal_error)))?,
                Err(stopped) => {
                    self.report_panic();
                    let _ = catch_panic(|| pending.handler.send(Err(internal_error())));
                    return Err(stopped);
                }
            }
        }
        Ok(())
    }

    /// Ends the jobs that are cancelled or too late.
    fn drop_ended_running(&mut self) -> Caught<()> {
        let mut index = 0;
        while index < self.running.len() {
            let ended = self.call_for_running(&[index], |_, running| {
                let running = running.get(index)?;
                let progress = (running.steps_taken, running.work.steps);
                super::ended(
                    running.pending.handler.as_ref(),
                    running.pending.deadline,
                    Some(progress),
                )
            })?;
            let Some(reason) = ended else {
                index += 1;
                continue;
            };
            let RunningJob { job, pending, .. } = self.running.remove(index);
            let (pending, ()) = self.call_for(pending, |_, _| drop(job))?;
            self.complete(pending, Err(reason))?;
        }
        Ok(())
    }

    /// Starts the waiting requests for which there are room and memory.
    fn start_admitted(&mut self) -> Caught<()> {
        if self.waiting.is_empty() {
            self.memory.claim(None);
            return Ok(());
        }
        let now = Instant::now();
        self.waiting.make_contiguous().sort_by(|one, other| {
            let ratio = |waiting: &WaitingRequest<P>| {
                response_ratio(now.duration_since(waiting.since), waiting.request.work.total())
            };
            ratio(other).total_cmp(&ratio(one))
        });
        let waiting: Vec<Waiting> = self.waiting.iter().map(|waiting| waiting.admissible(now)).collect();
        let admitted = self.admitted(&waiting);
        self.memory_is_taken = self.running.is_empty() && admitted.is_empty();
        let mut passing: u64 = admitted.iter().map(|&index| waiting[index].work).sum();
        let mut admitted = admitted.into_iter().peekable();
        for (index, mut request) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            if admitted.next_if_eq(&index).is_some() {
                passing -= request.request.work.total();
                self.starting.push_back(request);
            } else {
                request.passed = request.passed.saturating_add(passing);
                self.waiting.push_back(request);
            }
        }
        while let Some(waiting) = self.starting.pop_front() {
            self.start(waiting)?;
        }
        self.drop_too_large()
    }

    /// Tells each waiting request how many come before it.
    fn report_positions(&mut self) -> Caught<()> {
        for index in 0..self.waiting.len() {
            let told = catch_panic(|| {
                if let Some(waiting) = self.waiting.get(index) {
                    waiting.request.handler.on_wait(index);
                }
            });
            if let Err(stopped) = told {
                self.report_panic();
                if let Some(waiting) = self.waiting.remove(index) {
                    let (_, _, pending) = self.leave_queue(waiting.request);
                    let _ = catch_panic(|| pending.handler.send(Err(internal_error())));
                }
                return Err(stopped);
            }
        }
        Ok(())
    }

    /// Returns the indices of the waiting requests that start now, and reserves their memory. Requests for which there is no
    /// memory are passed as those for which there is no room.
    fn admitted(&mut self, waiting: &[Waiting]) -> Vec<usize> {
        let running: Vec<Running> = self.running.iter().map(RunningJob::occupied).collect();
        let mut candidates: Vec<usize> = (0..waiting.len()).collect();
        let mut claim = None;
        let admitted = loop {
            let requests: Vec<Waiting> = candidates.iter().map(|&index| waiting[index]).collect();
            let admitted = admit(&requests, &running, self.max_batch_size);
            let admitted: Vec<usize> = admitted.into_iter().map(|index| candidates[index]).collect();
            let mut jobs: Vec<MemoryNeed> = self.running.iter().map(|running| running.memory).collect();
            let refused = admitted.iter().position(|&index| {
                jobs.push(self.waiting[index].request.memory);
                self.memory.reserve(MemoryNeed::of_jobs(jobs.iter().copied())) != Reservation::Granted
            });
            let Some(refused) = refused else {
                break admitted;
            };
            let index = admitted[refused];
            if !waiting[index].may_be_passed {
                claim = Some(MemoryNeed::of_jobs(jobs));
                break admitted[..refused].to_vec();
            }
            candidates.retain(|&candidate| candidate != index);
        };
        self.memory.claim(claim);
        admitted
    }

    /// Fails the waiting requests that could not start even if no other job had any memory.
    fn drop_too_large(&mut self) -> Caught<()> {
        if !self.running.is_empty() {
            return Ok(());
        }
        let mut index = 0;
        while let Some(waiting) = self.waiting.get(index) {
            let needed = MemoryNeed::of_jobs([waiting.request.memory]);
            let Reservation::TooLarge { available } = self.memory.reserve(needed) else {
                index += 1;
                continue;
            };
            let Some(waiting) = self.waiting.remove(index) else {
                break;
            };
            let (_, _, pending) = self.leave_queue(waiting.request);
            self.complete(pending, Err(too_large(needed, available)))?;
        }
        Ok(())
    }

    fn leave_queue(&self, request: QueuedRequest<P>) -> (P::Request, Work, PendingResult<P>) {
        let QueuedRequest {
            request,
            work,
            bytes,
            deadline,
            owner,
            handler,
            memory: _,
        } = request;
        self.queue.leave(&owner.places, bytes);
        let pending = PendingResult {
            handler,
            deadline,
            owner,
        };
        (request, work, pending)
    }

    fn start(&mut self, WaitingRequest { request, since, .. }: WaitingRequest<P>) -> Caught<()> {
        let memory = request.memory;
        let (request, work, pending) = self.leave_queue(request);
        let (pending, prepared) = self.call_for(pending, |pipeline, handler| {
            handler.on_start();
            let job = failpoint::maybe_fail(FailPoint::Prepare).and_then(|()| pipeline.prepare(request));
            job.map(|job| (pipeline.steps(&job), pipeline.batch_entries(&job), job))
        })?;
        match prepared {
            Err(error) => self.complete(pending, Err(error)),
            Ok((steps, entries, job)) => {
                self.running.push(RunningJob {
                    job,
                    pending,
                    work: Work { steps, ..work },
                    memory,
                    steps_taken: 0,
                    entries,
                    since,
                    failed: None,
                });
                Ok(())
            }
        }
    }

    /// Advances the jobs whose turn it is by one step.
    fn step(&mut self) -> Caught<()> {
        for index in 0..self.running.len() {
            self.call_for_running(&[index], |pipeline, running| {
                if let Some(running) = running.get_mut(index) {
                    running.entries = pipeline.batch_entries(&running.job);
                }
            })?;
        }
        let now = Instant::now();
        let turns: Vec<Turn> = self.running.iter().map(|running| running.turn(now)).collect();
        let jobs = next_batch(&turns, self.max_batch_size, |shape, entries, more| {
            self.step_times.gains(shape, entries, more)
        });
        if jobs.is_empty() {
            return Ok(());
        }
        self.step_batch(&jobs)?;
        for job in jobs {
            self.call_for_running(&[job], |pipeline, running| {
                if let Some(running) = running.get_mut(job) {
                    running.count_step(pipeline);
                }
            })?;
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
        let begin = Instant::now();
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
        let time = begin.elapsed();
        let entries = jobs.iter().filter_map(|&job| Some(&self.running.get(job)?.entries));
        let batch_size = entries.clone().map(|entries| entries.count).sum();
        if let Some(first) = entries.clone().next()
            && self.pipeline.is_synchronous()
        {
            self.step_times.record(&first.shape, batch_size, time);
        }
        self.report_batch(jobs, batch_size);
        for (&job, result) in jobs.iter().zip(results) {
            if let Err(error) = result {
                self.fail(&[job], &error);
            }
        }
        Ok(Ok(()))
    }

    /// Tells the owners of the jobs of a batch, each once.
    fn report_batch(&self, jobs: &[usize], batch_size: usize) {
        let mut owners: Vec<(&Arc<Owner>, usize)> = Vec::new();
        for running in jobs.iter().filter_map(|&job| self.running.get(job)) {
            let owner = &running.pending.owner;
            match owners.iter_mut().find(|(known, _)| Arc::ptr_eq(known, owner)) {
                Some((_, entries)) => *entries += running.entries.count,
                None => owners.push((owner, running.entries.count)),
            }
        }
        for (owner, entries) in owners {
            owner.observer.batch_executed(entries, batch_size);
        }
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
            if result.is_ok() {
                self.panics = 0;
            }
            self.complete(pending, result)?;
        }
        Ok(())
    }

    /// Ends a request with its result, and the engine with a lost device.
    fn complete(&mut self, pending: PendingResult<P>, result: Result<P::Output>) -> Caught<()> {
        let (pending, goes_on) = match &result {
            Err(Error::OutOfMemory(_)) => (self.call_for(pending, |pipeline, _| pipeline.free_memory())?.0, Ok(())),
            Err(Error::DeviceLost(reason)) => {
                self.report_failure(reason);
                (pending, Err(Stopped::DeviceLost))
            }
            _ => (pending, Ok(())),
        };
        pending.handler.send(result);
        goes_on
    }

    /// Reports a panic, before any client is answered. The last of several panics ends the engine.
    fn report_panic(&mut self) {
        self.panics += 1;
        if self.panics < MAX_PANICS {
            let _ = catch_panic(|| self.observer.engine_restarts());
        } else {
            self.report_failure(PANICS);
        }
    }

    /// Reports the end of the engine and closes the queue, before any client is answered.
    fn report_failure(&self, reason: &str) {
        let _ = catch_panic(|| self.observer.engine_failed(reason));
        self.queue
            .close(Error::unavailable("the instance failed earlier and can no longer work"));
    }

    /// Goes on with a new pipeline after a panic, unless there were too many. Jobs that ran are answered; requests that
    /// wait are served.
    fn restart(&mut self, make_pipeline: &mut MakePipeline<P>) -> bool {
        if self.panics >= MAX_PANICS {
            return false;
        }
        self.answer_running(&Error::unavailable(
            "another request made the instance start anew; send the request again",
        ));
        while let Some(request) = self.starting.pop_back() {
            self.waiting.push_front(request);
        }
        let Ok(pipeline) = catch_panic(make_pipeline) else {
            self.report_failure(PANICS);
            return false;
        };
        let old = std::mem::replace(&mut self.pipeline, pipeline);
        let _ = catch_panic(|| drop(old));
        true
    }

    /// Answers the running jobs. After a panic, what is dropped or called here may panic too; one response that fails
    /// does not keep the others from being sent.
    fn answer_running(&mut self, error: &Error) {
        for running in std::mem::take(&mut self.running) {
            let RunningJob {
                job, pending, failed, ..
            } = running;
            let _ = catch_panic(|| drop(job));
            let _ = catch_panic(|| pending.handler.send(Err(failed.unwrap_or_else(|| error.clone()))));
        }
    }

    /// Answers every request that is left with the reason of the end.
    fn shut_down(mut self) {
        let (reason, submitted) = self.queue.drain();
        let error = reason.unwrap_or_else(|| Error::unavailable("the engine has ended"));
        self.answer_running(&error);
        let starting = std::mem::take(&mut self.starting);
        let waiting = std::mem::take(&mut self.waiting);
        for request in starting
            .into_iter()
            .chain(waiting)
            .map(|waiting| waiting.request)
            .chain(submitted)
        {
            let (request, _, pending) = self.leave_queue(request);
            let _ = catch_panic(|| drop(request));
            let _ = catch_panic(|| pending.handler.send(Err(error.clone())));
        }
        let Self { pipeline, .. } = self;
        let _ = catch_panic(|| drop(pipeline));
    }
}

fn internal_error() -> Error {
    Error::internal("internal error; see the server log")
}
