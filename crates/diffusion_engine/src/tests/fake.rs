//! A pipeline, a client and an observer that do as they are told and tell what befell them.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::{Batch, Client, Observer, Pipeline, StepOutcome};
use diffusion_core::{Error, Result};

/// Where something is told to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Prepare,
    Batch,
    /// The job's own part of a step.
    Step,
    /// The step of all jobs in the call.
    Call,
    IsDone,
    Finish,
    DropJob,
    IsCancelled,
    Started,
    Answer,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error,
    OutOfMemory,
    Panic,
}

/// A panic that does not go through the hook, so that it leaves no noise in the test's output.
pub fn planned_panic() -> ! {
    resume_unwind(Box::new("planned"))
}

/// A request, and what happens to it.
#[derive(Clone, Debug)]
pub struct Spec {
    pub id: usize,
    pub steps: usize,
    pub rows: usize,
    /// The rows that `batch` tells of; those of the task unless a test lies.
    pub batch_rows: usize,
    pub side: i64,
    pub fault: Option<(Place, Fault)>,
    /// The client has cancelled once it was asked more often than this.
    pub cancel_after: Option<usize>,
}

impl Spec {
    pub fn new(id: usize, steps: usize) -> Self {
        Self {
            id,
            steps,
            rows: 1,
            batch_rows: 1,
            side: 8,
            fault: None,
            cancel_after: None,
        }
    }

    pub fn rows(self, rows: usize) -> Self {
        Self {
            rows,
            batch_rows: rows,
            ..self
        }
    }

    pub fn batch_rows(self, batch_rows: usize) -> Self {
        Self { batch_rows, ..self }
    }

    pub fn side(self, side: i64) -> Self {
        Self { side, ..self }
    }

    pub fn fault(self, place: Place, fault: Fault) -> Self {
        Self {
            fault: Some((place, fault)),
            ..self
        }
    }

    fn meets(&self, at: Place) -> Result<()> {
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

/// All that the fakes saw.
#[derive(Debug, Default)]
pub struct Log {
    /// The jobs of each UNet call, failed ones too.
    pub calls: Vec<Vec<usize>>,
    /// Jobs and rows, as the observer was told.
    pub observed: Vec<(usize, usize)>,
    pub started: Vec<usize>,
    pub prepared: Vec<usize>,
    /// For each call of `relieve`, the jobs that existed.
    pub relieved: Vec<usize>,
    pub cancelled: usize,
    pub poisoned: Vec<String>,
    /// Jobs that exist, and their rows.
    pub jobs: usize,
    pub rows: usize,
    /// What must never be.
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

impl Drop for FakeJob {
    fn drop(&mut self) {
        {
            let mut log = self.log.get();
            log.jobs -= 1;
            log.rows -= self.spec.rows;
        }
        if self.spec.fault == Some((Place::DropJob, Fault::Panic)) {
            planned_panic();
        }
    }
}

pub struct FakePipeline {
    pub log: SharedLog,
    pub max_unet_batch_size: usize,
    pub enter_thread: Option<Fault>,
    /// A call of more rows runs out of memory.
    pub memory_rows: usize,
    pub relieve_panics: bool,
    /// Told of each call when it begins; it goes on when `go` says so, or is gone.
    pub called: Sender<Vec<usize>>,
    pub go: Receiver<()>,
    /// Told when the pipeline is dropped.
    pub ended: Sender<()>,
}

impl Pipeline for FakePipeline {
    type Request = Spec;
    type Job = FakeJob;
    /// The id, and the steps that the job took.
    type Output = (usize, usize);

    fn enter_thread(&mut self) -> Result<()> {
        match self.enter_thread {
            None => Ok(()),
            Some(Fault::Panic) => planned_panic(),
            Some(_) => Err(Error::internal("no device")),
        }
    }

    fn prepare(&mut self, request: Spec) -> Result<FakeJob> {
        request.meets(Place::Prepare)?;
        let mut log = self.log.get();
        log.prepared.push(request.id);
        log.jobs += 1;
        log.rows += request.rows;
        if log.rows > self.max_unet_batch_size && log.jobs > 1 {
            let text = format!("{} jobs of {} rows are in flight", log.jobs, log.rows);
            log.wrong.push(text);
        }
        Ok(FakeJob {
            spec: request,
            step: 0,
            log: self.log.clone(),
        })
    }

    fn batch(&self, job: &FakeJob) -> Batch {
        let _ = job.spec.meets(Place::Batch);
        Batch {
            rows: job.spec.batch_rows,
            shape: vec![4, job.spec.side, job.spec.side],
        }
    }

    fn is_done(&self, job: &FakeJob) -> bool {
        let _ = job.spec.meets(Place::IsDone);
        job.step >= job.spec.steps
    }

    fn step(&mut self, jobs: &mut [&mut FakeJob]) -> Result<StepOutcome> {
        let ids: Vec<usize> = jobs.iter().map(|job| job.spec.id).collect();
        let rows: usize = jobs.iter().map(|job| job.spec.batch_rows).sum();
        {
            let mut log = self.log.get();
            log.calls.push(ids.clone());
            let one_shape = jobs.windows(2).all(|two| two[0].spec.side == two[1].spec.side);
            let to_do = jobs.iter().all(|job| job.step < job.spec.steps);
            if !one_shape || !to_do || (rows > self.max_unet_batch_size && jobs.len() > 1) {
                log.wrong.push(format!("a call of {rows} rows for {ids:?}"));
            }
        }
        let _ = self.called.send(ids);
        let _ = self.go.recv();
        if rows > self.memory_rows {
            return Err(Error::out_of_memory("planned"));
        }
        jobs.iter().try_for_each(|job| job.spec.meets(Place::Call))?;
        let step = |job: &mut &mut FakeJob| {
            job.spec.meets(Place::Step)?;
            job.step += 1;
            Ok(())
        };
        Ok(jobs.iter_mut().map(step).collect())
    }

    fn finish(&mut self, job: FakeJob) -> Result<(usize, usize)> {
        job.spec.meets(Place::Finish)?;
        Ok((job.spec.id, job.step))
    }

    fn relieve(&mut self) {
        let mut log = self.log.get();
        let jobs = log.jobs;
        log.relieved.push(jobs);
        drop(log);
        if self.relieve_panics {
            planned_panic();
        }
    }
}

impl Drop for FakePipeline {
    fn drop(&mut self) {
        let _ = self.ended.send(());
    }
}

pub struct FakeObserver {
    pub log: SharedLog,
    pub panics: bool,
}

impl Observer for FakeObserver {
    fn unet_call(&self, jobs: usize, rows: usize) {
        self.log.get().observed.push((jobs, rows));
    }

    fn cancelled(&self) {
        self.log.get().cancelled += 1;
    }

    fn poisoned(&self, reason: &str) {
        self.log.get().poisoned.push(reason.to_owned());
        if self.panics {
            planned_panic();
        }
    }
}

pub type Outcome = Result<(usize, usize)>;

/// What a client got.
#[derive(Debug)]
pub struct Answer {
    pub id: usize,
    /// `None` for a client that was dropped without an answer.
    pub outcome: Option<Outcome>,
    /// Whether the observer had heard of a poisoned engine by then.
    pub after_poison: bool,
}

pub struct FakeClient {
    pub spec: Spec,
    pub log: SharedLog,
    pub cancelled: Arc<AtomicBool>,
    pub asks: Arc<AtomicUsize>,
    pub answers: Sender<Answer>,
    pub on_answer: Option<Box<dyn FnOnce() + Send>>,
    pub answered: bool,
}

impl FakeClient {
    fn tell(&mut self, outcome: Option<Outcome>) {
        self.answered = true;
        let after_poison = !self.log.get().poisoned.is_empty();
        let _ = self.answers.send(Answer {
            id: self.spec.id,
            outcome,
            after_poison,
        });
    }
}

impl Client<(usize, usize)> for FakeClient {
    fn is_cancelled(&self) -> bool {
        let _ = self.spec.meets(Place::IsCancelled);
        let asks = self.asks.fetch_add(1, Ordering::SeqCst);
        self.cancelled.load(Ordering::SeqCst) || self.spec.cancel_after.is_some_and(|n| asks >= n)
    }

    fn started(&self) {
        let _ = self.spec.meets(Place::Started);
        self.log.get().started.push(self.spec.id);
    }

    fn answer(mut self: Box<Self>, outcome: Outcome) {
        self.tell(Some(outcome));
        if let Some(then) = self.on_answer.take() {
            then();
        }
        let _ = self.spec.meets(Place::Answer);
    }
}

impl Drop for FakeClient {
    fn drop(&mut self) {
        if !self.answered {
            self.tell(None);
        }
    }
}
