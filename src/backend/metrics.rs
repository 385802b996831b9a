//! Metrics of the engines, for Triton's metrics endpoint.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use triton_api::metrics::{Counter, CounterFamily, Gauge, GaugeFamily, Histogram, HistogramFamily};
use triton_api::{ErrorCode, log_info, log_warn};

use super::phases::{PHASES, Phases};
use crate::pipelines::{Device, PoolUsage};
use crate::weights;
use diffusion_core::Error;
use diffusion_engine::BatchObserver;

/// Upper ends of the buckets for durations, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];
/// Upper ends of the buckets for batch sizes.
const BATCH_SIZES: [f64; 10] = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0];

/// The metric families of the backend: metrics of models with the labels `model` and `version`, and a gauge with the label
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
    failures: Option<CounterFamily>,
    waiting: Option<GaugeFamily>,
    running: Option<GaugeFamily>,
    phase_seconds: Option<HistogramFamily>,
    unet_batch_size: Option<HistogramFamily>,
    adapters_loaded: Option<GaugeFamily>,
    adapters_bytes: Option<GaugeFamily>,
    adapter_hits: Option<CounterFamily>,
    adapter_loads: Option<CounterFamily>,
    weights_bytes: Option<GaugeFamily>,
    /// One gauge for each device that has held weights. A gauge stays, so a device without weights shows 0.
    weights: Mutex<HashMap<Device, Gauge>>,
}

impl MetricFamilies {
    /// Registers the families. If the server has metrics disabled, the backend works without them.
    pub fn register() -> Self {
        let registered = |name: &str, error: triton_api::Error| {
            log_warn!("diffusion: cannot register the metric {name}: {error}");
        };
        let family = |name: &str, description: &str| {
            let made = CounterFamily::new(name, description);
            made.map_err(|error| registered(name, error)).ok()
        };
        let gauges = |name: &str, description: &str| {
            let made = GaugeFamily::new(name, description);
            made.map_err(|error| registered(name, error)).ok()
        };
        let histograms = |name: &str, description: &str, buckets: &[f64]| {
            let made = HistogramFamily::new(name, description, buckets);
            // An older server has none.
            made.map_err(|error| log_info!("diffusion: no metric {name}: {error}"))
                .ok()
        };
        Self {
            counters: Mutex::default(),
            unet_calls: family(
                "diffusion_unet_calls_total",
                "UNet calls with batch entries of the model",
            ),
            unet_batch_entries: family(
                "diffusion_unet_batch_entries_total",
                "Batch entries of the model in all UNet calls",
            ),
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
            failures: family(
                "diffusion_failures_total",
                "Requests that failed, by the code of their error",
            ),
            waiting: gauges(
                "diffusion_requests_waiting",
                "Batch elements that wait inside the instances of a model",
            ),
            running: gauges("diffusion_jobs_running", "Batch elements that are being computed"),
            phase_seconds: histograms(
                "diffusion_phase_seconds",
                "Seconds of a phase of a batch element",
                &SECONDS,
            ),
            unet_batch_size: histograms(
                "diffusion_unet_batch_size",
                "Batch entries of a UNet call, of all models that share it",
                &BATCH_SIZES,
            ),
            adapters_loaded: gauges("diffusion_adapters_loaded", "LoRAs in memory"),
            adapters_bytes: gauges("diffusion_adapters_bytes", "Bytes of the LoRAs in memory"),
            adapter_hits: family("diffusion_adapter_hits_total", "LoRAs of requests that were in memory"),
            adapter_loads: family("diffusion_adapter_loads_total", "LoRAs that were loaded"),
            weights_bytes: gauges(
                "diffusion_weights_bytes",
                "Bytes of the weights of all models on a device; equal tensors count once",
            ),
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
        let warn = |error: triton_api::Error| log_warn!("model '{model}': cannot register a metric: {error}");
        let counter = |family: &Option<CounterFamily>| family.as_ref()?.counter(&labels).map_err(warn).ok();
        let gauge = |family: &Option<GaugeFamily>| family.as_ref()?.gauge(&labels).map_err(warn).ok();
        let histogram = |family: &Option<HistogramFamily>, further: Option<(&str, &str)>| {
            let labels: Vec<(&str, &str)> = labels.into_iter().chain(further).collect();
            family.as_ref()?.histogram(&labels).map_err(warn).ok()
        };
        let failures = |code: ErrorCode| {
            let labels = [labels[0], labels[1], ("code", code.name())];
            let counter = self.failures.as_ref()?.counter(&labels).map_err(warn).ok()?;
            Some((code, counter))
        };
        Counters {
            unet_calls: counter(&self.unet_calls),
            unet_batch_entries: counter(&self.unet_batch_entries),
            jobs_cancelled: counter(&self.jobs_cancelled),
            deadlines_passed: counter(&self.deadlines_passed),
            restarts: counter(&self.restarts),
            images: counter(&self.images),
            failures: ErrorCode::ALL.into_iter().filter_map(failures).collect(),
            waiting: gauge(&self.waiting),
            running: gauge(&self.running),
            phase_seconds: PHASES.map(|phase| histogram(&self.phase_seconds, Some(("phase", phase)))),
            unet_batch_size: histogram(&self.unet_batch_size, None),
            adapters_loaded: gauge(&self.adapters_loaded),
            adapters_bytes: gauge(&self.adapters_bytes),
            adapter_hits: counter(&self.adapter_hits),
            adapter_loads: counter(&self.adapter_loads),
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
    /// One for each code.
    failures: Vec<(ErrorCode, Counter)>,
    waiting: Option<Gauge>,
    running: Option<Gauge>,
    /// In the order of [`PHASES`].
    phase_seconds: [Option<Histogram>; PHASES.len()],
    unet_batch_size: Option<Histogram>,
    adapters_loaded: Option<Gauge>,
    adapters_bytes: Option<Gauge>,
    adapter_hits: Option<Counter>,
    adapter_loads: Option<Counter>,
}

impl Counters {
    /// Reports how the LoRAs in memory have changed.
    pub fn adapters_changed(&self, before: PoolUsage, now: PoolUsage) {
        change(&self.adapters_loaded, before.adapters, now.adapters);
        change(&self.adapters_bytes, before.bytes as usize, now.bytes as usize);
        add(&self.adapter_hits, now.hits.saturating_sub(before.hits) as usize);
        add(&self.adapter_loads, now.loads.saturating_sub(before.loads) as usize);
    }

    /// Counts the images of a batch element and the time that they took.
    pub fn element_completed(&self, images: usize, phases: &Phases) {
        add(&self.images, images);
        for (histogram, (_, begin, end)) in self.phase_seconds.iter().zip(phases.iter()) {
            observe(histogram, end.saturating_duration_since(begin).as_secs_f64());
        }
    }

    /// Adds to the batch elements that wait, and to those that are being computed.
    pub fn load_changed(&self, waiting: i32, running: i32) {
        for (gauge, amount) in [(&self.waiting, waiting), (&self.running, running)] {
            if let Some(gauge) = gauge
                && amount != 0
            {
                // As in `add`.
                let _ = gauge.add(f64::from(amount));
            }
        }
    }

    /// Counts a batch element that the engine ended with an error.
    pub fn element_failed(&self, error: &Error) {
        match error {
            Error::Cancelled(_) => add(&self.jobs_cancelled, 1),
            Error::DeadlineExceeded(_) => add(&self.deadlines_passed, 1),
            _ => {}
        }
    }

    /// Counts an instance that started anew after a panic.
    pub fn engine_restarted(&self) {
        add(&self.restarts, 1);
    }

    /// Counts a request that failed.
    pub fn request_failed(&self, code: ErrorCode) {
        if let Some((_, counter)) = self.failures.iter().find(|(of, _)| *of == code) {
            let _ = counter.add(1.0);
        }
    }
}

fn add(counter: &Option<Counter>, amount: usize) {
    if let Some(counter) = counter {
        // A counter that cannot count is no reason to fail a request.
        let _ = counter.add(amount as f64);
    }
}

fn observe(histogram: &Option<Histogram>, value: f64) {
    if let Some(histogram) = histogram {
        // As in `add`.
        let _ = histogram.observe(value);
    }
}

fn change(gauge: &Option<Gauge>, before: usize, now: usize) {
    if let Some(gauge) = gauge
        && before != now
    {
        // As in `add`.
        let _ = gauge.add(now as f64 - before as f64);
    }
}

impl BatchObserver for Counters {
    fn batch_executed(&self, entries: usize, batch_size: usize) {
        add(&self.unet_calls, 1);
        add(&self.unet_batch_entries, entries);
        observe(&self.unet_batch_size, batch_size as f64);
    }
}
