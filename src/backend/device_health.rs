//! The instances on each device, which a lost device makes not ready together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use triton_api::Health;

use crate::pipelines::Device;

/// The health of all instances of the process, by device.
#[derive(Default)]
pub struct DeviceHealth(Mutex<HashMap<Device, Vec<Weak<Health>>>>);

impl DeviceHealth {
    /// Adds an instance on `device`.
    pub fn add(&self, device: Device, health: &Arc<Health>) {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let instances = devices.entry(device).or_default();
        instances.retain(|instance| instance.strong_count() > 0);
        instances.push(Arc::downgrade(health));
    }

    /// Makes all instances on `device` not ready. `reason` goes to clients.
    pub fn poison(&self, device: Device, reason: &str) {
        let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let instances = devices.get(&device).into_iter().flatten();
        for health in instances.filter_map(Weak::upgrade) {
            health.poison(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_reaches_the_instances_of_one_device() {
        let devices = DeviceHealth::default();
        let instances = [Device::Cuda(0), Device::Cuda(0), Device::Cuda(1)].map(|device| {
            let health = Arc::new(Health::default());
            devices.add(device, &health);
            health
        });
        devices.poison(Device::Cuda(0), "lost");
        assert_eq!(instances.map(|health| health.is_ready()), [false, false, true]);
    }
}
