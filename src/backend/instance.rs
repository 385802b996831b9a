//! An instance: an engine, which other models may share, and one encoder thread.

use std::sync::Arc;
use std::time::Instant;

use triton_api::{InstanceContext, InstanceKind, MemoryType, MemoryUsage, RequestBatch, Slot, log_info, log_warn};

use super::ModelState;
use super::description::description;
use super::encoder_thread::EncoderThread;
use super::error::to_triton;
use super::lora_loads::LoraLoads;
use super::model::{DeviceUse, LoadedModel};
use super::shared_engine::{Member, SharedEngine};
use super::submission::{PlannedRequest, Submitter};
use crate::pipelines::Device;
use crate::request::tensors::{Asked, decode};
use diffusion_core::config::OUTPUT_NAME;
use diffusion_core::{Error, Result};
use diffusion_engine::{Owner, QueueLimits};
use diffusion_request::{GenerateRequest, RequestValidator};

/// Requests that wait inside an instance, unless the model says otherwise. Further requests wait in Triton's queue.
const MAX_WAITING_REQUESTS: usize = 32;

/// Memory of the inputs of all requests that wait inside an instance.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// An instance of a model (`TRITONBACKEND_ModelInstance`).
pub struct ModelInstanceState {
    // Dropped in this order: requests get their LoRAs, the engine computes them, and the encoder thread sends these responses
    // before it ends. It ends when nobody can send it work: neither the submitter nor a request in an engine.
    lora_loads: LoraLoads,
    submitter: Arc<Submitter>,
    _encoder: EncoderThread,
    validator: RequestValidator,
    model: Arc<ModelState>,
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
        let (LoadedModel { components, base }, bytes) = model.load(device)?;
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
        let limits = validator.limits();
        let (max_batch_size, max_pixels) = (limits.max_unet_batch_size as usize, limits.max_pixels);
        let (budget, devices) = (model.budget(device), model.devices());
        devices.add(device, &context.health());
        let (engine, starts) = base.engine(device_use.number, || {
            SharedEngine::start(base.components(), max_batch_size, max_pixels, &budget, &devices)
        })?;
        if !starts {
            log_info!("instance '{}': shares an engine with other instances", context.name());
        }
        engine.add(Member {
            instance: context.name().to_owned(),
            health: Arc::downgrade(&context.health()),
            counters: model.counters(),
        });
        let waiting = model.parameters().max_waiting_requests;
        let queue = QueueLimits {
            max_requests: waiting.map_or(MAX_WAITING_REQUESTS, |requests| requests as usize),
            max_bytes: MAX_WAITING_BYTES,
        };
        let encoder = EncoderThread::start()?;
        let submitter = Arc::new(Submitter {
            engine,
            owner: Arc::new(Owner::new(queue, model.counters())),
            budget,
            max_pixels,
            components,
            encoder: encoder.handle(),
            model: Arc::clone(model),
        });
        model.add_submitter(&submitter);
        Ok(Self {
            lora_loads: LoraLoads::default(),
            submitter,
            _encoder: encoder,
            validator,
            model: Arc::clone(model),
            _device: device_use,
        })
    }

    /// Submits the batch elements of a request, or answers an invalid request.
    fn enqueue(&self, submitter: &Arc<Submitter>, slot: Slot) {
        let received = Instant::now();
        let fail = |slot: Slot, error: triton_api::Error| submitter.fail(slot, &error);
        if !slot.request().output_is_on_host(OUTPUT_NAME) {
            let error = Error::unsupported(format!("output `{OUTPUT_NAME}`: GPU memory is not supported"));
            return fail(slot, to_triton(self.model.name(), &error));
        }
        let asked = decode(
            &slot.request(),
            self.model.inputs(),
            self.model.max_batch_size(),
            &self.validator,
        );
        let elements = match asked {
            Ok(Asked::Description) => return self.describe(submitter, slot),
            Ok(Asked::Images(elements)) => self.check_progress(elements),
            Err(error) => Err(error),
        };
        let elements = match elements.and_then(|elements| submitter.plan(elements)) {
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
        match planned.with_loaded_adapters(&submitter.components) {
            Ok(planned) => submitter.submit(planned),
            Err(planned) => {
                let submitter = Arc::clone(submitter);
                self.lora_loads.run(move || submitter.load_and_submit(planned));
            }
        }
    }

    /// Answers a request with the description of the model.
    fn describe(&self, submitter: &Submitter, mut slot: Slot) {
        let described = description(&self.validator, &submitter.components, self.model.is_decoupled());
        let described = described.map_err(|error| to_triton(self.model.name(), &error));
        let set = described.and_then(|description| slot.set_parameter("description", description.to_string()));
        match set {
            // `respond` has reported any error in the log.
            Ok(()) => drop(slot.respond(&[])),
            Err(error) => submitter.fail(slot, &error),
        }
    }

    /// Checks that the model may send several responses, if a batch element asks for its progress.
    ///
    /// # Errors
    /// `InvalidArgument` for a model that is not decoupled.
    fn check_progress(&self, elements: Vec<GenerateRequest>) -> Result<Vec<GenerateRequest>> {
        if !self.model.is_decoupled() && elements.iter().any(|element| element.progress_every.is_some()) {
            return Err(Error::invalid_argument(
                "gen_args: `progress_every` needs `model_transaction_policy { decoupled: true }` in the model's config.pbtxt",
            ));
        }
        Ok(elements)
    }

    /// Returns the submitter of the instance, or that of another instance if the engine no longer works: Triton gives an
    /// instance that fails at once more requests than those that work.
    fn working_submitter(&self) -> Result<Arc<Submitter>, triton_api::Error> {
        match self.submitter.engine.check() {
            Ok(()) => Ok(Arc::clone(&self.submitter)),
            Err(error) => self.model.working_submitter().ok_or_else(|| {
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
        let submitter = self.working_submitter()?;
        for slot in batch.accept()? {
            self.enqueue(&submitter, slot);
        }
        Ok(())
    }
}
