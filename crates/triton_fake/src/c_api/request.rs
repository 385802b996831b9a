//! Requests and their inputs.

use std::ffi::{c_char, c_void};

use triton_api::MemoryType;
use triton_api::sys::*;

use super::{RawError, call, put};
use crate::state::{Failure, InputObject, RequestObject, State, id, raw};

/// Returns the request behind a handle. Using a released request is a violation, although the record keeps it
/// for the test.
pub(super) fn live<'a>(
    state: &'a mut State,
    function: &str,
    handle: *const TRITONBACKEND_Request,
) -> Result<&'a mut RequestObject, Failure> {
    if state.get::<RequestObject>(function, handle)?.released {
        let text = format!("{function}: request {} was already released", id(handle));
        state.violation(text.clone());
        return Err(Failure::new(TRITONSERVER_ERROR_INTERNAL, text));
    }
    state.get(function, handle)
}

fn read<V>(
    function: &str,
    request: *mut TRITONBACKEND_Request,
    out: *mut V,
    get: impl FnOnce(&mut RequestObject) -> Result<V, Failure>,
) -> RawError {
    call(|state| {
        let value = get(live(state, function, request)?)?;
        // SAFETY: the result pointer is null or valid.
        unsafe { put(out, value) };
        Ok(())
    })
}

fn out_of_bounds() -> Failure {
    Failure::new(TRITONSERVER_ERROR_INVALID_ARG, "out of bounds index")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestId(
    request: *mut TRITONBACKEND_Request,
    id: *mut *const c_char,
) -> RawError {
    read("TRITONBACKEND_RequestId", request, id, |request| {
        Ok(request.id.as_ref().map_or(std::ptr::null(), |id| id.as_ptr()))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_InferenceRequestTimeoutMicroseconds(
    request: *mut TRITONBACKEND_Request,
    timeout: *mut u64,
) -> RawError {
    read(
        "TRITONBACKEND_InferenceRequestTimeoutMicroseconds",
        request,
        timeout,
        |request| Ok(request.timeout_us),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestIsCancelled(
    request: *mut TRITONBACKEND_Request,
    is_cancelled: *mut bool,
) -> RawError {
    read("TRITONBACKEND_RequestIsCancelled", request, is_cancelled, |request| {
        Ok(request.cancelled)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestInputCount(
    request: *mut TRITONBACKEND_Request,
    count: *mut u32,
) -> RawError {
    read("TRITONBACKEND_RequestInputCount", request, count, |request| {
        u32::try_from(request.inputs.len()).map_err(|_| out_of_bounds())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestInputByIndex(
    request: *mut TRITONBACKEND_Request,
    index: u32,
    input: *mut *mut TRITONBACKEND_Input,
) -> RawError {
    read("TRITONBACKEND_RequestInputByIndex", request, input, |request| {
        request
            .inputs
            .get(index as usize)
            .map(|&id| raw::<InputObject>(id))
            .ok_or_else(out_of_bounds)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestOutputCount(
    request: *mut TRITONBACKEND_Request,
    count: *mut u32,
) -> RawError {
    read("TRITONBACKEND_RequestOutputCount", request, count, |request| {
        u32::try_from(request.outputs.len()).map_err(|_| out_of_bounds())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestOutputName(
    request: *mut TRITONBACKEND_Request,
    index: u32,
    output_name: *mut *const c_char,
) -> RawError {
    read("TRITONBACKEND_RequestOutputName", request, output_name, |request| {
        request
            .outputs
            .get(index as usize)
            .map(|name| name.as_ptr())
            .ok_or_else(out_of_bounds)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestOutputBufferProperties(
    request: *mut TRITONBACKEND_Request,
    _name: *const c_char,
    _byte_size: *mut usize,
    memory_type: *mut TRITONSERVER_MemoryType,
    memory_type_id: *mut i64,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_RequestOutputBufferProperties";
    // SAFETY: the result pointers are null or valid.
    unsafe { put(memory_type_id, 0) };
    read(NAME, request, memory_type, |request| Ok(request.output_memory.raw()))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_RequestRelease(
    request: *mut TRITONBACKEND_Request,
    release_flags: u32,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_RequestRelease";
    call(|state| {
        let number = id(request);
        let request = live(state, NAME, request)?;
        request.released = true;
        let inputs = std::mem::take(&mut request.inputs);
        let executing = request.executing;
        let answered = request.responses.iter().any(|response| response.is_final);
        for input in inputs {
            state.discard::<InputObject>(input, "released with its request");
        }
        if !executing {
            state.violation(format!("{NAME}: request {number} still belongs to Triton"));
        }
        if !answered {
            state.violation(format!("{NAME}: request {number} has no final response"));
        }
        if release_flags != TRITONSERVER_REQUEST_RELEASE_ALL {
            state.violation(format!("{NAME}: flags {release_flags}"));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_InputProperties(
    input: *mut TRITONBACKEND_Input,
    name: *mut *const c_char,
    datatype: *mut TRITONSERVER_DataType,
    shape: *mut *const i64,
    dims_count: *mut u32,
    byte_size: *mut u64,
    buffer_count: *mut u32,
) -> RawError {
    call(|state| {
        let input = state.get::<InputObject>("TRITONBACKEND_InputProperties", input)?;
        let size: usize = input.buffers.iter().map(Vec::len).sum();
        // SAFETY: each result pointer is null or valid.
        unsafe {
            put(name, input.name.as_ptr());
            put(datatype, input.datatype);
            put(shape, input.shape.as_ptr());
            put(dims_count, u32::try_from(input.shape.len()).unwrap_or(0));
            put(byte_size, input.claimed_size.unwrap_or(size as u64));
            put(buffer_count, u32::try_from(input.buffers.len()).unwrap_or(0));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_InputBuffer(
    input: *mut TRITONBACKEND_Input,
    index: u32,
    buffer: *mut *const c_void,
    buffer_byte_size: *mut u64,
    memory_type: *mut TRITONSERVER_MemoryType,
    memory_type_id: *mut i64,
) -> RawError {
    call(|state| {
        let input = state.get::<InputObject>("TRITONBACKEND_InputBuffer", input)?;
        let data = input.buffers.get(index as usize).ok_or_else(out_of_bounds)?;
        let pointer: *const c_void = match (input.memory_type, data.is_empty()) {
            // An address that the host cannot read.
            (MemoryType::Gpu, _) => std::ptr::without_provenance(1),
            (_, true) => std::ptr::null(),
            _ => data.as_ptr().cast(),
        };
        // SAFETY: each result pointer is null or valid.
        unsafe {
            put(buffer, pointer);
            put(buffer_byte_size, data.len() as u64);
            put(memory_type, input.memory_type.raw());
            put(memory_type_id, 0);
        }
        Ok(())
    })
}
