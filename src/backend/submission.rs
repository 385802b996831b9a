//! From a validated request to the engine's queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use triton_api::{Slot, log_warn};

use super::ModelState;
use super::encoder_thread::EncoderHandle;
use super::error::to_triton;
use super::instance::InstanceEngine;
use super::response::{ElementResponder, PendingResponse};
use crate::pipelines::{Components, EmbeddingPool, PipelineRequest};
use diffusion_core::{Context, Error, Result};
use diffusion_engine::{Deadline, MemoryNeed, QueuedRequest, Work};
use diffusion_request::Metadata;

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

/// Submits the requests of an instance.
pub struct Submitter {
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
    /// Loads the adapters of a request and submits it, or answers it with the error.
    pub fn load_and_submit(&self, engine: &InstanceEngine, mut request: PlannedRequest) {
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
            Ok(()) => self.submit(engine, request),
            Err(error) => self.fail_with(request.slot, &error),
        }
    }

    /// Submits the batch elements of a request, which have their LoRAs, to an engine.
    pub fn submit(&self, engine: &InstanceEngine, request: PlannedRequest) {
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
        let requests = elements.into_iter().enumerate().map(|(index, (planned, memory))| {
            let request = &planned.request;
            QueuedRequest {
                memory,
                work: Work {
                    batch_size: request.unet_batch_size(),
                    steps: request.denoising_steps(),
                    entry_cost: request.pixels(),
                },
                bytes: request.input_bytes(),
                deadline: self.deadline(received, timeout, request.timeout),
                handler: Box::new(ElementResponder {
                    response: Arc::clone(&response),
                    index,
                    metadata: Metadata::new(request, self.model.name()),
                    seed: request.seed,
                    output_format: request.output,
                    encoder: self.encoder.clone(),
                }),
                request: planned,
            }
        });
        engine.engine.submit(requests);
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
