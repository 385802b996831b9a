//! From a validated request to the engine's queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use triton_api::{Parameter, Slot, log_warn};

use super::ModelState;
use super::encoder_thread::EncoderHandle;
use super::error::to_triton;
use super::job_gauge::JobGauge;
use super::progress::{Progress, ProgressSettings};
use super::response::{ElementResponder, PendingResponse};
use super::shared_engine::SharedEngine;
use crate::pipelines::{Components, EmbeddingPool, PipelineRequest};
use diffusion_core::{Context, Error, Result};
use diffusion_engine::{Deadline, MemoryBudget, MemoryNeed, Owner, QueuedRequest, Work};
use diffusion_request::{GenerateRequest, Metadata};

/// A request of Triton whose batch elements are valid.
pub struct PlannedRequest {
    /// The request.
    pub slot: Slot,
    /// The batch elements, with the memory that each needs.
    pub elements: Vec<(PipelineRequest, MemoryNeed)>,
    /// When the request came.
    pub received: Instant,
    /// The timeout of Triton's request.
    pub timeout: Option<Duration>,
}

/// Submits the requests of an instance to its engine.
pub struct Submitter {
    /// The engine, which other models may share.
    pub engine: Arc<SharedEngine>,
    /// Whose requests the engine gets.
    pub owner: Arc<Owner>,
    /// The memory of the device.
    pub budget: Arc<MemoryBudget>,
    /// The limit of the model, height times width.
    pub max_pixels: u64,
    /// The model on the instance's device.
    pub components: Components,
    /// The instance's encoder thread.
    pub encoder: EncoderHandle,
    /// The model.
    pub model: Arc<ModelState>,
}

impl PlannedRequest {
    /// Gives all batch elements their adapters if these are in memory.
    ///
    /// # Errors
    /// The request itself if an adapter is not in memory.
    // The request is handed over, not a failure.
    #[expect(clippy::result_large_err, reason = "the request goes on in either case")]
    pub fn with_loaded_adapters(mut self, components: &Components) -> Result<Self, Self> {
        for (planned, _) in &mut self.elements {
            match components.loaded_adapters(&planned.request) {
                Some(adapters) => planned.adapters = adapters,
                None => return Err(self),
            }
        }
        Ok(self)
    }

    /// Gives all batch elements their adapters, and loads those that are not in memory.
    fn load_adapters(&mut self, components: &Components) -> Result<()> {
        let count = self.elements.len();
        for (index, (planned, _)) in self.elements.iter_mut().enumerate() {
            let adapters = components.load_adapters(&planned.request);
            planned.adapters = match count {
                1 => adapters?,
                _ => adapters.context(|| format!("batch element {index}"))?,
            };
        }
        Ok(())
    }
}

impl Submitter {
    /// Plans the batch elements of a request, with the memory that each needs.
    ///
    /// # Errors
    /// `OutOfMemory` for a batch element that needs more memory than the device has, whatever else runs.
    pub fn plan(&self, elements: Vec<GenerateRequest>) -> Result<Vec<(PipelineRequest, MemoryNeed)>> {
        let count = elements.len();
        let plan = |(index, request)| {
            let check = |need| self.budget.check(need);
            let planned = self.components.plan(request, self.max_pixels, check);
            planned.map_err(|error| match count {
                1 => error,
                _ => error.context(format_args!("batch element {index}")),
            })
        };
        elements.into_iter().enumerate().map(plan).collect()
    }

    /// Loads the adapters of a request and submits it, or answers it with the error.
    pub fn load_and_submit(&self, mut request: PlannedRequest) {
        let loaded = request.load_adapters(&self.components);
        for warning in self
            .components
            .embeddings()
            .map(EmbeddingPool::new_warnings)
            .unwrap_or_default()
        {
            log_warn!("model '{}': {warning}", self.model.name());
        }
        match loaded {
            Ok(()) => self.submit(request),
            Err(error) => self.fail_with(request.slot, &error),
        }
    }

    /// Submits the batch elements of a request, which have their LoRAs.
    pub fn submit(&self, request: PlannedRequest) {
        let has_loras = |(planned, _): &(PipelineRequest, MemoryNeed)| !planned.request.loras.is_empty();
        if request.elements.iter().any(has_loras)
            && let Some(pool) = self.components.loras()
        {
            let counters = self.model.counters();
            pool.report_usage(|before, now| counters.adapters_changed(before, now));
        }
        let PlannedRequest {
            mut slot,
            elements,
            received,
            timeout,
        } = request;
        slot.set_batch_size(elements.len() as u64);
        let response = PendingResponse::new(
            slot,
            elements.len(),
            self.model.max_batch_size() > 0,
            received,
            self.model.counters(),
        );
        let has_several = elements.len() > 1;
        let requests = elements.into_iter().enumerate().map(|(index, (planned, memory))| {
            let request = &planned.request;
            let progress = request.progress_every.map(|every| {
                let element = has_several.then_some(index);
                let response = Arc::clone(&response);
                let respond = move |parameters: &[(&str, Parameter)], images: &[String]| {
                    response.send_progress(parameters, images);
                };
                Progress::new(ProgressSettings {
                    every,
                    steps: request.denoising_steps(),
                    element,
                    format: request.output,
                    provenance: self.model.parameters().provenance,
                    respond: Arc::new(respond),
                    encoder: self.encoder.clone(),
                })
            });
            QueuedRequest {
                memory,
                work: Work {
                    batch_size: request.unet_batch_size(),
                    steps: request.denoising_steps(),
                    entry_cost: request.pixels(),
                },
                bytes: request.input_bytes(),
                owner: Arc::clone(&self.owner),
                deadline: self.deadline(received, timeout, request.timeout),
                handler: Box::new(ElementResponder {
                    response: Arc::clone(&response),
                    index,
                    metadata: Metadata::new(request, self.model.name()),
                    provenance: self.model.parameters().provenance,
                    seed: request.seed,
                    output_format: request.output,
                    encoder: self.encoder.clone(),
                    gauge: JobGauge::new(self.model.counters()),
                    progress,
                }),
                request: planned,
            }
        });
        self.engine.engine.submit(requests);
    }

    fn fail_with(&self, slot: Slot, error: &Error) {
        self.fail(slot, &to_triton(self.model.name(), error));
    }

    /// Answers a request with an error.
    pub fn fail(&self, slot: Slot, error: &triton_api::Error) {
        self.model.counters().request_failed(error.code());
        slot.fail(error);
    }

    /// Returns when a request must be answered: the first of the limits of Triton's request, of `gen_args` and of the
    /// model.
    fn deadline(&self, received: Instant, triton: Option<Duration>, client: Option<Duration>) -> Option<Deadline> {
        let model = self.model.parameters().max_seconds;
        let model = model.map(|seconds| Duration::from_secs(seconds.into()));
        let limit = [triton, client, model].into_iter().flatten().min()?;
        let at = received.checked_add(limit)?;
        Some(Deadline { at, limit })
    }
}
