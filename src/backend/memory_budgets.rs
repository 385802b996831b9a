//! The memory for jobs on each device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::pipelines::{Device, memory_for_jobs};
use diffusion_engine::MemoryBudget;

/// The budgets of all devices, which all models share.
#[derive(Default)]
pub struct MemoryBudgets(Mutex<HashMap<Device, Arc<MemoryBudget>>>);

impl MemoryBudgets {
    /// Returns the budget of a device.
    pub fn of(&self, device: Device) -> Arc<MemoryBudget> {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = budgets.entry(device);
        Arc::clone(budget.or_insert_with(|| MemoryBudget::new(move |needed| memory_for_jobs(device, needed))))
    }
}
