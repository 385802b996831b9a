//! The context for initializing an instance, and the health of an instance.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::{Error, check};
use crate::types::{InstanceKind, MemoryType};
use crate::{config, model, sys};

/// The health of an instance, shared by the instance, its threads and `TRITONBACKEND_ModelInstanceReady`.
///
/// A healthy instance can become poisoned, never the reverse.
#[derive(Debug, Default)]
pub struct Health {
    poisoned: OnceLock<String>,
}

impl Health {
    /// Marks the instance as unable to work: further requests are answered with UNAVAILABLE and
    /// the instance is no longer ready. Only the first reason is kept. Clients see the reason, so
    /// it must not contain a user's text.
    pub fn poison(&self, reason: impl Into<String>) {
        let _ = self.poisoned.set(reason.into());
    }

    /// Returns why the instance no longer works; `None` while it works.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// Returns whether the instance works.
    pub fn is_ready(&self) -> bool {
        self.poisoned().is_none()
    }

    /// Checks that the instance works.
    ///
    /// # Errors
    ///
    /// UNAVAILABLE with the reason if the instance is poisoned.
    pub fn check(&self) -> Result<(), Error> {
        match self.poisoned() {
            None => Ok(()),
            Some(reason) => Err(Error::unavailable(format!(
                "the instance failed and must be reloaded: {reason}"
            ))),
        }
    }
}

/// Memory that an instance holds, for [`InstanceContext::report_memory_usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUsage {
    /// The kind of memory.
    pub memory_type: MemoryType,
    /// The GPU's index; 0 for the host.
    pub memory_type_id: i64,
    /// The size in bytes.
    pub byte_size: usize,
}

/// The context of [`Instance::initialize`](crate::Instance::initialize).
#[derive(Debug)]
pub struct InstanceContext<'a> {
    raw: &'a NonNull<sys::TRITONBACKEND_ModelInstance>,
    name: String,
    model_name: String,
    model_version: u64,
    kind: InstanceKind,
    device_id: i32,
    health: Arc<Health>,
}

impl<'a> InstanceContext<'a> {
    /// # Safety
    ///
    /// `raw` is the live instance that Triton is initializing, of the live `model`.
    pub(crate) unsafe fn new(
        raw: &'a NonNull<sys::TRITONBACKEND_ModelInstance>,
        model: NonNull<sys::TRITONBACKEND_Model>,
    ) -> Result<Self, Error> {
        let mut kind = sys::TRITONSERVER_INSTANCEGROUPKIND_AUTO;
        let mut device_id = 0;
        // SAFETY: the handles are live and the results point to locals.
        let (name, (model_name, model_version)) = unsafe {
            check(sys::TRITONBACKEND_ModelInstanceKind(raw.as_ptr(), &mut kind))?;
            check(sys::TRITONBACKEND_ModelInstanceDeviceId(raw.as_ptr(), &mut device_id))?;
            (
                config::copy_string(|out| sys::TRITONBACKEND_ModelInstanceName(raw.as_ptr(), out))?,
                model::identity(model)?,
            )
        };
        let kind = InstanceKind::from_raw(kind)
            .ok_or_else(|| Error::unsupported(format!("instance '{name}': unknown instance kind {kind}")))?;
        Ok(Self {
            raw,
            name,
            model_name,
            model_version,
            kind,
            device_id,
            health: Arc::default(),
        })
    }

    /// Returns the instance's name (`TRITONBACKEND_ModelInstanceName`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name of the instance's model.
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    /// Returns the version of the instance's model.
    pub fn model_version(&self) -> u64 {
        self.model_version
    }

    /// Returns the kind of device that the instance should run on (`TRITONBACKEND_ModelInstanceKind`).
    pub fn kind(&self) -> InstanceKind {
        self.kind
    }

    /// Returns the GPU's index for [`InstanceKind::Gpu`] (`TRITONBACKEND_ModelInstanceDeviceId`).
    pub fn device_id(&self) -> i32 {
        self.device_id
    }

    /// Returns the instance's health, to share with the instance's threads.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Reports the instance's memory to Triton (`TRITONBACKEND_ModelInstanceReportMemoryUsage`) and
    /// replaces an earlier report. Triton adds up entries for the same memory.
    ///
    /// # Errors
    ///
    /// If Triton rejects an entry.
    pub fn report_memory_usage(&self, usage: &[MemoryUsage]) -> Result<(), Error> {
        let mut sums: Vec<MemoryUsage> = Vec::new();
        for entry in usage {
            match sums
                .iter_mut()
                .find(|sum| (sum.memory_type, sum.memory_type_id) == (entry.memory_type, entry.memory_type_id))
            {
                Some(sum) => sum.byte_size = sum.byte_size.saturating_add(entry.byte_size),
                None => sums.push(*entry),
            }
        }
        let attributes = sums.iter().map(BufferAttributes::new).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = attributes.iter().map(|owned| owned.0).collect();
        let count = u32::try_from(pointers.len())
            .map_err(|_| Error::internal("too many entries in a report of memory usage"))?;
        // SAFETY: the instance is live for 'a; the attributes outlive the call, which copies.
        unsafe {
            check(sys::TRITONBACKEND_ModelInstanceReportMemoryUsage(
                self.raw.as_ptr(),
                pointers.as_mut_ptr(),
                count,
            ))
        }
    }

    pub(crate) fn handle(&self) -> Arc<InstanceHandle> {
        Arc::new(InstanceHandle {
            raw: Mutex::new(Some(RawInstance(*self.raw))),
            name: self.name.clone(),
            model_name: self.model_name.clone(),
            health: self.health(),
        })
    }
}

/// Owned `TRITONSERVER_BufferAttributes`.
struct BufferAttributes(*mut sys::TRITONSERVER_BufferAttributes);

impl BufferAttributes {
    fn new(usage: &MemoryUsage) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a new object belongs to the caller, and `owned` deletes it on every path.
        unsafe {
            check(sys::TRITONSERVER_BufferAttributesNew(&mut raw))?;
            let owned = Self(crate::error::non_null(raw, "buffer attributes")?.as_ptr());
            check(sys::TRITONSERVER_BufferAttributesSetMemoryType(
                raw,
                usage.memory_type.raw(),
            ))?;
            check(sys::TRITONSERVER_BufferAttributesSetMemoryTypeId(
                raw,
                usage.memory_type_id,
            ))?;
            check(sys::TRITONSERVER_BufferAttributesSetByteSize(raw, usage.byte_size))?;
            Ok(owned)
        }
    }
}

impl Drop for BufferAttributes {
    fn drop(&mut self) {
        // SAFETY: owned by `self` and deleted here only.
        let _ = unsafe { check(sys::TRITONSERVER_BufferAttributesDelete(self.0)) };
    }
}

#[derive(Debug)]
struct RawInstance(NonNull<sys::TRITONBACKEND_ModelInstance>);

// SAFETY: Triton's functions that report statistics may be called from any thread; the handle
// is used for nothing else.
unsafe impl Send for RawInstance {}

/// The part of an instance that its slots need to report statistics, as long as Triton keeps the instance.
#[derive(Debug)]
pub(crate) struct InstanceHandle {
    /// `None` once the instance is finalized. A slot that ends later is answered and released
    /// without statistics.
    raw: Mutex<Option<RawInstance>>,
    pub(crate) name: String,
    pub(crate) model_name: String,
    pub(crate) health: Arc<Health>,
}

impl InstanceHandle {
    /// Runs `f` unless the instance is finalized; finalizing waits until `f` returns.
    pub(crate) fn with(&self, f: impl FnOnce(NonNull<sys::TRITONBACKEND_ModelInstance>)) {
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = raw.as_ref() {
            f(instance.0);
        }
    }

    /// Forgets the instance before Triton frees it. Waits for a report in progress.
    pub(crate) fn close(&self) {
        *self.raw.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn poison_twice_keeps_the_first_reason() {
        let health = Health::default();
        assert!(health.is_ready());
        assert_eq!(health.check(), Ok(()));
        health.poison("the device is lost");
        health.poison("later");
        assert!(!health.is_ready());
        assert_eq!(health.poisoned(), Some("the device is lost"));
        let error = health.check().err();
        assert_eq!(error.as_ref().map(Error::code), Some(ErrorCode::Unavailable));
        assert!(error.is_some_and(|error| error.message().ends_with("the device is lost")));
    }
}
