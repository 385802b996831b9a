//! An engine over the fakes, with its strings in the test's hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use super::super::{Engine, Task};
use super::fake::{Answer, FakeClient, FakeObserver, FakePipeline, Outcome, SharedLog, Spec};

/// No test waits longer than this for anything; it only passes when something is wrong.
pub const LIMIT: Duration = Duration::from_secs(20);

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
        let start = Instant::now();
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
    pub fn new(max_unet_batch_size: usize) -> Self {
        Self::with(max_unet_batch_size, |_, _| {})
    }

    pub fn with(max_unet_batch_size: usize, set: impl FnOnce(&mut FakePipeline, &mut FakeObserver)) -> Self {
        let log = SharedLog::default();
        let (called, calls) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let (answer_sender, answers) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let mut pipeline = FakePipeline {
            log: log.clone(),
            max_unet_batch_size,
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
        let engine = Engine::start("test-engine", pipeline, max_unet_batch_size, Box::new(observer)).unwrap();
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
    pub fn task_that(&self, spec: Spec, on_answer: Option<Box<dyn FnOnce() + Send>>) -> (Task<FakePipeline>, Handle) {
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
        self.engine().submit([task]);
        handle
    }

    /// Submits a task on a thread of its own and waits until it waits at the door.
    pub fn submit_to_full(&self, spec: Spec) -> Handle {
        let (task, handle) = self.task(spec);
        let engine = self.engine();
        std::thread::spawn(move || engine.submit([task]));
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
        let outcome = answer.outcome.unwrap_or_else(|| panic!("{} got no answer", answer.id));
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

impl Drop for Rig {
    /// A test that fails must not wait for an engine that may never end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.run();
            std::mem::forget(self.engine.take());
        }
    }
}
