//! An engine with scripted parts that a test controls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::{Deadline, Engine, MemoryBudget, MemoryNeed, Owner, QueueLimits, QueuedRequest, Work};
use super::fakes::{
    Answer, Ended, FakeBatchObserver, FakeHandler, FakeObserver, FakePipeline, Outcome, SharedLog, Spec, entry_cost,
};

/// The time limit of every wait. Only a failing test reaches it.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A test's handle to a request.
pub struct Handle {
    cancelled: Arc<AtomicBool>,
    asks: Arc<AtomicUsize>,
}

impl Handle {
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// Waits until `is_cancelled` was called twice more. A request that is being submitted then waits for a place.
    pub fn wait_until_asked(&self) {
        let asked = self.asks.load(Ordering::SeqCst);
        let start = Instant::now();
        while self.asks.load(Ordering::SeqCst) < asked + 2 {
            assert!(start.elapsed() < LIMIT, "is_cancelled is not called");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// An engine with scripted parts. Its batches wait for [`TestEngine::step`], until [`TestEngine::run`].
pub struct TestEngine {
    // Dropped before the engine: a batch that waits for it must end before the engine can be joined.
    go: Option<Sender<()>>,
    calls: Receiver<Vec<usize>>,
    answer_sender: Sender<Answer>,
    answers: Receiver<Answer>,
    ended: Receiver<()>,
    owners: [Arc<Owner>; 2],
    pub log: SharedLog,
    pub engine: Option<Arc<Engine<FakePipeline>>>,
}

impl TestEngine {
    pub fn new(max_batch_size: usize) -> Self {
        Self::with(max_batch_size, |_, _| {})
    }

    pub fn with(max_batch_size: usize, set: impl FnOnce(&mut FakePipeline, &mut FakeObserver)) -> Self {
        let limits = QueueLimits {
            max_requests: 100,
            max_bytes: usize::MAX,
        };
        Self::start(max_batch_size, limits, &MemoryBudget::unlimited(), set)
    }

    pub fn with_limits(
        max_batch_size: usize,
        limits: QueueLimits,
        set: impl FnOnce(&mut FakePipeline, &mut FakeObserver),
    ) -> Self {
        Self::start(max_batch_size, limits, &MemoryBudget::unlimited(), set)
    }

    pub fn with_budget(max_batch_size: usize, budget: &Arc<MemoryBudget>) -> Self {
        let limits = QueueLimits {
            max_requests: 100,
            max_bytes: usize::MAX,
        };
        Self::start(max_batch_size, limits, budget, |_, _| {})
    }

    fn start(
        max_batch_size: usize,
        limits: QueueLimits,
        budget: &Arc<MemoryBudget>,
        set: impl FnOnce(&mut FakePipeline, &mut FakeObserver),
    ) -> Self {
        let log = SharedLog::default();
        let (called, calls) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let (answer_sender, answers) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let mut pipeline = FakePipeline {
            log: log.clone(),
            max_batch_size,
            init_thread: None,
            memory_batch_size: usize::MAX,
            free_memory_panics: false,
            called,
            go: Arc::new(Mutex::new(gone)),
        };
        let mut observer = FakeObserver {
            log: log.clone(),
            panics: false,
        };
        set(&mut pipeline, &mut observer);
        let end = Ended(end);
        let make_pipeline = move || {
            let _ = &end;
            pipeline.clone()
        };
        let observer = Box::new(observer);
        let engine = Engine::start("test-engine", make_pipeline, max_batch_size, budget, observer).unwrap();
        let engine = Some(Arc::new(engine));
        Self {
            go: Some(go),
            calls,
            answer_sender,
            answers,
            ended,
            owners: [0, 1].map(|owner| {
                let log = log.clone();
                Arc::new(Owner::new(limits, Arc::new(FakeBatchObserver { owner, log })))
            }),
            log,
            engine,
        }
    }

    pub fn engine(&self) -> Arc<Engine<FakePipeline>> {
        Arc::clone(self.engine.as_ref().unwrap())
    }

    pub fn request(&self, spec: Spec) -> (QueuedRequest<FakePipeline>, Handle) {
        self.request_that(spec, None)
    }

    /// Creates a request whose handler calls `on_answer` after it received the result.
    pub fn request_that(
        &self,
        spec: Spec,
        on_answer: Option<Box<dyn FnOnce() + Send>>,
    ) -> (QueuedRequest<FakePipeline>, Handle) {
        let handle = Handle {
            cancelled: Arc::default(),
            asks: Arc::default(),
        };
        let handler = FakeHandler {
            spec: spec.clone(),
            log: self.log.clone(),
            cancelled: Arc::clone(&handle.cancelled),
            asks: Arc::clone(&handle.asks),
            answers: self.answer_sender.clone(),
            on_answer,
            answered: false,
        };
        (
            QueuedRequest {
                work: Work {
                    batch_size: spec.batch_size,
                    steps: spec.steps,
                    entry_cost: entry_cost(spec.side),
                },
                memory: MemoryNeed {
                    held: spec.memory,
                    ..MemoryNeed::default()
                },
                bytes: 1,
                deadline: spec.limit.map(|limit| Deadline {
                    at: Instant::now() + limit,
                    limit,
                }),
                owner: Arc::clone(&self.owners[spec.owner]),
                request: spec,
                handler: Box::new(handler),
            },
            handle,
        )
    }

    /// Submits a request for which the queue has a place.
    pub fn submit(&self, spec: Spec) -> Handle {
        let (request, handle) = self.request(spec);
        self.engine().submit([request]);
        handle
    }

    /// Submits a request on another thread and waits until it waits for a place in the queue.
    pub fn submit_to_full(&self, spec: Spec) -> Handle {
        let (request, handle) = self.request(spec);
        let engine = self.engine();
        std::thread::spawn(move || engine.submit([request]));
        handle.wait_until_asked();
        handle
    }

    /// Waits for the next batch, which then waits for `go`.
    pub fn called(&self) -> Vec<usize> {
        self.calls.recv_timeout(LIMIT).expect("no batch")
    }

    /// Lets the batch continue.
    pub fn go(&self) {
        self.go.as_ref().unwrap().send(()).unwrap();
    }

    /// Waits for the next batch and lets it continue.
    pub fn step(&self) -> Vec<usize> {
        let called = self.called();
        self.go();
        called
    }

    /// Lets all further batches run.
    pub fn run(&mut self) {
        self.go = None;
    }

    /// Waits for the next result.
    pub fn answer(&self) -> (usize, Outcome) {
        let answer = self.raw_answer();
        let outcome = answer.outcome.unwrap_or_else(|| panic!("{} got no answer", answer.id));
        (answer.id, outcome)
    }

    pub fn raw_answer(&self) -> Answer {
        self.answers.recv_timeout(LIMIT).expect("no answer")
    }

    /// Waits for `count` results; returns them by id.
    pub fn answers(&self, count: usize) -> BTreeMap<usize, Outcome> {
        let answers: BTreeMap<_, _> = (0..count).map(|_| self.answer()).collect();
        assert_eq!(answers.len(), count, "a request was answered twice");
        answers
    }

    /// Drops the engine and waits for its thread. No further result may arrive.
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
        assert!(self.answers.try_recv().is_err(), "an unexpected result");
        let log = self.log.get();
        assert_eq!((log.jobs, log.batch_size, &log.wrong), (0, 0, &vec![]));
    }

    /// Waits until the engine's thread has dropped the pipeline.
    pub fn ended(&self) {
        self.ended
            .recv_timeout(LIMIT)
            .expect("the engine's thread does not end");
    }
}

impl Drop for TestEngine {
    /// A failing test must not wait for an engine that may never end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.run();
            std::mem::forget(self.engine.take());
        }
    }
}
