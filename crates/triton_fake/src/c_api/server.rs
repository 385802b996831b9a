//! Errors, messages, the log, labels and buffer attributes.

use std::ffi::{c_char, c_int, c_void};

use triton_api::sys::*;
use triton_api::{MemoryType, MemoryUsage};

use super::{RawError, call, copy, put};
use crate::state::{
    AttributesObject, CHANGED, ErrorObject, Failure, LogRecord, MessageObject, ParameterObject, lock, text_to_c,
};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_ErrorNew(code: TRITONSERVER_Error_Code, msg: *const c_char) -> RawError {
    // SAFETY: the caller passes a C string.
    let message = text_to_c(&unsafe { copy(msg) });
    lock().insert_raw(ErrorObject { code, message })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_ErrorDelete(error: RawError) {
    // An invalid handle was recorded; the function cannot return an error.
    let _ = lock().remove::<ErrorObject>("TRITONSERVER_ErrorDelete", error, "deleted");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_ErrorCode(error: RawError) -> TRITONSERVER_Error_Code {
    lock()
        .get::<ErrorObject>("TRITONSERVER_ErrorCode", error)
        .map_or(TRITONSERVER_ERROR_UNKNOWN, |error| error.code)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_ErrorMessage(error: RawError) -> *const c_char {
    lock()
        .get::<ErrorObject>("TRITONSERVER_ErrorMessage", error)
        .map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MessageNewFromSerializedJson(
    message: *mut *mut TRITONSERVER_Message,
    base: *const c_char,
    byte_size: usize,
) -> RawError {
    call(|state| {
        let json = if byte_size == 0 || base.is_null() {
            Vec::new()
        } else {
            // SAFETY: the caller passes that many bytes.
            unsafe { std::slice::from_raw_parts(base.cast::<u8>(), byte_size) }.to_vec()
        };
        let raw = state.insert_raw(MessageObject { json, owned: true });
        // SAFETY: the result pointer is null or valid.
        unsafe { put(message, raw) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MessageDelete(message: *mut TRITONSERVER_Message) -> RawError {
    const NAME: &str = "TRITONSERVER_MessageDelete";
    call(|state| {
        if !state.get::<MessageObject>(NAME, message)?.owned {
            state.violation(format!("{NAME}: the message belongs to Triton"));
            return Ok(());
        }
        state.remove::<MessageObject>(NAME, message, "deleted")?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MessageSerializeToJson(
    message: *mut TRITONSERVER_Message,
    base: *mut *const c_char,
    byte_size: *mut usize,
) -> RawError {
    call(|state| {
        let message = state.get::<MessageObject>("TRITONSERVER_MessageSerializeToJson", message)?;
        // SAFETY: each result pointer is null or valid.
        unsafe {
            put(base, message.json.as_ptr().cast());
            put(byte_size, message.json.len());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_LogIsEnabled(_level: TRITONSERVER_LogLevel) -> bool {
    true
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_LogMessage(
    level: TRITONSERVER_LogLevel,
    filename: *const c_char,
    line: c_int,
    msg: *const c_char,
) -> RawError {
    // SAFETY: the caller passes C strings.
    let (file, message) = unsafe { (copy(filename), copy(msg)) };
    let level = match level {
        TRITONSERVER_LOG_INFO => "INFO",
        TRITONSERVER_LOG_WARN => "WARNING",
        TRITONSERVER_LOG_ERROR => "ERROR",
        TRITONSERVER_LOG_VERBOSE => "VERBOSE",
        _ => {
            return call(|_| Err(Failure::new(TRITONSERVER_ERROR_INVALID_ARG, "unknown logging level")));
        }
    };
    if level == "ERROR" {
        // Otherwise the backend's panic hook, which logs here, would hide a failed assertion.
        eprintln!("{level} {file}:{line}] {message}");
    }
    lock().logs.push(LogRecord {
        level,
        file,
        line,
        message,
    });
    CHANGED.notify_all();
    std::ptr::null_mut()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_ParameterNew(
    name: *const c_char,
    type_: TRITONSERVER_ParameterType,
    value: *const c_void,
) -> *mut TRITONSERVER_Parameter {
    if type_ != TRITONSERVER_PARAMETER_STRING {
        lock().violation("TRITONSERVER_ParameterNew: only strings are supported".to_owned());
        return std::ptr::null_mut();
    }
    // SAFETY: the caller passes C strings, and the type guarantees that the value is one.
    let (name, value) = unsafe { (copy(name), copy(value.cast())) };
    lock().insert_raw(ParameterObject { name, value })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_ParameterDelete(parameter: *mut TRITONSERVER_Parameter) {
    // An invalid handle was recorded; the function cannot return an error.
    let _ = lock().remove::<ParameterObject>("TRITONSERVER_ParameterDelete", parameter, "deleted");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_BufferAttributesNew(
    buffer_attributes: *mut *mut TRITONSERVER_BufferAttributes,
) -> RawError {
    call(|state| {
        let raw = state.insert_raw(AttributesObject {
            usage: MemoryUsage {
                memory_type: MemoryType::Cpu,
                memory_type_id: 0,
                byte_size: 0,
            },
        });
        // SAFETY: the result pointer is null or valid.
        unsafe { put(buffer_attributes, raw) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_BufferAttributesDelete(
    buffer_attributes: *mut TRITONSERVER_BufferAttributes,
) -> RawError {
    call(|state| {
        state.remove::<AttributesObject>("TRITONSERVER_BufferAttributesDelete", buffer_attributes, "deleted")?;
        Ok(())
    })
}

fn set_attribute(
    attributes: *mut TRITONSERVER_BufferAttributes,
    set: impl FnOnce(&mut MemoryUsage) -> Option<()>,
) -> RawError {
    call(|state| {
        let object = state.get::<AttributesObject>("TRITONSERVER_BufferAttributesSet", attributes)?;
        set(&mut object.usage).ok_or_else(|| Failure::new(TRITONSERVER_ERROR_INVALID_ARG, "unknown buffer attribute"))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_BufferAttributesSetMemoryTypeId(
    buffer_attributes: *mut TRITONSERVER_BufferAttributes,
    memory_type_id: i64,
) -> RawError {
    set_attribute(buffer_attributes, |usage| {
        usage.memory_type_id = memory_type_id;
        Some(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_BufferAttributesSetMemoryType(
    buffer_attributes: *mut TRITONSERVER_BufferAttributes,
    memory_type: TRITONSERVER_MemoryType,
) -> RawError {
    set_attribute(buffer_attributes, |usage| {
        usage.memory_type = MemoryType::from_raw(memory_type)?;
        Some(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_BufferAttributesSetByteSize(
    buffer_attributes: *mut TRITONSERVER_BufferAttributes,
    byte_size: usize,
) -> RawError {
    set_attribute(buffer_attributes, |usage| {
        usage.byte_size = byte_size;
        Some(())
    })
}
