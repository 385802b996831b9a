//! Triton's life cycle, and nothing else: the backend, its models, their instances.

mod encoder_thread;
mod error;
mod instance;
mod metrics;
mod model;
mod response;

use std::sync::Arc;

use triton_api::{BackendContext, log_info};

use metrics::Families;

pub use instance::ModelInstanceState;
pub use model::ModelState;

/// What the library holds once for all models (`TRITONBACKEND_Backend`).
pub struct BackendState {
    families: Arc<Families>,
}

impl triton_api::Backend for BackendState {
    type Model = ModelState;

    /// Instances of one device share what the first of them loads, and wait for it; those of several GPUs load beside each other.
    const PARALLEL_INSTANCE_LOADING: bool = true;

    fn initialize(context: &BackendContext<'_>) -> Result<Self, triton_api::Error> {
        triton_api::panic::install_hook();
        log_info!(
            "backend '{}': triton-diffusion {} from {}",
            context.name(),
            env!("CARGO_PKG_VERSION"),
            context.location().display()
        );
        Ok(Self {
            families: Arc::new(Families::register()),
        })
    }
}
