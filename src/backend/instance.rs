//! An instance: one engine, and one thread that encodes and answers.

use std::sync::Arc;

use triton_api::{InstanceContext, InstanceKind, MemoryType, MemoryUsage, RequestBatch, Slot, log_warn};

use super::ModelState;
use super::encoder_thread::Responder;
use super::error::to_triton;
use super::response::{Reply, RowClient};
use crate::backend::metrics::EngineObserver;
use crate::pipelines::{DiffusionPipeline, Place};
use crate::request::tensors::decode;
use diffusion_core::{Error, Result};
use diffusion_engine::{Engine, Task};
use diffusion_request::RequestValidator;

/// An instance of a model (`TRITONBACKEND_ModelInstance`).
pub struct ModelInstanceState {
    // In this order: the engine answers what is in flight when it is dropped, and the responder
    // sends those answers before its thread ends.
    engine: Engine<DiffusionPipeline>,
    responder: Responder,
    validator: RequestValidator,
    model: Arc<ModelState>,
}

impl ModelInstanceState {
    fn start(model: &Arc<ModelState>, context: &InstanceContext<'_>) -> Result<Self> {
        let place = match context.kind() {
            InstanceKind::Gpu => Place::Gpu(context.device_id()),
            InstanceKind::Cpu | InstanceKind::Auto => Place::Cpu,
            InstanceKind::Model => {
                return Err(Error::unsupported(
                    "instance_group: KIND_MODEL is not supported; KIND_GPU and KIND_CPU are",
                ));
            }
        };
        let (components, bytes) = model.components(place)?;
        let usage = MemoryUsage {
            memory_type: match place {
                Place::Cpu => MemoryType::Cpu,
                Place::Gpu(_) => MemoryType::Gpu,
            },
            memory_type_id: match place {
                Place::Cpu => 0,
                Place::Gpu(index) => i64::from(index),
            },
            byte_size: usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        if let Err(error) = context.report_memory_usage(&[usage]) {
            log_warn!("instance '{}': memory not reported: {error}", context.name());
        }
        let validator = RequestValidator::new(components.model_info(), model.parameters())?;
        let observer = EngineObserver {
            instance: context.name().to_owned(),
            counters: model.counters(),
            health: context.health(),
        };
        Ok(Self {
            engine: Engine::start(
                "diffusion-engine",
                DiffusionPipeline::new(components, validator.limits().max_pixels),
                validator.limits().max_unet_batch_size as usize,
                Box::new(observer),
            )?,
            responder: Responder::start()?,
            validator,
            model: Arc::clone(model),
        })
    }

    /// Hands the rows of a request to the engine, or answers at once what is wrong with it.
    fn submit(&self, mut slot: Slot) {
        let rows = decode(
            &slot.request(),
            self.model.inputs(),
            self.model.max_batch_size(),
            &self.validator,
        );
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => return slot.fail(&to_triton(self.model.name(), &error)),
        };
        slot.set_batch_size(rows.len() as u64);
        let model: Arc<str> = self.model.name().into();
        let reply = Reply::new(slot, rows.len(), self.model.max_batch_size() > 0);
        let tasks = rows.into_iter().enumerate().map(|(row, request)| Task {
            rows: request.unet_batch_size(),
            client: Box::new(RowClient {
                reply: Arc::clone(&reply),
                row,
                request: request.clone(),
                model: Arc::clone(&model),
                counters: self.model.counters(),
                responder: self.responder.sender(),
            }),
            request,
        });
        self.engine.submit(tasks);
    }
}

impl triton_api::Instance for ModelInstanceState {
    type Model = ModelState;

    fn initialize(model: &Arc<ModelState>, context: &InstanceContext<'_>) -> Result<Self, triton_api::Error> {
        Self::start(model, context).map_err(|error| to_triton(model.name(), &error))
    }

    fn execute(&mut self, batch: RequestBatch<'_>) -> Result<(), triton_api::Error> {
        for slot in batch.accept()? {
            self.submit(slot);
        }
        Ok(())
    }
}
