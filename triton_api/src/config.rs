//! Configurations: JSON in a `TRITONSERVER_Message`.

use std::ffi::c_char;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::{Error, check, non_null};
use crate::{sys, text};

/// The version of the JSON form of a model configuration.
pub(crate) const CONFIG_VERSION: u32 = 1;

/// An owned `TRITONSERVER_Message`.
pub(crate) struct Message(*mut sys::TRITONSERVER_Message);

impl Message {
    /// Takes ownership of a message that Triton created for the caller.
    ///
    /// # Safety
    ///
    /// `raw` is null or a message that nothing else will delete.
    pub(crate) unsafe fn from_raw(raw: *mut sys::TRITONSERVER_Message) -> Result<Self, Error> {
        Ok(Self(non_null(raw, "message")?.as_ptr()))
    }

    /// Creates a message (`TRITONSERVER_MessageNewFromSerializedJson`).
    pub(crate) fn from_json(value: &Value) -> Result<Self, Error> {
        let json = value.to_string();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text outlives the call, which copies it; the caller owns a new message.
        unsafe {
            check(sys::TRITONSERVER_MessageNewFromSerializedJson(
                &mut raw,
                json.as_ptr().cast(),
                json.len(),
            ))?;
            Self::from_raw(raw)
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::TRITONSERVER_Message {
        self.0
    }

    pub(crate) fn json(&self) -> Result<Value, Error> {
        // SAFETY: `self` owns the message, which is live.
        unsafe { read_json(self.0) }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: owned by `self` and deleted here only; `check` deletes a possible error.
        let _ = unsafe { check(sys::TRITONSERVER_MessageDelete(self.0)) };
    }
}

/// Reads the JSON of a message (`TRITONSERVER_MessageSerializeToJson`). An empty message is an empty
/// object.
///
/// # Safety
///
/// `message` is null or live.
pub(crate) unsafe fn read_json(message: *mut sys::TRITONSERVER_Message) -> Result<Value, Error> {
    let message = non_null(message, "message")?;
    let mut base: *const c_char = std::ptr::null();
    let mut size = 0;
    // SAFETY: the message is live and the results point to locals.
    unsafe {
        check(sys::TRITONSERVER_MessageSerializeToJson(
            message.as_ptr(),
            &mut base,
            &mut size,
        ))?;
    }
    if base.is_null() || size == 0 {
        return Ok(Value::Object(Map::new()));
    }
    // SAFETY: Triton returned `size` bytes at `base`, which live as long as the message.
    let json = unsafe { std::slice::from_raw_parts(base.cast::<u8>(), size) };
    serde_json::from_slice(json).map_err(|error| Error::internal(format!("Triton's message is not JSON: {error}")))
}

/// Converts the location of an artifact, which must be in the local file system, to a path.
///
/// # Safety
///
/// `location` is null or a C string.
pub(crate) unsafe fn artifact_path(
    kind: sys::TRITONBACKEND_ArtifactType,
    location: *const c_char,
) -> Result<PathBuf, Error> {
    use std::os::unix::ffi::OsStrExt;

    if kind != sys::TRITONBACKEND_ARTIFACT_FILESYSTEM {
        return Err(Error::unsupported(format!(
            "artifacts of type {kind} are not supported; use the file system"
        )));
    }
    let location = non_null(location.cast_mut(), "location of the artifacts")?;
    // SAFETY: not null, hence a C string. A path need not be UTF-8.
    let bytes = unsafe { std::ffi::CStr::from_ptr(location.as_ptr()) }.to_bytes();
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

/// Returns the `parameters` of a model configuration as an object of strings, `{"key": "value"}`.
/// The configuration wraps each value as `{"string_value": "value"}`.
///
/// # Errors
///
/// INVALID_ARG if a parameter has another form.
pub fn parameters(config: &Value) -> Result<Value, Error> {
    let mut flat = Map::new();
    if let Some(parameters) = config.get("parameters").and_then(Value::as_object) {
        for (key, value) in parameters {
            let text = value
                .get("string_value")
                .and_then(Value::as_str)
                .ok_or_else(|| Error::invalid_arg(format!("parameter '{key}' has no string_value")))?;
            flat.insert(key.clone(), Value::String(text.to_owned()));
        }
    }
    Ok(Value::Object(flat))
}

/// Copies a string that Triton owns.
///
/// # Safety
///
/// `get` writes null or a C string that lives until this returns.
pub(crate) unsafe fn copy_string(
    get: impl FnOnce(*mut *const c_char) -> *mut sys::TRITONSERVER_Error,
) -> Result<String, Error> {
    let mut pointer = std::ptr::null();
    // SAFETY: the caller guarantees the result of `get`.
    unsafe {
        check(get(&mut pointer))?;
        Ok(text::from_c(pointer).unwrap_or_default().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_string_values_are_unwrapped() {
        let config = json!({"parameters": {"dtype": {"string_value": "float16"}}});
        assert_eq!(parameters(&config), Ok(json!({"dtype": "float16"})));
        assert_eq!(parameters(&json!({})), Ok(json!({})));
    }

    #[test]
    fn parameters_without_string_value_is_error() {
        let config = json!({"parameters": {"dtype": {"int_value": 3}}});
        let message = parameters(&config).map_err(|error| error.message().to_owned());
        assert_eq!(message, Err("parameter 'dtype' has no string_value".to_owned()));
    }
}
