//! What an instance is shown while it initializes, and whether it still works.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::{Error, check};
use crate::types::{InstanceKind, MemoryType};
use crate::{config, model, sys};

/// Whether an instance can still work. Shared between the instance, its threads and
/// `TRITONBACKEND_ModelInstanceReady`, which reads this and nothing else of the instance.
///
/// It goes from ready to poisoned and never back.
#[derive(Debug, Default)]
pub struct Health {
    poisoned: OnceLock<String>,
}

impl Health {
    /// Marks the instance as unable to work. Requests that come from now on are answered with
    /// UNAVAILABLE and the server's readiness shows it. Only the first reason is kept; it is
    /// shown to clients, so it holds no user's text.
    pub fn poison(&self, reason: impl Into<String>) {
        let _ = self.poisoned.set(reason.into());
    }

    /// Why the instance no longer works; `None` while it does.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// Whether the instance works.
    pub fn is_ready(&self) -> bool {
        self.poisoned().is_none()
    }

    /// # Errors
    ///
    /// UNAVAILABLE with the reason if the instance is poisoned.
    pub fn check(&self) -> Result<(), Error> {
        match self.poisoned() {
            None => Ok(()),
            Some(reason) => Err(Error::unavailable(format!(
                "the instance no longer works and must be reloaded: {reason}"
            ))),
        }
    }
}

/// Memory that an instance holds, for
/// [`InstanceContext::report_memory_usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUsage {
    /// The kind of memory.
    pub memory_type: MemoryType,
    /// The GPU's number; 0 for the host.
    pub memory_type_id: i64,
    /// How much, in bytes.
    pub byte_size: usize,
}

/// The instance as [`Instance::initialize`](crate::Instance::initialize) sees it.
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

    /// The instance's name (`TRITONBACKEND_ModelInstanceName`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its model's name.
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    /// Its model's version.
    pub fn model_version(&self) -> u64 {
        self.model_version
    }

    /// What it was asked to run on (`TRITONBACKEND_ModelInstanceKind`).
    pub fn kind(&self) -> InstanceKind {
        self.kind
    }

    /// The GPU's number for [`InstanceKind::Gpu`] (`TRITONBACKEND_ModelInstanceDeviceId`).
    pub fn device_id(&self) -> i32 {
        self.device_id
    }

    /// The instance's health, for the threads that may find out that it no longer works.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Tells Triton what memory the instance holds
    /// (`TRITONBACKEND_ModelInstanceReportMemoryUsage`). Replaces an earlier report. Entries for
    /// the same memory are added up.
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

/// `TRITONSERVER_BufferAttributes` that this side owns.
struct BufferAttributes(*mut sys::TRITONSERVER_BufferAttributes);

impl BufferAttributes {
    fn new(usage: &MemoryUsage) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a new object is the caller's, and `owned` deletes it on every path.
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

/// An instance as its slots know it: enough to report statistics, for as long as Triton keeps
/// the instance.
#[derive(Debug)]
pub(crate) struct InstanceHandle {
    /// `None` once the instance is being finalized: a slot that comes late is still answered
    /// and released, without statistics.
    raw: Mutex<Option<RawInstance>>,
    pub(crate) name: String,
    pub(crate) model_name: String,
    pub(crate) health: Arc<Health>,
}

impl InstanceHandle {
    /// Runs `f` while the instance cannot be finalized.
    pub(crate) fn with(&self, f: impl FnOnce(NonNull<sys::TRITONBACKEND_ModelInstance>)) {
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = raw.as_ref() {
            f(instance.0);
        }
    }

    /// Forgets the instance, which Triton is about to free. Waits for a report under way.
    pub(crate) fn close(&self) {
        *self.raw.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn the_first_reason_stays() {
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
