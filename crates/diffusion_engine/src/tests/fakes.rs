//! A scripted pipeline, handler and observer that log every call.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::super::{BatchEntries, BatchObserver, Observer, Pipeline, ResponseHandler, StepResults};
use diffusion_core::{Error, Result};

/// Where a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    Prepare,
    BatchEntries,
    /// The step of one job.
    Step,
    /// The step of the whole batch.
    Batch,
    IsDone,
    Preview,
    Finish,
    DropJob,
    IsCancelled,
    OnWait,
    OnStart,
    OnStep,
    Send,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error,
    OutOfMemory,
    Panic,
}

/// Panics without calling the panic hook, which would print to the test's output.
pub fn planned_panic() -> ! {
    resume_unwind(Box::new("planned"))
}

/// A request and its script.
#[derive(Clone, Debug)]
pub struct Spec {
    pub id: usize,
    pub steps: usize,
    pub batch_size: usize,
    /// Entries that `batch_entries` returns; equal to `batch_size` unless a test says otherwise.
    pub entries: usize,
    pub side: i64,
    /// The side is 1 less in steps that are no multiple of this number.
    pub interval: usize,
    pub fault: Option<(FailPoint, Fault)>,
    /// `is_cancelled` returns true after this many calls.
    pub cancel_after: Option<usize>,
    /// The time limit.
    pub limit: Option<Duration>,
    /// The memory that it reserves.
    pub memory: u64,
    /// Whose request it is, 0 or 1.
    pub owner: usize,
}

impl Spec {
    pub fn new(id: usize, steps: usize) -> Self {
        Self {
            id,
            steps,
            batch_size: 1,
            entries: 1,
            side: 8,
            interval: 1,
            fault: None,
            cancel_after: None,
            limit: None,
            memory: 0,
            owner: 0,
        }
    }

    pub fn owner(mut self, owner: usize) -> Self {
        self.owner = owner;
        self
    }

    pub fn memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    pub fn batch_size(self, batch_size: usize) -> Self {
        Self {
            batch_size,
            entries: batch_size,
            ..self
        }
    }

    pub fn entries(self, entries: usize) -> Self {
        Self { entries, ..self }
    }

    pub fn side(self, side: i64) -> Self {
        Self { side, ..self }
    }

    pub fn interval(self, interval: usize) -> Self {
        Self { interval, ..self }
    }

    pub fn limit(self, limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    pub fn fault(self, place: FailPoint, fault: Fault) -> Self {
        Self {
            fault: Some((place, fault)),
            ..self
        }
    }

    fn meets(&self, at: FailPoint) -> Result<()> {
        match self.fault {
            Some((place, fault)) if place == at => match fault {
                Fault::Error => Err(Error::invalid_argument("planned")),
                Fault::OutOfMemory => Err(Error::out_of_memory("planned")),
                Fault::Panic => planned_panic(),
            },
            _ => Ok(()),
        }
    }
}

/// All calls that the fakes received.
#[derive(Debug, Default)]
pub struct Log {
    /// The jobs of each batch, including failed ones.
    pub calls: Vec<Vec<usize>>,
    /// The owner, its entries and the size of each batch.
    pub observed: Vec<(usize, usize, usize)>,
    /// The id and the position of waiting requests.
    pub positions: Vec<(usize, usize)>,
    /// The id, the steps taken and all steps of jobs.
    pub steps: Vec<(usize, usize, usize)>,
    pub started: Vec<usize>,
    pub prepared: Vec<usize>,
    /// For each call of `free_memory`, the number of jobs.
    pub freed_memory: Vec<usize>,
    pub restarts: usize,
    pub failed: Vec<String>,
    /// Jobs that exist, and their batch entries.
    pub jobs: usize,
    pub batch_size: usize,
    /// Violations of the engine's contract.
    pub wrong: Vec<String>,
}

#[derive(Clone, Default)]
pub struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    pub fn get(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }
}

pub struct FakeJob {
    spec: Spec,
    step: usize,
    log: SharedLog,
}

impl FakeJob {
    fn side(&self) -> i64 {
        self.spec.side - i64::from(!self.step.is_multiple_of(self.spec.interval))
    }
}

impl Drop for FakeJob {
    fn drop(&mut self) {
        {
            let mut log = self.log.get();
            log.jobs -= 1;
            log.batch_size -= self.spec.batch_size;
        }
        if self.spec.fault == Some((FailPoint::DropJob, Fault::Panic)) {
            planned_panic();
        }
    }
}

/// A pipeline that a test controls. The engine makes further ones by cloning it.
#[derive(Clone)]
pub struct FakePipeline {
    pub log: SharedLog,
    pub max_batch_size: usize,
    pub init_thread: Option<Fault>,
    /// A larger batch runs out of memory.
    pub memory_batch_size: usize,
    pub free_memory_panics: bool,
    /// Gets the jobs of each batch. The batch then waits for `go`, or until `go` is closed.
    pub called: Sender<Vec<usize>>,
    pub go: Arc<Mutex<Receiver<()>>>,
}

impl Pipeline for FakePipeline {
    type Request = Spec;
    type Job = FakeJob;
    /// The id and the number of steps.
    type Output = (usize, usize);
    /// The id and the steps taken.
    type Preview = (usize, usize);

    fn init_thread(&mut self) -> Result<()> {
        match self.init_thread {
            None => Ok(()),
            Some(Fault::Panic) => planned_panic(),
            Some(_) => Err(Error::internal("no device")),
        }
    }

    fn prepare(&mut self, request: Spec) -> Result<FakeJob> {
        request.meets(FailPoint::Prepare)?;
        let mut log = self.log.get();
        log.prepared.push(request.id);
        log.jobs += 1;
        log.batch_size += request.batch_size;
        if log.batch_size > self.max_batch_size && log.jobs > 1 {
            let text = format!("{} jobs of {} batch entries run", log.jobs, log.batch_size);
            log.wrong.push(text);
        }
        Ok(FakeJob {
            spec: request,
            step: 0,
            log: self.log.clone(),
        })
    }

    fn batch_entries(&self, job: &FakeJob) -> BatchEntries {
        let _ = job.spec.meets(FailPoint::BatchEntries);
        BatchEntries {
            count: job.spec.entries,
            shape: vec![4, job.side(), job.side()],
        }
    }

    fn steps(&self, job: &FakeJob) -> usize {
        job.spec.steps
    }

    fn is_done(&self, job: &FakeJob) -> bool {
        let _ = job.spec.meets(FailPoint::IsDone);
        job.step >= job.spec.steps
    }

    fn step(&mut self, jobs: &mut [&mut FakeJob]) -> Result<StepResults> {
        let ids: Vec<usize> = jobs.iter().map(|job| job.spec.id).collect();
        let batch_size: usize = jobs.iter().map(|job| job.spec.entries).sum();
        {
            let mut log = self.log.get();
            log.calls.push(ids.clone());
            let one_shape = jobs.windows(2).all(|two| two[0].side() == two[1].side());
            let to_do = jobs.iter().all(|job| job.step < job.spec.steps);
            if !one_shape || !to_do || (batch_size > self.max_batch_size && jobs.len() > 1) {
                log.wrong.push(format!("a batch of {batch_size} entries for {ids:?}"));
            }
        }
        let _ = self.called.send(ids);
        let _ = self.go.lock().unwrap().recv();
        if batch_size > self.memory_batch_size {
            return Err(Error::out_of_memory("planned"));
        }
        jobs.iter().try_for_each(|job| job.spec.meets(FailPoint::Batch))?;
        let step = |job: &mut &mut FakeJob| {
            job.spec.meets(FailPoint::Step)?;
            job.step += 1;
            Ok(())
        };
        Ok(jobs.iter_mut().map(step).collect())
    }

    /// The scripted steps take no time that says anything.
    fn is_synchronous(&self) -> bool {
        false
    }

    fn preview(&mut self, job: &FakeJob) -> Result<Option<(usize, usize)>> {
        job.spec.meets(FailPoint::Preview)?;
        Ok(Some((job.spec.id, job.step)))
    }

    fn finish(&mut self, job: FakeJob) -> Result<(usize, usize)> {
        job.spec.meets(FailPoint::Finish)?;
        Ok((job.spec.id, job.step))
    }

    fn free_memory(&mut self) {
        let mut log = self.log.get();
        let jobs = log.jobs;
        log.freed_memory.push(jobs);
        drop(log);
        if self.free_memory_panics {
            planned_panic();
        }
    }
}

/// The cost of a step for one entry with this side.
pub fn entry_cost(side: i64) -> u64 {
    side.unsigned_abs().pow(2)
}

/// Tells when it is dropped, which the engine's thread does with what makes its pipelines, at its end.
pub struct Ended(pub Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Observes the batches of one owner.
pub struct FakeBatchObserver {
    pub owner: usize,
    pub log: SharedLog,
}

impl BatchObserver for FakeBatchObserver {
    fn batch_executed(&self, entries: usize, batch_size: usize) {
        self.log.get().observed.push((self.owner, entries, batch_size));
    }
}

pub struct FakeObserver {
    pub log: SharedLog,
    pub panics: bool,
}

impl Observer for FakeObserver {
    fn engine_restarts(&self) {
        self.log.get().restarts += 1;
        if self.panics {
            planned_panic();
        }
    }

    fn engine_failed(&self, reason: &str) {
        self.log.get().failed.push(reason.to_owned());
        if self.panics {
            planned_panic();
        }
    }
}

pub type Outcome = Result<(usize, usize)>;

/// The result that a handler received.
#[derive(Debug)]
pub struct Answer {
    pub id: usize,
    /// `None` for a handler that was dropped without a result.
    pub outcome: Option<Outcome>,
    /// Whether a restart or the failure of the engine was reported before.
    pub after_failure: bool,
}

pub struct FakeHandler {
    pub spec: Spec,
    pub log: SharedLog,
    pub cancelled: Arc<AtomicBool>,
    pub asks: Arc<AtomicUsize>,
    pub answers: Sender<Answer>,
    pub on_answer: Option<Box<dyn FnOnce() + Send>>,
    pub answered: bool,
}

impl FakeHandler {
    fn tell(&mut self, outcome: Option<Outcome>) {
        self.answered = true;
        let log = self.log.get();
        let after_failure = log.restarts > 0 || !log.failed.is_empty();
        drop(log);
        let _ = self.answers.send(Answer {
            id: self.spec.id,
            outcome,
            after_failure,
        });
    }
}

impl ResponseHandler<(usize, usize), (usize, usize)> for FakeHandler {
    fn is_cancelled(&self) -> bool {
        let _ = self.spec.meets(FailPoint::IsCancelled);
        let asks = self.asks.fetch_add(1, Ordering::SeqCst);
        self.cancelled.load(Ordering::SeqCst) || self.spec.cancel_after.is_some_and(|n| asks >= n)
    }

    fn on_wait(&self, position: usize) {
        let _ = self.spec.meets(FailPoint::OnWait);
        let entry = (self.spec.id, position);
        let positions = &mut self.log.get().positions;
        if positions.last() != Some(&entry) {
            positions.push(entry);
        }
    }

    fn on_step(&self, taken: usize, steps: usize, preview: &mut dyn FnMut() -> Result<Option<(usize, usize)>>) {
        let _ = self.spec.meets(FailPoint::OnStep);
        let preview = preview();
        let mut log = self.log.get();
        if preview
            .as_ref()
            .is_ok_and(|preview| *preview != Some((self.spec.id, taken)))
        {
            log.wrong.push(format!(
                "after {taken} steps, job {} has the preview {preview:?}",
                self.spec.id
            ));
        }
        log.steps.push((self.spec.id, taken, steps));
    }

    fn on_start(&self) {
        let _ = self.spec.meets(FailPoint::OnStart);
        self.log.get().started.push(self.spec.id);
    }

    fn send(mut self: Box<Self>, outcome: Outcome) {
        self.tell(Some(outcome));
        if let Some(then) = self.on_answer.take() {
            then();
        }
        let _ = self.spec.meets(FailPoint::Send);
    }
}

impl Drop for FakeHandler {
    fn drop(&mut self) {
        if !self.answered {
            self.tell(None);
        }
    }
}
