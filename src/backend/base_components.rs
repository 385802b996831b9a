//! The components of a checkpoint on a device, which are freed with the last model that uses them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use triton_api::log_warn;

use super::metrics::MetricFamilies;
use crate::pipelines::{Components, Device, free_cached_memory};
use diffusion_core::{Error, Result};

/// The components of a checkpoint on a device, without LoRAs.
pub struct BaseComponents {
    device: Device,
    /// Locked while the first model loads them.
    loaded: Mutex<Option<Components>>,
    families: Arc<MetricFamilies>,
}

impl BaseComponents {
    /// Makes components that are not loaded yet.
    pub fn new(device: Device, families: &Arc<MetricFamilies>) -> Self {
        Self {
            device,
            loaded: Mutex::default(),
            families: Arc::clone(families),
        }
    }

    /// Returns the device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Loads the components with `load`, unless they are loaded. Returns whether this call loaded them. Waits for another
    /// call that loads them.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load(&self, load: impl FnOnce() -> Result<Components>) -> Result<bool> {
        let mut loaded = self.lock();
        if loaded.is_some() {
            return Ok(false);
        }
        let result = load();
        if result.is_err() {
            self.free_memory();
        }
        *loaded = Some(result?);
        self.families.weights_changed(self.device);
        Ok(true)
    }

    /// Returns whether the components are loaded. Does not wait for a call that loads them.
    pub fn is_loaded(&self) -> bool {
        self.loaded.try_lock().is_ok_and(|loaded| loaded.is_some())
    }

    /// Returns the components. Waits for a call that loads them.
    ///
    /// # Errors
    /// `Internal` if they are not loaded.
    pub fn get(&self) -> Result<Components> {
        let loaded = self.lock().clone();
        loaded.ok_or_else(|| Error::internal("components that are not loaded"))
    }

    /// Frees the device's cached memory, after an unload or a failed load.
    fn free_memory(&self) {
        if let Err(error) = free_cached_memory(self.device) {
            log_warn!("diffusion: {}: {error}", self.device);
        }
        self.families.weights_changed(self.device);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Components>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BaseComponents {
    fn drop(&mut self) {
        let components = self.lock().take();
        if components.is_some() {
            drop(components);
            self.free_memory();
        }
    }
}
