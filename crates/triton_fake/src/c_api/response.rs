//! Responses and their outputs.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};

use triton_api::sys::*;
use triton_api::{Error, ErrorCode, MemoryType};

use super::request::live;
use super::{RawError, call, copy, put};
use crate::request::{FakeResponse, ParameterValue};
use crate::state::{ErrorObject, Failure, OutputObject, RequestObject, ResponseObject, id, raw};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseNew(
    response: *mut *mut TRITONBACKEND_Response,
    request: *mut TRITONBACKEND_Request,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ResponseNew";
    call(|state| {
        live(state, NAME, request)?;
        if let Some(left) = state.settings.fail_response_new {
            state.settings.fail_response_new = left.checked_sub(1);
            if left == 0 {
                return Err(Failure::new(
                    TRITONSERVER_ERROR_UNAVAILABLE,
                    "planned failure of ResponseNew",
                ));
            }
        }
        // The outputs of a response go to the response that was made last, and those that are sent are taken in the order in
        // which they were made (Triton's `grpc/infer_handler.h`, `ResponseQueue`).
        let number = id(request);
        let object = state.get::<RequestObject>(NAME, request)?;
        if std::mem::replace(&mut object.has_response, true) {
            state.violation(format!("{NAME}: request {number} has a response that is not sent"));
        }
        let raw = state.insert_raw(ResponseObject {
            request: id(request),
            outputs: Vec::new(),
            parameters: BTreeMap::new(),
        });
        // SAFETY: the result pointer is null or valid.
        unsafe { put(response, raw) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseDelete(response: *mut TRITONBACKEND_Response) -> RawError {
    call(|state| {
        const NAME: &str = "TRITONBACKEND_ResponseDelete";
        let response = state.remove::<ResponseObject>(NAME, response, "deleted")?;
        state.close_response(&response, "deleted");
        if let Ok(request) = state.get::<RequestObject>(NAME, raw::<RequestObject>(response.request)) {
            request.has_response = false;
        }
        Ok(())
    })
}

fn set_parameter(
    function: &str,
    response: *mut TRITONBACKEND_Response,
    name: *const c_char,
    value: ParameterValue,
) -> RawError {
    call(|state| {
        // SAFETY: the caller passes a C string.
        let name = unsafe { copy(name) };
        let response = state.get::<ResponseObject>(function, response)?;
        if response.parameters.insert(name.clone(), value).is_some() {
            state.violation(format!("{function}: parameter '{name}' is set twice"));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseSetStringParameter(
    response: *mut TRITONBACKEND_Response,
    name: *const c_char,
    value: *const c_char,
) -> RawError {
    // SAFETY: the caller passes a C string.
    let value = ParameterValue::String(unsafe { copy(value) });
    set_parameter("TRITONBACKEND_ResponseSetStringParameter", response, name, value)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseSetIntParameter(
    response: *mut TRITONBACKEND_Response,
    name: *const c_char,
    value: i64,
) -> RawError {
    set_parameter(
        "TRITONBACKEND_ResponseSetIntParameter",
        response,
        name,
        ParameterValue::Int(value),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseSetBoolParameter(
    response: *mut TRITONBACKEND_Response,
    name: *const c_char,
    value: bool,
) -> RawError {
    set_parameter(
        "TRITONBACKEND_ResponseSetBoolParameter",
        response,
        name,
        ParameterValue::Bool(value),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseOutput(
    response: *mut TRITONBACKEND_Response,
    output: *mut *mut TRITONBACKEND_Output,
    name: *const c_char,
    datatype: TRITONSERVER_DataType,
    shape: *const i64,
    dims_count: u32,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ResponseOutput";
    call(|state| {
        let number = id(response);
        let request = state.get::<ResponseObject>(NAME, response)?.request;
        // SAFETY: the caller passes a C string and that many dimensions.
        let (name, shape) = unsafe {
            let shape = match dims_count {
                0 => Vec::new(),
                count => std::slice::from_raw_parts(shape, count as usize).to_vec(),
            };
            (copy(name), shape)
        };
        let wanted = live(state, NAME, raw::<RequestObject>(request))?
            .outputs
            .iter()
            .any(|output| output.to_bytes() == name.as_bytes());
        if !wanted {
            state.violation(format!("{NAME}: output '{name}' was not requested"));
        }
        let made = state.insert(OutputObject {
            response: number,
            name,
            datatype,
            shape,
            buffer: None,
        });
        state.get::<ResponseObject>(NAME, response)?.outputs.push(made);
        // SAFETY: the result pointer is null or valid.
        unsafe { put(output, raw::<OutputObject>(made)) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_OutputBuffer(
    output: *mut TRITONBACKEND_Output,
    buffer: *mut *mut c_void,
    buffer_byte_size: u64,
    memory_type: *mut TRITONSERVER_MemoryType,
    memory_type_id: *mut i64,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_OutputBuffer";
    call(|state| {
        let size =
            usize::try_from(buffer_byte_size).map_err(|_| Failure::new(TRITONSERVER_ERROR_INVALID_ARG, "too large"))?;
        let object = state.get::<OutputObject>(NAME, output)?;
        if object.buffer.is_some() {
            return Err(Failure::new(
                TRITONSERVER_ERROR_ALREADY_EXISTS,
                "allocated buffer already exists",
            ));
        }
        let response = object.response;
        let offered = state
            .peek::<ResponseObject>(response)
            .and_then(|response| state.peek::<RequestObject>(response.request))
            .map_or(MemoryType::Cpu, |request| request.output_memory);
        let object = state.get::<OutputObject>(NAME, output)?;
        let data = object.buffer.insert(vec![0; size]);
        let pointer: *mut c_void = match offered {
            // An address that the host cannot write to.
            MemoryType::Gpu => std::ptr::without_provenance_mut(1),
            _ if size == 0 => std::ptr::null_mut(),
            _ => data.as_mut_ptr().cast(),
        };
        // SAFETY: each result pointer is null or valid.
        unsafe {
            put(buffer, pointer);
            put(memory_type, offered.raw());
            put(memory_type_id, 0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONBACKEND_ResponseSend(
    response: *mut TRITONBACKEND_Response,
    send_flags: u32,
    error: RawError,
) -> RawError {
    const NAME: &str = "TRITONBACKEND_ResponseSend";
    call(|state| {
        let error = if error.is_null() {
            None
        } else {
            let error = state.get::<ErrorObject>(NAME, error)?;
            Some(Error::new(
                ErrorCode::from_raw(error.code),
                error.message.to_string_lossy(),
            ))
        };
        let response = state.remove::<ResponseObject>(NAME, response, "sent")?;
        let outputs = state.close_response(&response, "sent with its response");
        let number = response.request;
        let request = state.get::<RequestObject>(NAME, raw::<RequestObject>(number))?;
        let (released, answered) = (request.released, request.responses.iter().any(|sent| sent.is_final));
        let is_final = send_flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL != 0;
        let is_one_of_several = !is_final && !request.decoupled;
        request.has_response = false;
        request.responses.push(FakeResponse {
            is_final,
            error,
            outputs,
            parameters: response.parameters,
        });
        if released {
            state.violation(format!("{NAME}: request {number} was already released"));
        }
        if answered {
            state.violation(format!("{NAME}: request {number} was already answered"));
        }
        if is_one_of_several {
            state.violation(format!(
                "{NAME}: request {number} gets several responses, and its model is not decoupled"
            ));
        }
        Ok(())
    })
}
