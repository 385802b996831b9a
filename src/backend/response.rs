//! The response to a Triton request, put together from its batch elements.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use diffusion_core::config::OUTPUT_NAME;
use diffusion_core::{Error, Result};
use diffusion_engine::ResponseHandler;
use diffusion_image::{OutputFormat, encode, to_base64};
use diffusion_request::Metadata;
use triton_api::{OutputTensor, Parameter, Slot, log_verbose, steady_clock_ns};

use super::encoder_thread::EncoderHandle;
use super::error::to_triton;
use super::job_gauge::JobGauge;
use super::metrics::Counters;
use super::phases::Phases;
use super::progress::Progress;
use crate::pipelines::{PipelineOutput, PreviewImages, TileCounts};

/// The result of one batch element.
struct ElementResult {
    /// Encoded images in base64.
    images: Vec<String>,
    /// The seed that was used.
    seed: u64,
    /// UNet calls that the batch element took part in.
    steps_run: usize,
    /// Whether a prompt had more tokens than the text encoder takes.
    prompt_truncated: bool,
    /// For each image whether the safety checker made it black.
    nsfw_content_detected: Option<Vec<bool>>,
    /// The number of tiles and chunks of each image.
    tiles: Option<TileCounts>,
    /// When its phases ended.
    phases: Phases,
}

struct State {
    /// `None` once the request has been answered.
    slot: Option<Slot>,
    elements: Vec<Option<ElementResult>>,
    started: bool,
}

/// The response to a Triton request whose batch elements are being computed.
///
/// The first batch element that fails answers the request. The others are then dropped.
pub struct PendingResponse {
    state: Mutex<State>,
    /// Whether the output has a batch dimension.
    batched: bool,
    element_count: usize,
    /// When the request was received.
    received: Instant,
    /// The model's metrics.
    counters: Arc<Counters>,
}

impl PendingResponse {
    /// Creates the response to a request with `element_count` batch elements.
    pub fn new(
        slot: Slot,
        element_count: usize,
        batched: bool,
        received: Instant,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let state = State {
            slot: Some(slot),
            elements: std::iter::repeat_with(|| None).take(element_count).collect(),
            started: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            batched,
            element_count,
            received,
            counters,
        })
    }

    /// Sends the progress of a batch element, with images in base64 if there are any, unless the request has been answered.
    pub fn send_progress(&self, parameters: &[(&str, Parameter)], images: &[String]) {
        let elements: Vec<&[u8]> = images.iter().map(String::as_bytes).collect();
        let shape = self.output_shape(1, elements.len());
        let output = OutputTensor::bytes(OUTPUT_NAME, &shape, &elements);
        let outputs = if images.is_empty() { &[][..] } else { &[output][..] };
        if let Some(slot) = &mut self.lock().slot
            && let Err(error) = slot.send_partial(outputs, parameters)
        {
            // No reason to fail the request.
            log_verbose!("model '{}': cannot send progress: {error}", slot.model_name());
        }
    }

    /// Returns the shape of the output for so many batch elements and images.
    fn output_shape(&self, elements: usize, images_per_element: usize) -> Vec<i64> {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if self.batched {
            vec![count(elements), count(images_per_element)]
        } else {
            vec![count(images_per_element)]
        }
    }

    /// Takes the result of a batch element. The last result, or the first error, answers the request.
    fn complete_element(&self, index: usize, result: Result<ElementResult>) {
        let mut state = self.lock();
        match result {
            Ok(result) => {
                if let Some(element) = state.elements.get_mut(index) {
                    *element = Some(result);
                }
                if state.elements.iter().any(Option::is_none) {
                    return;
                }
                let elements: Vec<ElementResult> = state.elements.drain(..).flatten().collect();
                let slot = state.slot.take();
                drop(state);
                if let Some(slot) = slot {
                    self.respond(slot, &elements);
                }
            }
            Err(error) => {
                let slot = state.slot.take();
                drop(state);
                if let Some(mut slot) = slot {
                    // Newer servers send the parameters of an error response too.
                    let _ = slot.set_parameter("cancelled", matches!(error, Error::Cancelled(_)));
                    let error = to_triton(slot.model_name(), &error);
                    self.fail(slot, &error);
                }
            }
        }
    }

    fn mark_compute_end(&self) {
        if let Some(slot) = &mut self.lock().slot {
            slot.mark_compute_end();
        }
    }

    fn respond(&self, mut slot: Slot, elements: &[ElementResult]) {
        let images: Vec<&[u8]> = elements
            .iter()
            .flat_map(|element| &element.images)
            .map(String::as_bytes)
            .collect();
        let shape = self.output_shape(elements.len(), images.len() / elements.len().max(1));
        if let Err(error) = set_parameters(&mut slot, elements) {
            return self.fail(slot, &error);
        }
        trace(&mut slot, elements);
        // `respond` has reported any error to the client or in the log.
        let responded = slot.respond(&[OutputTensor::bytes(OUTPUT_NAME, &shape, &images)]);
        if let Err(error) = responded {
            self.counters.request_failed(error.code());
        }
    }

    fn fail(&self, slot: Slot, error: &triton_api::Error) {
        self.counters.request_failed(error.code());
        slot.fail(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the response parameters. `seed`, `steps_run`, `unet_tiles` and `vae_chunks` are numbers for one batch element, and
/// texts of numbers with commas for several. `nsfw_content_detected` is a boolean for one image, and a text of booleans
/// with commas for several. `timings_ms` is the text of a JSON object, and of an array of objects for several batch elements.
fn set_parameters(slot: &mut Slot, elements: &[ElementResult]) -> Result<(), triton_api::Error> {
    let mut set_numbers = |name: &str, values: Vec<u64>| match values.as_slice() {
        [] => Ok(()),
        [one] => slot.set_parameter(name, i64::try_from(*one).unwrap_or(i64::MAX)),
        _ => slot.set_parameter(name, comma_separated(&values)),
    };
    let tiles = || elements.iter().filter_map(|element| element.tiles);
    set_numbers("seed", elements.iter().map(|element| element.seed).collect())?;
    set_numbers(
        "steps_run",
        elements.iter().map(|element| element.steps_run as u64).collect(),
    )?;
    set_numbers("unet_tiles", tiles().map(|tiles| tiles.unet as u64).collect())?;
    set_numbers("vae_chunks", tiles().map(|tiles| tiles.vae as u64).collect())?;
    let flags: Vec<bool> = elements
        .iter()
        .filter_map(|element| element.nsfw_content_detected.clone())
        .flatten()
        .collect();
    match flags.as_slice() {
        [] => {}
        [one] => slot.set_parameter("nsfw_content_detected", *one)?,
        _ => slot.set_parameter("nsfw_content_detected", comma_separated(&flags))?,
    }
    let timings: Vec<String> = elements.iter().map(|element| element.phases.milliseconds()).collect();
    let timings = timings.join(", ");
    slot.set_parameter(
        "timings_ms",
        if elements.len() > 1 {
            format!("[{timings}]")
        } else {
            timings
        },
    )?;
    slot.set_parameter("cancelled", false)?;
    slot.set_parameter(
        "prompt_truncated",
        elements.iter().any(|element| element.prompt_truncated),
    )
}

fn comma_separated<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// Reports the phases of the batch elements to the trace of the request, if it is traced.
fn trace(slot: &mut Slot, elements: &[ElementResult]) {
    let (now, now_ns) = (Instant::now(), steady_clock_ns());
    for element in elements {
        let activities = element.phases.activities(now, now_ns);
        // A server without traces is no reason to fail a request.
        let _ = slot.report_activities(activities.iter().map(|(name, time)| (name.as_str(), *time)));
    }
}

/// Passes the result of one batch element to the response of its request.
pub struct ElementResponder {
    /// The response to the whole request.
    pub response: Arc<PendingResponse>,
    /// The index of the batch element.
    pub index: usize,
    /// The parameters of the batch element, which its files record.
    pub metadata: Metadata,
    /// Whether its files say that a model generated them.
    pub provenance: bool,
    /// The seed of the batch element.
    pub seed: u64,
    /// The file format of its images.
    pub output_format: OutputFormat,
    /// The thread that encodes the images.
    pub encoder: EncoderHandle,
    /// The batch element in the metrics.
    pub gauge: JobGauge,
    /// Tells how far the batch element is, if the client asks for it.
    pub progress: Option<Progress>,
}

impl ElementResponder {
    /// Names the batch element in the error, if the request has several.
    fn with_index(&self, error: Error) -> Error {
        if self.response.element_count > 1 {
            error.context(format_args!("batch element {}", self.index))
        } else {
            error
        }
    }

    fn encode(&self, output: &PipelineOutput) -> Result<ElementResult> {
        if self.is_cancelled() {
            return Err(Error::cancelled("the request was cancelled"));
        }
        let images = output
            .images
            .iter()
            .enumerate()
            .map(|(index, image)| {
                let metadata = self.metadata.of_image(output.scheduler, index);
                let file = encode(image, &self.output_format, &metadata, self.provenance)?;
                Ok(to_base64(&file))
            })
            .collect::<Result<Vec<_>>>()?;
        let phases = Phases::new(self.response.received, &output.timings, Instant::now());
        self.response.counters.element_completed(images.len(), &phases);
        Ok(ElementResult {
            images,
            seed: self.seed,
            steps_run: output.steps_run,
            prompt_truncated: output.prompt_truncated,
            nsfw_content_detected: output.nsfw_content_detected.clone(),
            tiles: output.tiles,
            phases,
        })
    }
}

impl ResponseHandler<PipelineOutput, PreviewImages> for ElementResponder {
    fn is_cancelled(&self) -> bool {
        // A request without a slot was answered when one of its other batch elements failed.
        self.response.lock().slot.as_ref().is_none_or(Slot::is_cancelled)
    }

    fn on_wait(&self, position: usize) {
        if let Some(progress) = &self.progress {
            progress.waits(position);
        }
    }

    fn on_step(&self, taken: usize, steps: usize, preview: &mut dyn FnMut() -> Result<Option<PreviewImages>>) {
        if let Some(progress) = &self.progress {
            progress.step(taken, steps, preview);
        }
    }

    fn on_start(&self) {
        self.gauge.start();
        if let Some(progress) = &self.progress {
            progress.starts();
        }
        let mut state = self.response.lock();
        if !std::mem::replace(&mut state.started, true)
            && let Some(slot) = &mut state.slot
        {
            // The request waited until now.
            slot.mark_exec_start();
            slot.mark_compute_start();
        }
    }

    fn send(self: Box<Self>, result: Result<PipelineOutput>) {
        self.gauge.end();
        match result {
            Ok(output) => {
                let encoder = self.encoder.clone();
                let bytes = output.images.iter().map(|image| image.rgb().len()).sum();
                let task = move || {
                    self.response.mark_compute_end();
                    // The client hears of a panic now, not when the other batch elements have ended.
                    let result = catch_unwind(AssertUnwindSafe(|| self.encode(&output))).unwrap_or_else(|payload| {
                        // The destructor of a payload may panic.
                        std::mem::forget(payload);
                        Err(Error::internal("internal error; see the server log"))
                    });
                    self.response.complete_element(self.index, result);
                };
                encoder.run(Box::new(task), bytes);
            }
            Err(error) => {
                self.response.counters.element_failed(&error);
                self.response.complete_element(self.index, Err(self.with_index(error)));
            }
        }
    }
}
