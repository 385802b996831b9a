//! A model: its configuration, and its components on each device.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use serde_json::Value;
use triton_api::{ModelContext, log_info, log_warn};

use super::bases::{BaseKey, Bases, LoadedBase};
use super::checkpoint::Checkpoint;
use super::device_health::DeviceHealth;
use super::error::to_triton;
use super::memory_budgets::MemoryBudgets;
use super::metrics::{Counters, MetricFamilies};
use super::submission::Submitter;
use super::{BackendState, ModelInstanceState};
use crate::pipelines::{Components, Device, LoraPool};
use crate::weights::{Progress, WeightMemory};
use diffusion_core::config::{ModelParameters, TensorSpec, complete_model_config, inputs_of, validate_model_config};
use diffusion_core::failpoint::{self, FailPoint};
use diffusion_core::{Error, Result};
use diffusion_engine::MemoryBudget;

/// LoRAs, and embeddings, whose names the log has when a model loads.
const MAX_LOGGED_NAMES: usize = 20;

/// A loaded model (`TRITONBACKEND_Model`).
pub struct ModelState {
    name: Arc<str>,
    version_path: PathBuf,
    checkpoint: Checkpoint,
    parameters: ModelParameters,
    max_batch_size: u32,
    inputs: &'static [TensorSpec],
    is_decoupled: bool,
    counters: Arc<Counters>,
    families: Arc<MetricFamilies>,
    devices: Arc<DeviceHealth>,
    budgets: Arc<MemoryBudgets>,
    bases: Arc<Bases>,
    /// One copy of the weights for each device, however many instances are on it.
    loaded: Mutex<HashMap<Device, LoadCell>>,
    /// The numbers of the instances on each device.
    instances: Mutex<HashMap<Device, BTreeSet<usize>>>,
    /// Those of the instances.
    submitters: Mutex<Vec<Weak<Submitter>>>,
}

/// The model on one device. Locked while the first instance loads it: other instances on the device wait, and instances on
/// other devices do not.
type LoadCell = Arc<Mutex<Option<LoadedModel>>>;

/// A model on a device.
#[derive(Clone)]
pub struct LoadedModel {
    // Dropped first: the memory of the weights is free when the base frees the caches.
    /// The components with the model's LoRAs.
    pub components: Components,
    /// The checkpoint and its engines, which other models may share.
    pub base: Arc<LoadedBase>,
}

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

    /// Whether a request may have several responses.
    pub fn is_decoupled(&self) -> bool {
        self.is_decoupled
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

    /// Gives an instance on `device` a number until the result is dropped. The weights on the device go with the last
    /// instance.
    pub fn use_device(self: &Arc<Self>, device: Device) -> DeviceUse {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = instances.entry(device).or_default();
        let number = (0..).find(|number| !numbers.contains(number)).unwrap_or_default();
        numbers.insert(number);
        DeviceUse {
            model: Arc::clone(self),
            device,
            number,
        }
    }

    /// Adds the submitter of an instance.
    pub fn add_submitter(&self, submitter: &Arc<Submitter>) {
        let mut submitters = self.submitters.lock().unwrap_or_else(PoisonError::into_inner);
        submitters.retain(|submitter| submitter.strong_count() > 0);
        submitters.push(Arc::downgrade(submitter));
    }

    /// Returns the submitter of an instance whose engine works.
    pub fn working_submitter(&self) -> Option<Arc<Submitter>> {
        let submitters = self.submitters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut submitters = submitters.iter().filter_map(Weak::upgrade);
        submitters.find(|submitter| submitter.engine.is_ready())
    }

    /// Returns the model on `device`, and the bytes that loading it added to the device. The first instance loads it. The
    /// bytes are 0 for later instances, and do not count tensors that other models have on the device already.
    ///
    /// # Errors
    /// The folder is not a valid checkpoint, the LoRA does not fit it, or the device cannot be used.
    pub fn load(&self, device: Device) -> Result<(LoadedModel, u64)> {
        if device.is_lost() {
            return Err(Error::device_lost(format!(
                "{device} failed before; the server must be restarted"
            )));
        }
        let cell = {
            let mut devices = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(devices.entry(device).or_default())
        };
        let mut loaded = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*loaded {
            return Ok((model.clone(), 0));
        }
        let (base, bytes) = self.load_base(device)?;
        let components = self.with_adapters(base.components().get()?)?;
        let bytes = bytes + components.own_lora_bytes();
        let model = LoadedModel { components, base };
        *loaded = Some(model.clone());
        Ok((model, bytes))
    }

    /// Loads the checkpoint, unless it is in memory for a model that shares it. Returns the bytes that this added.
    fn load_base(&self, device: Device) -> Result<(Arc<LoadedBase>, u64)> {
        failpoint::maybe_fail(FailPoint::Load)?;
        let folder = &self.checkpoint.folder;
        let key = BaseKey {
            device,
            folder: folder.canonicalize().unwrap_or_else(|_| folder.clone()),
            files: self.checkpoint.identities(),
            parameters: self.parameters.of_engine(),
        };
        if self.parameters.base.is_some() && self.bases.has_other_parameters(&key) {
            log_info!(
                "model '{}': shares no engine with models of its base whose parameters differ",
                self.name
            );
        }
        let own = self.parameters.base.is_none().then_some(&self.name);
        let start = Instant::now();
        let mut memory = WeightMemory::default();
        let (base, loads) = self.bases.load(key, own, &self.families, || {
            let (components, warnings) = self.load_components(device)?;
            for warning in warnings {
                log_warn!("model '{}': {warning}", self.name);
            }
            memory = components.memory;
            Ok(components)
        })?;
        let WeightMemory { total, shared } = memory;
        let components = base.components().get()?;
        let seconds = start.elapsed().as_secs_f64();
        if loads {
            log_info!(
                "model '{}': {} on {device} loaded in {seconds:.2} s, {}; weights of {} MiB, {} of them shared with other \
                 models",
                self.name,
                components.class,
                components.scheduler_name(),
                total >> 20,
                shared >> 20
            );
        } else {
            log_info!(
                "model '{}': {} on {device} loaded in {seconds:.2} s, with the weights of another model",
                self.name,
                components.class
            );
        }
        Ok((base, total - shared))
    }

    fn load_components(&self, device: Device) -> Result<(Components, Vec<String>)> {
        let report = |progress: Progress| {
            log_info!(
                "model '{}': loading, {} of {} MiB",
                self.name,
                progress.done >> 20,
                progress.total >> 20
            );
        };
        Components::load_with_progress(&self.checkpoint.folder, &self.parameters, device, &report)
    }

    /// Adds the model's LoRA, and the LoRAs and the words that requests may ask for.
    fn with_adapters(&self, components: Components) -> Result<Components> {
        let root = (!self.parameters.outside_links).then(|| self.version_path.clone());
        let folder = self.version_path.join(&self.parameters.loras);
        let mut components = components.with_loras(folder, self.parameters.lora_cache_bytes, root.clone());
        if let Some(lora) = &self.parameters.lora {
            let path = self.version_path.join(lora);
            components = components.with_lora(&path, self.parameters.lora_scale, root.as_deref())?;
        }
        components = components.with_embeddings(self.version_path.join(&self.parameters.embeddings), root);
        let names = components.loras().map(LoraPool::names).unwrap_or_default();
        if !names.is_empty() {
            log_info!("model '{}': {} LoRAs: {}", self.name, names.len(), shortened(&names));
        }
        if let Some(pool) = components.embeddings() {
            let words = pool.words();
            if !words.is_empty() {
                let shown = shortened(&words);
                log_info!("model '{}': {} embeddings: {shown}", self.name, words.len());
            }
            for warning in pool.new_warnings() {
                log_warn!("model '{}': {warning}", self.name);
            }
        }
        Ok(components)
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
        // An invalid folder fails here, before instances are created.
        let checkpoint = Checkpoint::find(&context.version_path(), &parameters, &backend.bases);
        let checkpoint = checkpoint.map_err(|error| fail(&error))?;
        let inputs = inputs_of(checkpoint.class);

        if context.should_auto_complete()?
            && let Some(completed) = complete_model_config(&config, inputs)
        {
            context.set_config(&completed)?;
            config = completed;
        }
        validate_model_config(&config, inputs).map_err(|error| fail(&error))?;
        let max_batch_size = config.get("max_batch_size").and_then(Value::as_u64).unwrap_or(0);
        let decoupled = config.pointer("/model_transaction_policy/decoupled");
        Ok(Self {
            counters: backend.families.counters(&name, context.version()),
            version_path: context.version_path(),
            checkpoint,
            parameters,
            max_batch_size: u32::try_from(max_batch_size).unwrap_or(u32::MAX),
            inputs,
            is_decoupled: decoupled.and_then(Value::as_bool).unwrap_or(false),
            loaded: Mutex::default(),
            instances: Mutex::default(),
            submitters: Mutex::default(),
            families: Arc::clone(&backend.families),
            devices: Arc::clone(&backend.devices),
            budgets: Arc::clone(&backend.budgets),
            bases: Arc::clone(&backend.bases),
            name: name.into(),
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
    /// Which of the model's instances on the device it is.
    pub number: usize,
}

impl Drop for DeviceUse {
    fn drop(&mut self) {
        let Self { model, device, number } = self;
        let mut instances = model.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = instances.entry(*device).or_default();
        numbers.remove(number);
        if !numbers.is_empty() {
            return;
        }
        instances.remove(device);
        drop(instances);
        let cell = model
            .loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(device);
        let loaded = cell.and_then(|cell| cell.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(pool) = loaded.as_ref().and_then(|model| model.components.loras()) {
            pool.clear(|before, now| model.counters.adapters_changed(before, now));
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
