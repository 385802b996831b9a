//! The backend, its models and their instances.

use std::ffi::{c_char, c_void};
use std::ptr;

use triton_api::Timestamps;
use triton_api::sys::*;

use super::{RawError, call, put};
use crate::instance::BatchStatistics;
use crate::request::RequestStatistics;
use crate::state::{
    AttributesObject, BackendAttributeObject, BackendObject, Failure, InstanceObject, Kind, MessageObject, ModelObject,
    RequestObject, raw,
};

/// Reads a value of an object and writes it to `out`.
fn read<T: Kind, V>(function: &str, handle: *mut T::Raw, out: *mut V, get: impl FnOnce(&mut T) -> V) -> RawError {
    call(|state| {
        let value = get(state.get::<T>(function, handle)?);
        // SAFETY: the result pointer is null or valid.
        unsafe { put(out, value) };
        Ok(())
    })
}

fn write<T: Kind>(function: &str, handle: *mut T::Raw, set: impl FnOnce(&mut T)) -> RawError {
    call(|state| {
        set(state.get::<T>(function, handle)?);
        Ok(())
    })
}

/// Converts the address of the backend's state to a pointer.
fn to_pointer(state: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(state)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ApiVersion(major: *mut u32, minor: *mut u32) -> RawError {
    call(|state| {
        let version = state.settings.api_version;
        // SAFETY: each result pointer is null or valid.
        unsafe {
            put(major, version.0);
            put(minor, version.1);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_BackendName(
    backend: *mut TRITONBACKEND_Backend,
    name: *mut *const c_char,
) -> RawError {
    read::<BackendObject, _>("TRITONBACKEND_BackendName", backend, name, |backend| {
        backend.name.as_ptr()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_BackendConfig(
    backend: *mut TRITONBACKEND_Backend,
    backend_config: *mut *mut TRITONSERVER_Message,
) -> RawError {
    read::<BackendObject, _>("TRITONBACKEND_BackendConfig", backend, backend_config, |backend| {
        raw::<MessageObject>(backend.config)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_BackendArtifacts(
    backend: *mut TRITONBACKEND_Backend,
    artifact_type: *mut TRITONBACKEND_ArtifactType,
    location: *mut *const c_char,
) -> RawError {
    // SAFETY: the result pointer is null or valid.
    unsafe { put(artifact_type, TRITONBACKEND_ARTIFACT_FILESYSTEM) };
    read::<BackendObject, _>("TRITONBACKEND_BackendArtifacts", backend, location, |backend| {
        backend.location.as_ptr()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_BackendState(
    backend: *mut TRITONBACKEND_Backend,
    state: *mut *mut c_void,
) -> RawError {
    read::<BackendObject, _>("TRITONBACKEND_BackendState", backend, state, |backend| {
        to_pointer(backend.state)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_BackendSetState(
    backend: *mut TRITONBACKEND_Backend,
    state: *mut c_void,
) -> RawError {
    write::<BackendObject>("TRITONBACKEND_BackendSetState", backend, |backend| {
        backend.state = state.expose_provenance();
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading(
    backend_attributes: *mut TRITONBACKEND_BackendAttribute,
    enabled: bool,
) -> RawError {
    write::<BackendAttributeObject>(
        "TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading",
        backend_attributes,
        |attributes| attributes.parallel_loading = enabled,
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelName(
    model: *mut TRITONBACKEND_Model,
    name: *mut *const c_char,
) -> RawError {
    read::<ModelObject, _>("TRITONBACKEND_ModelName", model, name, |model| model.name.as_ptr())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelVersion(
    model: *mut TRITONBACKEND_Model,
    version: *mut u64,
) -> RawError {
    read::<ModelObject, _>("TRITONBACKEND_ModelVersion", model, version, |model| model.version)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelRepository(
    model: *mut TRITONBACKEND_Model,
    artifact_type: *mut TRITONBACKEND_ArtifactType,
    location: *mut *const c_char,
) -> RawError {
    // SAFETY: the result pointer is null or valid.
    unsafe { put(artifact_type, TRITONBACKEND_ARTIFACT_FILESYSTEM) };
    read::<ModelObject, _>("TRITONBACKEND_ModelRepository", model, location, |model| {
        model.repository.as_ptr()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelConfig(
    model: *mut TRITONBACKEND_Model,
    config_version: u32,
    model_config: *mut *mut TRITONSERVER_Message,
) -> RawError {
    call(|state| {
        let json = state
            .get::<ModelObject>("TRITONBACKEND_ModelConfig", model)?
            .config
            .clone();
        check_version(config_version)?;
        let raw = state.insert_raw(MessageObject { json, owned: true });
        // SAFETY: the result pointer is null or valid.
        unsafe { put(model_config, raw) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelAutoCompleteConfig(
    model: *mut TRITONBACKEND_Model,
    auto_complete_config: *mut bool,
) -> RawError {
    read::<ModelObject, _>(
        "TRITONBACKEND_ModelAutoCompleteConfig",
        model,
        auto_complete_config,
        |model| model.auto_complete,
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelSetConfig(
    model: *mut TRITONBACKEND_Model,
    config_version: u32,
    model_config: *mut TRITONSERVER_Message,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ModelSetConfig";
    call(|state| {
        let json = state.get::<MessageObject>(NAME, model_config)?.json.clone();
        check_version(config_version)?;
        let model = state.get::<ModelObject>(NAME, model)?;
        if !model.initializing {
            state.violation(format!("{NAME}: called outside of TRITONBACKEND_ModelInitialize"));
            return Err(Failure::new(TRITONSERVER_ERROR_INTERNAL, "too late"));
        }
        model.config = json;
        Ok(())
    })
}

fn check_version(config_version: u32) -> Result<(), Failure> {
    if config_version == 1 {
        Ok(())
    } else {
        Err(Failure::new(
            TRITONSERVER_ERROR_INVALID_ARG,
            "model configuration version must be 1",
        ))
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelBackend(
    model: *mut TRITONBACKEND_Model,
    backend: *mut *mut TRITONBACKEND_Backend,
) -> RawError {
    read::<ModelObject, _>("TRITONBACKEND_ModelBackend", model, backend, |model| {
        raw::<BackendObject>(model.backend)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelState(
    model: *mut TRITONBACKEND_Model,
    state: *mut *mut c_void,
) -> RawError {
    read::<ModelObject, _>("TRITONBACKEND_ModelState", model, state, |model| {
        to_pointer(model.state)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelSetState(
    model: *mut TRITONBACKEND_Model,
    state: *mut c_void,
) -> RawError {
    write::<ModelObject>("TRITONBACKEND_ModelSetState", model, |model| {
        model.state = state.expose_provenance();
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceName(
    instance: *mut TRITONBACKEND_ModelInstance,
    name: *mut *const c_char,
) -> RawError {
    read::<InstanceObject, _>("TRITONBACKEND_ModelInstanceName", instance, name, |instance| {
        instance.name.as_ptr()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceKind(
    instance: *mut TRITONBACKEND_ModelInstance,
    kind: *mut TRITONSERVER_InstanceGroupKind,
) -> RawError {
    read::<InstanceObject, _>("TRITONBACKEND_ModelInstanceKind", instance, kind, |instance| {
        instance.kind
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceDeviceId(
    instance: *mut TRITONBACKEND_ModelInstance,
    device_id: *mut i32,
) -> RawError {
    read::<InstanceObject, _>("TRITONBACKEND_ModelInstanceDeviceId", instance, device_id, |instance| {
        instance.device_id
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceModel(
    instance: *mut TRITONBACKEND_ModelInstance,
    model: *mut *mut TRITONBACKEND_Model,
) -> RawError {
    read::<InstanceObject, _>("TRITONBACKEND_ModelInstanceModel", instance, model, |instance| {
        raw::<ModelObject>(instance.model)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceState(
    instance: *mut TRITONBACKEND_ModelInstance,
    state: *mut *mut c_void,
) -> RawError {
    read::<InstanceObject, _>("TRITONBACKEND_ModelInstanceState", instance, state, |instance| {
        to_pointer(instance.state)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceSetState(
    instance: *mut TRITONBACKEND_ModelInstance,
    state: *mut c_void,
) -> RawError {
    write::<InstanceObject>("TRITONBACKEND_ModelInstanceSetState", instance, |instance| {
        instance.state = state.expose_provenance();
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceReportMemoryUsage(
    instance: *mut TRITONBACKEND_ModelInstance,
    usage: *mut *mut TRITONSERVER_BufferAttributes,
    usage_size: u32,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ModelInstanceReportMemoryUsage";
    call(|state| {
        let mut report = Vec::new();
        for index in 0..usage_size as usize {
            // SAFETY: the caller passes that many attributes.
            let attributes = unsafe { *usage.add(index) };
            report.push(state.get::<AttributesObject>(NAME, attributes)?.usage);
        }
        state.get::<InstanceObject>(NAME, instance)?.memory_usage = report;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceReportStatistics(
    instance: *mut TRITONBACKEND_ModelInstance,
    request: *mut TRITONBACKEND_Request,
    success: bool,
    exec_start_ns: u64,
    compute_start_ns: u64,
    compute_end_ns: u64,
    exec_end_ns: u64,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ModelInstanceReportStatistics";
    let times = Timestamps {
        exec_start: exec_start_ns,
        compute_start: compute_start_ns,
        compute_end: compute_end_ns,
        exec_end: exec_end_ns,
    };
    call(|state| {
        state.check_times(NAME, &times);
        state.get::<InstanceObject>(NAME, instance)?;
        let request = state.get::<RequestObject>(NAME, request)?;
        request.statistics.push(RequestStatistics { success, times });
        let (released, twice) = (request.released, request.statistics.len() > 1);
        if released {
            state.violation(format!("{NAME}: called after the request was released"));
        } else if twice {
            state.violation(format!("{NAME}: called twice for one request"));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ModelInstanceReportBatchStatistics(
    instance: *mut TRITONBACKEND_ModelInstance,
    batch_size: u64,
    exec_start_ns: u64,
    compute_start_ns: u64,
    compute_end_ns: u64,
    exec_end_ns: u64,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ModelInstanceReportBatchStatistics";
    let times = Timestamps {
        exec_start: exec_start_ns,
        compute_start: compute_start_ns,
        compute_end: compute_end_ns,
        exec_end: exec_end_ns,
    };
    call(|state| {
        state.check_times(NAME, &times);
        state
            .get::<InstanceObject>(NAME, instance)?
            .batches
            .push(BatchStatistics { batch_size, times });
        Ok(())
    })
}
