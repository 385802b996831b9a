//! A model: its configuration, and its components on each device.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use serde_json::Value;
use triton_api::{ModelContext, log_info, log_warn};

use super::device_health::DeviceHealth;
use super::error::to_triton;
use super::instance::InstanceEngine;
use super::memory_budgets::MemoryBudgets;
use super::metrics::{Counters, MetricFamilies};
use super::{BackendState, ModelInstanceState};
use crate::pipelines::{Components, Device, LoraPool, ModelIndex, free_cached_memory};
use crate::weights::{Progress, WeightMemory, check_inside};
use diffusion_core::config::{ModelParameters, TensorSpec, complete_model_config, inputs_of, validate_model_config};
use diffusion_core::failpoint::{self, FailPoint};
use diffusion_core::{Error, Result};
use diffusion_engine::MemoryBudget;

/// LoRAs, and embeddings, whose names the log has when a model loads.
const MAX_LOGGED_NAMES: usize = 20;

/// A loaded model (`TRITONBACKEND_Model`).
pub struct ModelState {
    name: String,
    folder: PathBuf,
    /// The folder of the LoRAs.
    loras: PathBuf,
    /// The folder of the textual inversions.
    embeddings: PathBuf,
    /// The folder that no link of an adapter may lead out of.
    adapters_root: Option<PathBuf>,
    parameters: ModelParameters,
    max_batch_size: u32,
    inputs: &'static [TensorSpec],
    counters: Arc<Counters>,
    families: Arc<MetricFamilies>,
    devices: Arc<DeviceHealth>,
    budgets: Arc<MemoryBudgets>,
    /// One copy of the weights for each device, however many instances are on it.
    components: Mutex<HashMap<Device, LoadCell>>,
    /// The number of instances on each device.
    instances: Mutex<HashMap<Device, usize>>,
    /// The engines of the instances.
    engines: Mutex<Vec<Weak<InstanceEngine>>>,
}

/// The components on one device. Locked while the first instance loads them: other instances on the device wait, and
/// instances on other devices do not.
type LoadCell = Arc<Mutex<Option<Components>>>;

impl ModelState {
    /// The name under which Triton serves the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parameters of its `config.pbtxt`.
    pub fn parameters(&self) -> &ModelParameters {
        &self.parameters
    }

    /// Triton's `max_batch_size`; 0 without a batch dimension.
    pub fn max_batch_size(&self) -> u32 {
        self.max_batch_size
    }

    /// The input tensors of the model.
    pub fn inputs(&self) -> &'static [TensorSpec] {
        self.inputs
    }

    /// The model's metrics.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The health of all instances on each device.
    pub fn devices(&self) -> Arc<DeviceHealth> {
        Arc::clone(&self.devices)
    }

    /// The memory of a device, for the jobs of all models.
    pub fn budget(&self, device: Device) -> Arc<MemoryBudget> {
        self.budgets.of(device)
    }

    /// Counts an instance on `device` until the result is dropped. The weights on the device go with the last instance.
    pub fn use_device(self: &Arc<Self>, device: Device) -> DeviceUse {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        *instances.entry(device).or_default() += 1;
        DeviceUse {
            model: Arc::clone(self),
            device,
        }
    }

    /// Adds the engine of an instance.
    pub fn add_engine(&self, engine: &Arc<InstanceEngine>) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.retain(|engine| engine.strong_count() > 0);
        engines.push(Arc::downgrade(engine));
    }

    /// Returns an engine that works.
    pub fn working_engine(&self) -> Option<Arc<InstanceEngine>> {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut engines = engines.iter().filter_map(Weak::upgrade);
        engines.find(|engine| engine.health.is_ready())
    }

    /// Returns the components on `device` and the bytes that loading them added to the device. The first instance loads
    /// them. The bytes are 0 for later instances, and do not count tensors that other models have on the device already.
    ///
    /// # Errors
    /// The folder is not a valid checkpoint, or the device cannot be used.
    pub fn components(&self, device: Device) -> Result<(Components, u64)> {
        if device.is_lost() {
            return Err(Error::device_lost(format!(
                "{device} failed before; the server must be restarted"
            )));
        }
        let cell = {
            let mut devices = self.components.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(devices.entry(device).or_default())
        };
        let mut loaded = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(components) = &*loaded {
            return Ok((components.clone(), 0));
        }
        failpoint::maybe_fail(FailPoint::Load)?;
        let start = Instant::now();
        let report = |progress: Progress| {
            log_info!(
                "model '{}': loading, {} of {} MiB",
                self.name,
                progress.done >> 20,
                progress.total >> 20
            );
        };
        let (components, warnings) = Components::load_with_progress(&self.folder, &self.parameters, device, &report)
            .inspect_err(|_| self.free_memory(device))?;
        let components = components.with_loras(
            self.loras.clone(),
            self.parameters.lora_cache_bytes,
            self.adapters_root.clone(),
        );
        let components = components.with_embeddings(self.embeddings.clone(), self.adapters_root.clone());
        if let Some(names) = components
            .loras()
            .map(LoraPool::names)
            .filter(|names| !names.is_empty())
        {
            log_info!("model '{}': {} LoRAs: {}", self.name, names.len(), shortened(&names));
        }
        if let Some(pool) = components.embeddings() {
            let words: Vec<String> = pool.get().words().map(|(word, _)| word.to_owned()).collect();
            if !words.is_empty() {
                let words_shown = shortened(&words);
                log_info!("model '{}': {} embeddings: {words_shown}", self.name, words.len());
            }
            for warning in pool.new_warnings() {
                log_warn!("model '{}': {warning}", self.name);
            }
        }
        for warning in warnings {
            log_warn!("model '{}': {warning}", self.name);
        }
        log_info!(
            "model '{}': {} on {device} loaded in {:.2} s, {}; weights of {} MiB, {} of them shared with other models",
            self.name,
            components.class,
            start.elapsed().as_secs_f64(),
            components.scheduler_name(),
            components.memory.total >> 20,
            components.memory.shared >> 20
        );
        *loaded = Some(components.clone());
        self.families.weights_changed(device);
        let WeightMemory { total, shared } = components.memory;
        Ok((components, total - shared))
    }

    /// Frees the device's cached memory, after an unload or a failed load.
    fn free_memory(&self, device: Device) {
        if let Err(error) = free_cached_memory(device) {
            log_warn!("model '{}': {error}", self.name);
        }
        self.families.weights_changed(device);
    }

    fn read(backend: &BackendState, context: &mut ModelContext<'_>) -> Result<Self, triton_api::Error> {
        let name = context.name().to_owned();
        let fail = |error: &Error| to_triton(&name, error);
        let mut config = context.config()?;
        let parameters = config.get("parameters").unwrap_or(&Value::Null);
        let (parameters, warnings) = ModelParameters::parse(parameters).map_err(|error| fail(&error))?;
        for warning in warnings {
            log_warn!("model '{name}': {warning}");
        }
        let folder = context.version_path().join(&parameters.checkpoint);
        if !parameters.outside_links {
            check_inside(&folder, &context.version_path()).map_err(|error| fail(&error))?;
        }
        // An invalid folder fails here, before instances are created.
        let class = ModelIndex::read(&folder).and_then(|index| index.pipeline_class());
        let inputs = inputs_of(class.map_err(|error| fail(&error))?);

        if context.should_auto_complete()?
            && let Some(completed) = complete_model_config(&config, inputs)
        {
            context.set_config(&completed)?;
            config = completed;
        }
        validate_model_config(&config, inputs).map_err(|error| fail(&error))?;
        let max_batch_size = config.get("max_batch_size").and_then(Value::as_u64).unwrap_or(0);
        Ok(Self {
            counters: backend.families.counters(&name, context.version()),
            folder,
            loras: context.version_path().join(&parameters.loras),
            embeddings: context.version_path().join(&parameters.embeddings),
            adapters_root: (!parameters.outside_links).then(|| context.version_path()),
            parameters,
            max_batch_size: u32::try_from(max_batch_size).unwrap_or(u32::MAX),
            inputs,
            components: Mutex::default(),
            instances: Mutex::default(),
            engines: Mutex::default(),
            families: Arc::clone(&backend.families),
            devices: Arc::clone(&backend.devices),
            budgets: Arc::clone(&backend.budgets),
            name,
        })
    }
}

/// Joins the first names.
fn shortened(names: &[String]) -> String {
    let shown = names.get(..MAX_LOGGED_NAMES.min(names.len())).unwrap_or_default();
    let more = if shown.len() < names.len() { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// An instance on a device.
pub struct DeviceUse {
    model: Arc<ModelState>,
    device: Device,
}

impl Drop for DeviceUse {
    fn drop(&mut self) {
        let Self { model, device } = self;
        let mut instances = model.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let count = instances.entry(*device).or_default();
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        instances.remove(device);
        drop(instances);
        let components = model
            .components
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(device);
        if let Some(components) = components {
            let loaded = components.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(pool) = loaded.as_ref().and_then(Components::loras) {
                pool.clear(|before, now| model.counters.adapters_changed(before, now));
            }
            drop(loaded);
            drop(components);
            model.free_memory(*device);
        }
    }
}

/// Runs when the last instance is gone, and frees weights that no instance used.
impl Drop for ModelState {
    fn drop(&mut self) {
        let components = self.components.get_mut().unwrap_or_else(PoisonError::into_inner);
        let devices: Vec<Device> = components.drain().map(|(device, _)| device).collect();
        for device in devices {
            self.free_memory(device);
        }
    }
}

impl triton_api::Model for ModelState {
    type Backend = BackendState;
    type Instance = ModelInstanceState;

    fn initialize(backend: &Arc<BackendState>, context: &mut ModelContext<'_>) -> Result<Self, triton_api::Error> {
        Self::read(backend, context)
    }
}
