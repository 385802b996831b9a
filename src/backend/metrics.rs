//! Metrics of the engines, for Triton's metrics endpoint.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use triton_api::metrics::{Counter, CounterFamily, Gauge, GaugeFamily};
use triton_api::{Health, log_error, log_warn};

use super::device_health::DeviceHealth;
use crate::pipelines::Device;
use crate::weights;
use diffusion_engine::Observer;

/// The metric families of the backend: counters with the labels `model` and `version`, and a gauge with the label
/// `device`.
pub struct MetricFamilies {
    /// The counters of all models and versions since the start. They stay after an unload, so a model that is loaded again
    /// goes on counting. Dropped before their families.
    counters: Mutex<HashMap<(String, u64), Arc<Counters>>>,
    unet_calls: Option<CounterFamily>,
    unet_batch_entries: Option<CounterFamily>,
    jobs_cancelled: Option<CounterFamily>,
    deadlines_passed: Option<CounterFamily>,
    restarts: Option<CounterFamily>,
    images: Option<CounterFamily>,
    weights_bytes: Option<GaugeFamily>,
    /// One gauge for each device that has held weights. A gauge stays, so a device without weights shows 0.
    weights: Mutex<HashMap<Device, Gauge>>,
}

impl MetricFamilies {
    /// Registers the families. If the server has metrics disabled, the backend works without them.
    pub fn register() -> Self {
        let family = |name: &str, description: &str| {
            CounterFamily::new(name, description)
                .map_err(|error| log_warn!("diffusion: cannot register the metric {name}: {error}"))
                .ok()
        };
        Self {
            counters: Mutex::default(),
            unet_calls: family("diffusion_unet_calls_total", "UNet calls"),
            unet_batch_entries: family("diffusion_unet_batch_entries_total", "Batch entries of all UNet calls"),
            jobs_cancelled: family(
                "diffusion_jobs_cancelled_total",
                "Batch elements dropped because their request was cancelled or failed in another batch element",
            ),
            deadlines_passed: family(
                "diffusion_deadlines_passed_total",
                "Batch elements ended because their time limit had passed",
            ),
            restarts: family("diffusion_restarts_total", "Instances that started anew after a panic"),
            images: family("diffusion_images_total", "Images generated"),
            weights_bytes: GaugeFamily::new(
                "diffusion_weights_bytes",
                "Bytes of the weights of all models on a device; equal tensors count once",
            )
            .map_err(|error| log_warn!("diffusion: cannot register the metric diffusion_weights_bytes: {error}"))
            .ok(),
            weights: Mutex::default(),
        }
    }

    /// Updates the gauge of a device after a load or an unload.
    pub fn weights_changed(&self, device: Device) {
        let Some(family) = &self.weights_bytes else {
            return;
        };
        let mut gauges = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = match gauges.entry(device) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match family.gauge(&[("device", &device.to_string())]) {
                Ok(gauge) => entry.insert(gauge),
                Err(error) => return log_warn!("diffusion: cannot register a metric of {device}: {error}"),
            },
        };
        // A gauge that cannot be set is no reason to fail a load.
        let _ = gauge.set(weights::resident_bytes(device) as f64);
    }

    /// Returns the counters of one model.
    pub fn counters(&self, model: &str, version: u64) -> Arc<Counters> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let of_model = counters.entry((model.to_owned(), version));
        Arc::clone(of_model.or_insert_with(|| Arc::new(self.create_counters(model, version))))
    }

    fn create_counters(&self, model: &str, version: u64) -> Counters {
        let version = version.to_string();
        let labels = [("model", model), ("version", version.as_str())];
        let counter = |family: &Option<CounterFamily>| {
            family.as_ref().and_then(|family| {
                family
                    .counter(&labels)
                    .map_err(|error| log_warn!("model '{model}': cannot register a metric: {error}"))
                    .ok()
            })
        };
        Counters {
            unet_calls: counter(&self.unet_calls),
            unet_batch_entries: counter(&self.unet_batch_entries),
            jobs_cancelled: counter(&self.jobs_cancelled),
            deadlines_passed: counter(&self.deadlines_passed),
            restarts: counter(&self.restarts),
            images: counter(&self.images),
        }
    }
}

/// The counters of one model; shared by its instances.
pub struct Counters {
    unet_calls: Option<Counter>,
    unet_batch_entries: Option<Counter>,
    jobs_cancelled: Option<Counter>,
    deadlines_passed: Option<Counter>,
    restarts: Option<Counter>,
    images: Option<Counter>,
}

impl Counters {
    /// Counts generated images.
    pub fn images_generated(&self, count: usize) {
        add(&self.images, count);
    }
}

fn add(counter: &Option<Counter>, amount: usize) {
    if let Some(counter) = counter {
        // A counter that cannot count is no reason to fail a request.
        let _ = counter.add(amount as f64);
    }
}

/// Reports to Triton what an engine does.
pub struct EngineObserver {
    /// The instance's name, for the log.
    pub instance: String,
    /// The model's counters.
    pub counters: Arc<Counters>,
    /// The instance's health.
    pub health: Arc<Health>,
    /// The instance's device.
    pub device: Device,
    /// The health of all instances on each device.
    pub devices: Arc<DeviceHealth>,
}

impl Observer for EngineObserver {
    fn batch_executed(&self, _jobs: usize, batch_size: usize) {
        add(&self.counters.unet_calls, 1);
        add(&self.counters.unet_batch_entries, batch_size);
    }

    fn job_cancelled(&self) {
        add(&self.counters.jobs_cancelled, 1);
    }

    fn deadline_passed(&self) {
        add(&self.counters.deadlines_passed, 1);
    }

    fn engine_restarts(&self) {
        log_error!(
            "instance '{}' starts anew after a panic; its running requests were ended",
            self.instance
        );
        add(&self.counters.restarts, 1);
    }

    fn engine_failed(&self, reason: &str) {
        log_error!("instance '{}' can no longer work: {reason}", self.instance);
        self.health.poison(reason);
        if self.device.is_lost() {
            self.devices.poison(self.device, reason);
        }
    }
}
