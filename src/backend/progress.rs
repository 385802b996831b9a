//! Responses that tell how far a batch element is, before the final response.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use triton_api::Parameter;

use super::encoder_thread::EncoderHandle;

/// The parameters of a response.
type Parameters = Vec<(&'static str, Parameter)>;

/// Sends a response with parameters.
pub type SendProgress = dyn Fn(&[(&str, Parameter)]) + Send + Sync;

/// The progress of a batch element that asks for it.
pub struct Progress {
    /// Steps from one response to the next.
    every: usize,
    /// The steps that the request asks for.
    steps: usize,
    /// The index of the batch element, if there are several.
    element: Option<usize>,
    respond: Arc<SendProgress>,
    /// The thread that sends responses.
    encoder: EncoderHandle,
    started: OnceLock<Instant>,
    /// The position that was told last.
    position: AtomicUsize,
    /// Whether a response waits to be sent. Further ones are left out then: only the last one matters.
    is_sending: Arc<AtomicBool>,
}

impl Progress {
    /// Makes the progress of a batch element that asks for a response every `every` of its `steps` steps.
    pub fn new(
        every: usize,
        steps: usize,
        element: Option<usize>,
        respond: Arc<SendProgress>,
        encoder: EncoderHandle,
    ) -> Self {
        Self {
            every,
            steps,
            element,
            respond,
            encoder,
            started: OnceLock::new(),
            position: AtomicUsize::new(usize::MAX),
            is_sending: Arc::default(),
        }
    }

    /// So many requests come before this one. Told when the number changes.
    pub fn waits(&self, position: usize) {
        if self.position.swap(position, Ordering::Relaxed) != position {
            let mut parameters = self.parameters(0, self.steps);
            parameters.push(("queue_position", integer(position)));
            self.send(parameters);
        }
    }

    /// The steps begin.
    pub fn starts(&self) {
        let _ = self.started.set(Instant::now());
    }

    /// So many steps are taken.
    pub fn step(&self, taken: usize, steps: usize) {
        if !taken.is_multiple_of(self.every) {
            return;
        }
        let mut parameters = self.parameters(taken, steps);
        if let Some(started) = self.started.get() {
            let left = started.elapsed().as_secs_f64() / taken as f64 * steps.saturating_sub(taken) as f64;
            parameters.push(("eta_ms", integer((left * 1000.0) as usize)));
        }
        self.send(parameters);
    }

    fn parameters(&self, taken: usize, steps: usize) -> Parameters {
        let mut parameters = vec![("step", integer(taken)), ("steps", integer(steps))];
        parameters.extend(self.element.map(|element| ("batch_element", integer(element))));
        parameters
    }

    /// Sends a response on the encoder thread, which sends the final response later. The engine does not wait for it.
    fn send(&self, parameters: Parameters) {
        if self.is_sending.swap(true, Ordering::AcqRel) {
            return;
        }
        let (respond, is_sending) = (Arc::clone(&self.respond), Arc::clone(&self.is_sending));
        self.encoder.post(Box::new(move || {
            is_sending.store(false, Ordering::Release);
            respond(&parameters);
        }));
    }
}

fn integer(number: usize) -> Parameter {
    Parameter::Int(i64::try_from(number).unwrap_or(i64::MAX))
}
