//! Responses that tell how far a batch element is, before the final response.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde_json::json;
use triton_api::{Parameter, log_verbose};

use super::encoder_thread::EncoderHandle;
use crate::pipelines::PreviewImages;
use diffusion_core::Result;
use diffusion_image::{OutputFormat, encode, to_base64};

/// Bytes of previews that a batch element may send. Triton keeps what a slow reader has not read.
const MAX_PREVIEW_BYTES: usize = 64 << 20;

/// The parameters of a response.
type Parameters = Vec<(&'static str, Parameter)>;

/// Sends a response with parameters, and with images in base64 if there are any.
pub type SendProgress = dyn Fn(&[(&str, Parameter)], &[String]) + Send + Sync;

/// What the progress of a batch element depends on.
pub struct ProgressSettings {
    /// Steps from one response to the next.
    pub every: usize,
    /// The steps that the request asks for.
    pub steps: usize,
    /// The index of the batch element, if there are several.
    pub element: Option<usize>,
    /// The file format of previews.
    pub format: OutputFormat,
    /// Whether previews say that a model generated them.
    pub provenance: bool,
    /// Sends a response.
    pub respond: Arc<SendProgress>,
    /// The thread that sends responses.
    pub encoder: EncoderHandle,
}

/// The progress of a batch element that asks for it.
pub struct Progress {
    settings: ProgressSettings,
    started: OnceLock<Instant>,
    /// The position that was told last.
    position: AtomicUsize,
    shared: Arc<Shared>,
}

/// What the engine's thread and the encoder thread share.
#[derive(Default)]
struct Shared {
    /// Whether a response waits to be sent. Further ones are left out then: only the last one matters.
    is_sending: AtomicBool,
    /// Bytes of the previews so far. At [`MAX_PREVIEW_BYTES`] there are no more previews.
    preview_bytes: AtomicUsize,
}

impl Progress {
    /// Makes the progress of a batch element.
    pub fn new(settings: ProgressSettings) -> Self {
        Self {
            settings,
            started: OnceLock::new(),
            position: AtomicUsize::new(usize::MAX),
            shared: Arc::default(),
        }
    }

    /// So many requests come before this one. Told when the number changes.
    pub fn waits(&self, position: usize) {
        if self.position.swap(position, Ordering::Relaxed) != position {
            let mut parameters = self.parameters(0, self.settings.steps);
            parameters.push(("queue_position", integer(position)));
            self.send(parameters, || None);
        }
    }

    /// The steps begin.
    pub fn starts(&self) {
        let _ = self.started.set(Instant::now());
    }

    /// So many steps are taken. `preview` is called if the response is sent.
    pub fn step(&self, taken: usize, steps: usize, preview: &mut dyn FnMut() -> Result<Option<PreviewImages>>) {
        if !taken.is_multiple_of(self.settings.every) {
            return;
        }
        let mut parameters = self.parameters(taken, steps);
        if let Some(started) = self.started.get() {
            let left = started.elapsed().as_secs_f64() / taken as f64 * steps.saturating_sub(taken) as f64;
            parameters.push(("eta_ms", integer((left * 1000.0) as usize)));
        }
        self.send(parameters, || {
            if self.shared.preview_bytes.load(Ordering::Relaxed) >= MAX_PREVIEW_BYTES {
                return None;
            }
            self.shared.succeeded(preview()).flatten()
        });
    }

    fn parameters(&self, taken: usize, steps: usize) -> Parameters {
        let mut parameters = vec![("step", integer(taken)), ("steps", integer(steps))];
        parameters.extend(self.settings.element.map(|element| ("batch_element", integer(element))));
        parameters
    }

    /// Sends a response on the encoder thread, which sends the final response later. The engine does not wait for it.
    fn send(&self, parameters: Parameters, preview: impl FnOnce() -> Option<PreviewImages>) {
        if self.shared.is_sending.swap(true, Ordering::AcqRel) {
            return;
        }
        let preview = preview();
        let (respond, shared) = (Arc::clone(&self.settings.respond), Arc::clone(&self.shared));
        let (format, provenance) = (self.settings.format, self.settings.provenance);
        self.settings.encoder.post(Box::new(move || {
            let files = preview.map(|preview| files(&preview, &format, provenance));
            let files = files.and_then(|files| shared.succeeded(files)).unwrap_or_default();
            let bytes = files.iter().map(String::len).sum();
            shared.preview_bytes.fetch_add(bytes, Ordering::Relaxed);
            shared.is_sending.store(false, Ordering::Release);
            respond(&parameters, &files);
        }));
    }
}

impl Shared {
    /// Returns the value. After an error there are no more previews, and the request goes on.
    fn succeeded<T>(&self, result: Result<T>) -> Option<T> {
        if let Err(error) = &result {
            log_verbose!("a request goes on without previews: {error}");
            self.preview_bytes.store(MAX_PREVIEW_BYTES, Ordering::Relaxed);
        }
        result.ok()
    }
}

/// Waits for a preview and encodes its images.
fn files(preview: &PreviewImages, format: &OutputFormat, provenance: bool) -> Result<Vec<String>> {
    let images = preview.wait()?;
    // The final images have the arguments.
    let metadata = json!({ "preview": true });
    let encoded = images.iter().map(|image| {
        let file = encode(image, format, &metadata, provenance)?;
        Ok(to_base64(&file))
    });
    encoded.collect()
}

fn integer(number: usize) -> Parameter {
    Parameter::Int(i64::try_from(number).unwrap_or(i64::MAX))
}
