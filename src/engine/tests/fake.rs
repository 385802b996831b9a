//! A pipeline, a client and an observer that do as they are told and tell what befell them.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::super::{Batch, Client, Engine, Observer, Pipeline, StepOutcome, Task};
use crate::error::{Error, Result};

/// No test waits longer than this for anything; it only passes when something is wrong.
pub const LIMIT: Duration = Duration::from_secs(20);

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
    log: SharedLog,
    max_rows: usize,
    pub enter_thread: Option<Fault>,
    /// A call of more rows runs out of memory.
    pub memory_rows: usize,
    pub relieve_panics: bool,
    /// Told of each call when it begins; it goes on when `go` says so, or is gone.
    called: Sender<Vec<usize>>,
    go: Receiver<()>,
    ended: Sender<()>,
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
        if log.rows > self.max_rows && log.jobs > 1 {
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
            let one_shape = jobs
                .windows(2)
                .all(|two| two[0].spec.side == two[1].spec.side);
            let to_do = jobs.iter().all(|job| job.step < job.spec.steps);
            if !one_shape || !to_do || (rows > self.max_rows && jobs.len() > 1) {
                log.wrong.push(format!("a call of {rows} rows for {ids:?}"));
            }
        }
        let _ = self.called.send(ids);
        let _ = self.go.recv();
        if rows > self.memory_rows {
            return Err(Error::out_of_memory("planned"));
        }
        jobs.iter()
            .try_for_each(|job| job.spec.meets(Place::Call))?;
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
    log: SharedLog,
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
    spec: Spec,
    log: SharedLog,
    cancelled: Arc<AtomicBool>,
    asks: Arc<AtomicUsize>,
    answers: Sender<Answer>,
    on_answer: Option<Box<dyn FnOnce() + Send>>,
    answered: bool,
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

/// What a test keeps of a task.
pub struct Handle {
    cancelled: Arc<AtomicBool>,
    asks: Arc<AtomicUsize>,
}

impl Handle {
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// Waits until the client has been asked twice more. Of a task that no engine has taken, it means
    /// that it waits at the door.
    pub fn wait_until_asked(&self) {
        let asked = self.asks.load(Ordering::SeqCst);
        let start = std::time::Instant::now();
        while self.asks.load(Ordering::SeqCst) < asked + 2 {
            assert!(start.elapsed() < LIMIT, "nobody asks");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// An engine over the fakes. Its UNet calls wait for [`Rig::step`] until [`Rig::run`].
pub struct Rig {
    // Before the engine: a call that waits for it must end before the engine can be joined.
    go: Option<Sender<()>>,
    calls: Receiver<Vec<usize>>,
    answer_sender: Sender<Answer>,
    answers: Receiver<Answer>,
    ended: Receiver<()>,
    pub log: SharedLog,
    pub engine: Option<Arc<Engine<FakePipeline>>>,
}

impl Rig {
    pub fn new(max_rows: usize) -> Self {
        Self::with(max_rows, |_, _| {})
    }

    pub fn with(max_rows: usize, set: impl FnOnce(&mut FakePipeline, &mut FakeObserver)) -> Self {
        let log = SharedLog::default();
        let (called, calls) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let (answer_sender, answers) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let mut pipeline = FakePipeline {
            log: log.clone(),
            max_rows,
            enter_thread: None,
            memory_rows: usize::MAX,
            relieve_panics: false,
            called,
            go: gone,
            ended: end,
        };
        let mut observer = FakeObserver {
            log: log.clone(),
            panics: false,
        };
        set(&mut pipeline, &mut observer);
        let engine = Engine::start("test-engine", pipeline, max_rows, Box::new(observer)).unwrap();
        let engine = Some(Arc::new(engine));
        Self {
            go: Some(go),
            calls,
            answer_sender,
            answers,
            ended,
            log,
            engine,
        }
    }

    pub fn engine(&self) -> Arc<Engine<FakePipeline>> {
        Arc::clone(self.engine.as_ref().unwrap())
    }

    pub fn task(&self, spec: Spec) -> (Task<FakePipeline>, Handle) {
        self.task_that(spec, None)
    }

    /// A task whose client calls `then` with its answer.
    pub fn task_that(
        &self,
        spec: Spec,
        on_answer: Option<Box<dyn FnOnce() + Send>>,
    ) -> (Task<FakePipeline>, Handle) {
        let handle = Handle {
            cancelled: Arc::default(),
            asks: Arc::default(),
        };
        let client = FakeClient {
            spec: spec.clone(),
            log: self.log.clone(),
            cancelled: Arc::clone(&handle.cancelled),
            asks: Arc::clone(&handle.asks),
            answers: self.answer_sender.clone(),
            on_answer,
            answered: false,
        };
        (
            Task {
                rows: spec.rows,
                request: spec,
                client: Box::new(client),
            },
            handle,
        )
    }

    /// Submits a task that there is room for.
    pub fn submit(&self, spec: Spec) -> Handle {
        let (task, handle) = self.task(spec);
        self.engine().submit(task);
        handle
    }

    /// Submits a task on a thread of its own and waits until it waits at the door.
    pub fn submit_to_full(&self, spec: Spec) -> Handle {
        let (task, handle) = self.task(spec);
        let engine = self.engine();
        std::thread::spawn(move || engine.submit(task));
        handle.wait_until_asked();
        handle
    }

    /// Waits for the next UNet call, which then waits in turn.
    pub fn called(&self) -> Vec<usize> {
        self.calls.recv_timeout(LIMIT).expect("no UNet call")
    }

    /// Lets the call go on.
    pub fn go(&self) {
        self.go.as_ref().unwrap().send(()).unwrap();
    }

    /// The next UNet call, which may go on.
    pub fn step(&self) -> Vec<usize> {
        let called = self.called();
        self.go();
        called
    }

    /// No call waits any more.
    pub fn run(&mut self) {
        self.go = None;
    }

    /// The next answer.
    pub fn answer(&self) -> (usize, Outcome) {
        let answer = self.raw_answer();
        let outcome = answer
            .outcome
            .unwrap_or_else(|| panic!("{} got no answer", answer.id));
        (answer.id, outcome)
    }

    pub fn raw_answer(&self) -> Answer {
        self.answers.recv_timeout(LIMIT).expect("no answer")
    }

    /// The next `count` answers, by id.
    pub fn answers(&self, count: usize) -> BTreeMap<usize, Outcome> {
        let answers: BTreeMap<_, _> = (0..count).map(|_| self.answer()).collect();
        assert_eq!(answers.len(), count, "somebody was answered twice");
        answers
    }

    /// Ends the engine, as its last owner, and waits for its thread. No answer may be left.
    pub fn end(mut self) {
        self.run();
        let engine = self.engine.take().unwrap();
        let (done, joined) = mpsc::channel();
        std::thread::spawn(move || {
            drop(engine);
            let _ = done.send(());
        });
        joined.recv_timeout(LIMIT).expect("the engine does not end");
        self.ended();
        assert!(self.answers.try_recv().is_err(), "an answer too many");
        let log = self.log.get();
        assert_eq!((log.jobs, log.rows, &log.wrong), (0, 0, &vec![]));
    }

    /// Waits until the engine's thread has dropped the pipeline.
    pub fn ended(&self) {
        self.ended
            .recv_timeout(LIMIT)
            .expect("the engine's thread does not end");
    }
}
