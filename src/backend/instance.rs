//! An instance: one engine thread and one encoder thread.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use triton_api::{Health, InstanceContext, InstanceKind, MemoryType, MemoryUsage, RequestBatch, Slot, log_warn};

use super::ModelState;
use super::encoder_thread::EncoderThread;
use super::error::to_triton;
use super::lora_loads::LoraLoads;
use super::model::DeviceUse;
use super::submission::{PlannedRequest, Submitter};
use crate::backend::metrics::EngineObserver;
use crate::pipelines::{Device, DiffusionPipeline, PipelineRequest};
use crate::request::tensors::decode;
use diffusion_core::config::OUTPUT_NAME;
use diffusion_core::{Error, Result};
use diffusion_engine::{Engine, MemoryBudget, MemoryNeed, QueueLimits};
use diffusion_request::{GenerateRequest, RequestValidator};

/// Requests that wait inside an instance, unless the model says otherwise. Further requests wait in Triton's queue.
const MAX_WAITING_REQUESTS: usize = 32;

/// Memory of the inputs of all requests that wait inside an instance.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// The engine of an instance, which other instances of the model use if theirs no longer works.
pub struct InstanceEngine {
    /// Computes the requests.
    pub engine: Engine<DiffusionPipeline>,
    /// Whether the engine works.
    pub health: Arc<Health>,
}

/// An instance of a model (`TRITONBACKEND_ModelInstance`).
pub struct ModelInstanceState {
    // Dropped in this order: requests get their LoRAs, the engine computes them, and the encoder thread sends these responses
    // before it ends. It ends when nobody can send it work, so the submitter is dropped before.
    lora_loads: LoraLoads,
    engine: Arc<InstanceEngine>,
    submitter: Arc<Submitter>,
    _encoder: EncoderThread,
    validator: RequestValidator,
    /// The memory of the device.
    budget: Arc<MemoryBudget>,
    model: Arc<ModelState>,
    // Frees the weights, which the engine uses.
    _device: DeviceUse,
}

impl ModelInstanceState {
    fn start(model: &Arc<ModelState>, context: &InstanceContext<'_>) -> Result<Self> {
        let device = match context.kind() {
            InstanceKind::Gpu => {
                Device::Cuda(u32::try_from(context.device_id()).map_err(|_| Error::internal("negative GPU index"))?)
            }
            InstanceKind::Cpu | InstanceKind::Auto => Device::Cpu,
            InstanceKind::Model => {
                return Err(Error::unsupported(
                    "instance_group: KIND_MODEL is not supported; KIND_GPU and KIND_CPU are",
                ));
            }
        };
        let device_use = model.use_device(device);
        let (components, bytes) = model.components(device)?;
        let usage = MemoryUsage {
            memory_type: match device {
                Device::Cpu => MemoryType::Cpu,
                Device::Cuda(_) => MemoryType::Gpu,
            },
            memory_type_id: match device {
                Device::Cpu => 0,
                Device::Cuda(index) => i64::from(index),
            },
            byte_size: usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        if let Err(error) = context.report_memory_usage(&[usage]) {
            log_warn!("instance '{}': cannot report its memory: {error}", context.name());
        }
        let validator = RequestValidator::new(components.model_info(), model.parameters())?;
        let observer = EngineObserver {
            instance: context.name().to_owned(),
            counters: model.counters(),
            health: context.health(),
            device,
            devices: model.devices(),
            load: Mutex::default(),
        };
        model.devices().add(device, &context.health());
        let max_pixels = validator.limits().max_pixels;
        let budget = model.budget(device);
        let own_components = components.clone();
        let waiting = model.parameters().max_waiting_requests;
        let engine = Arc::new(InstanceEngine {
            engine: Engine::start(
                "diffusion-engine",
                move || DiffusionPipeline::new(components.clone(), max_pixels),
                validator.limits().max_unet_batch_size as usize,
                QueueLimits {
                    max_requests: waiting.map_or(MAX_WAITING_REQUESTS, |requests| requests as usize),
                    max_bytes: MAX_WAITING_BYTES,
                },
                &budget,
                Box::new(observer),
            )?,
            health: context.health(),
        });
        model.add_engine(&engine);
        let encoder = EncoderThread::start()?;
        Ok(Self {
            lora_loads: LoraLoads::default(),
            engine,
            submitter: Arc::new(Submitter {
                components: own_components,
                encoder: encoder.handle(),
                model: Arc::clone(model),
            }),
            _encoder: encoder,
            validator,
            budget,
            model: Arc::clone(model),
            _device: device_use,
        })
    }

    /// Submits the batch elements of a request to an engine, or answers an invalid request.
    fn enqueue(&self, engine: &Arc<InstanceEngine>, slot: Slot) {
        let received = Instant::now();
        let fail = |slot: Slot, error: triton_api::Error| self.submitter.fail(slot, &error);
        if !slot.request().output_is_on_host(OUTPUT_NAME) {
            let error = Error::unsupported(format!("output `{OUTPUT_NAME}`: GPU memory is not supported"));
            return fail(slot, to_triton(self.model.name(), &error));
        }
        let elements = decode(
            &slot.request(),
            self.model.inputs(),
            self.model.max_batch_size(),
            &self.validator,
        );
        let elements = elements.and_then(|elements| self.plan(elements));
        let elements = match elements {
            Ok(elements) => elements,
            Err(error) => return fail(slot, to_triton(self.model.name(), &error)),
        };
        let timeout = match slot.request().timeout() {
            Ok(timeout) => timeout,
            Err(error) => return fail(slot, error),
        };
        let planned = PlannedRequest {
            slot,
            elements,
            received,
            timeout,
        };
        match planned.with_loaded_adapters(&self.submitter.components) {
            Ok(planned) => self.submitter.submit(engine, planned),
            Err(planned) => {
                let (submitter, engine) = (Arc::clone(&self.submitter), Arc::clone(engine));
                self.lora_loads.run(move || submitter.load_and_submit(&engine, planned));
            }
        }
    }

    /// Plans the batch elements, with the memory that each needs.
    ///
    /// # Errors
    /// `OutOfMemory` for a batch element that needs more memory than the device has, whatever else runs.
    fn plan(&self, elements: Vec<GenerateRequest>) -> Result<Vec<(PipelineRequest, MemoryNeed)>> {
        let count = elements.len();
        let max_pixels = self.validator.limits().max_pixels;
        let plan = |(index, request)| {
            let planned = self
                .submitter
                .components
                .plan(request, max_pixels, |need| self.budget.check(need));
            planned.map_err(|error| match count {
                1 => error,
                _ => error.context(format_args!("batch element {index}")),
            })
        };
        elements.into_iter().enumerate().map(plan).collect()
    }

    /// Returns the engine of the instance, or that of another instance if the former no longer works: Triton gives an
    /// instance that fails at once more requests than those that work.
    fn working_engine(&self) -> Result<Arc<InstanceEngine>, triton_api::Error> {
        match self.engine.health.check() {
            Ok(()) => Ok(Arc::clone(&self.engine)),
            Err(error) => self.model.working_engine().ok_or_else(|| {
                let model = self.model.name();
                error.context(format_args!("model '{model}'"))
            }),
        }
    }
}

impl triton_api::Instance for ModelInstanceState {
    type Model = ModelState;

    const EXECUTES_WHEN_POISONED: bool = true;

    fn initialize(model: &Arc<ModelState>, context: &InstanceContext<'_>) -> Result<Self, triton_api::Error> {
        Self::start(model, context).map_err(|error| to_triton(model.name(), &error))
    }

    fn execute(&mut self, batch: RequestBatch<'_>) -> Result<(), triton_api::Error> {
        let engine = self.working_engine()?;
        for slot in batch.accept()? {
            self.enqueue(&engine, slot);
        }
        Ok(())
    }
}
