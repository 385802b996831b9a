//! Triton's life cycle: the backend, its models and their instances; responses and metrics.

mod base_components;
mod bases;
mod checkpoint;
mod description;
mod device_health;
mod encoder_thread;
mod error;
mod instance;
mod job_gauge;
mod lora_loads;
mod memory_budgets;
mod metrics;
mod model;
mod phases;
mod progress;
mod response;
mod shared_engine;
mod submission;

use std::sync::Arc;

use triton_api::{BackendContext, log_info};

use crate::pipelines::initialize_libtorch;
use crate::weights::uninstall_bus_error_handler;
use bases::Bases;
use device_health::DeviceHealth;
use memory_budgets::MemoryBudgets;
use metrics::MetricFamilies;

pub use instance::ModelInstanceState;
pub use model::ModelState;

/// The state that all models share (`TRITONBACKEND_Backend`).
pub struct BackendState {
    families: Arc<MetricFamilies>,
    devices: Arc<DeviceHealth>,
    budgets: Arc<MemoryBudgets>,
    bases: Arc<Bases>,
}

/// Runs when no model is left, before the server may unload the library.
impl Drop for BackendState {
    fn drop(&mut self) {
        uninstall_bus_error_handler();
    }
}

impl triton_api::Backend for BackendState {
    type Model = ModelState;

    /// Instances on one device wait for the first of them to load the weights. Instances on several GPUs load in parallel.
    const PARALLEL_INSTANCE_LOADING: bool = true;

    fn initialize(context: &BackendContext<'_>) -> Result<Self, triton_api::Error> {
        triton_api::panic::install_hook();
        initialize_libtorch();
        log_info!(
            "backend '{}': triton-diffusion {} from {}",
            context.name(),
            env!("CARGO_PKG_VERSION"),
            context.location().display()
        );
        Ok(Self {
            families: Arc::new(MetricFamilies::register()),
            devices: Arc::default(),
            budgets: Arc::default(),
            bases: Arc::default(),
        })
    }
}
