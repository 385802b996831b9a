//! Requests: borrowed as a batch before `accept`, owned one by one afterwards.

use std::cell::Cell;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, check, non_null};
use crate::input::Input;
use crate::instance::InstanceHandle;
use crate::response::Response;
use crate::slot::Slot;
use crate::types::MemoryType;
use crate::{sys, text};

/// The requests of one `TRITONBACKEND_ModelInstanceExecute`. Triton owns the requests until
/// [`RequestBatch::accept`]; dropping the batch returns them to Triton.
#[derive(Debug)]
pub struct RequestBatch<'call> {
    instance: &'call Arc<InstanceHandle>,
    requests: &'call [*mut sys::TRITONBACKEND_Request],
    /// Whether the slots own the requests; read by the entry point when `execute` ends.
    accepted: &'call Cell<bool>,
}

impl<'call> RequestBatch<'call> {
    /// # Safety
    ///
    /// `requests` is null or an array of `count` requests that Triton hands over and that live
    /// until this call of Execute returns an error or they are released.
    pub(crate) unsafe fn new(
        instance: &'call Arc<InstanceHandle>,
        requests: *mut *mut sys::TRITONBACKEND_Request,
        count: u32,
        accepted: &'call Cell<bool>,
    ) -> Result<Self, Error> {
        let requests = if count == 0 {
            // The array of an empty batch may be null or dangling.
            &[][..]
        } else {
            let requests = non_null(requests, "array of requests")?;
            // SAFETY: not null; the caller guarantees its length.
            unsafe { std::slice::from_raw_parts(requests.as_ptr(), count as usize) }
        };
        Ok(Self {
            instance,
            requests,
            accepted,
        })
    }

    /// Returns the number of requests, which may be 0.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Returns whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Takes ownership of the requests: creates a response for each request
    /// (`TRITONBACKEND_ResponseNew`) and starts its clock. Each slot then answers its request.
    ///
    /// # Errors
    ///
    /// A response cannot be created. Triton still owns all requests: return the error from
    /// `execute`, and Triton answers them with the error.
    pub fn accept(self) -> Result<Vec<Slot>, Error> {
        let mut slots = Vec::with_capacity(self.requests.len());
        let pairs = self
            .requests
            .iter()
            .map(|&request| {
                let request = non_null(request, "request")?;
                // SAFETY: the request is live, see `new`.
                Ok((request, unsafe { Response::new(request) }?))
            })
            .collect::<Result<Vec<_>, Error>>()
            .map_err(|error| error.context(format_args!("model '{}'", self.instance.model_name)))?;
        // Ownership changes here, because nothing below can fail.
        self.accepted.set(true);
        slots.extend(pairs.into_iter().map(|(request, response)| {
            // SAFETY: the entry point sees `accepted` and leaves the request to its slot.
            unsafe { Slot::new(Arc::clone(self.instance), request, response) }
        }));
        Ok(slots)
    }
}

/// A view of a request (`TRITONBACKEND_Request`), borrowed from its [`Slot`].
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    raw: NonNull<sys::TRITONBACKEND_Request>,
    slot: PhantomData<&'a Slot>,
}

impl<'a> Request<'a> {
    /// # Safety
    ///
    /// `raw` is not released during `'a`.
    pub(crate) unsafe fn new(raw: NonNull<sys::TRITONBACKEND_Request>) -> Self {
        Self { raw, slot: PhantomData }
    }

    /// Returns the client's id (`TRITONBACKEND_RequestId`); `None` if the id is null, empty or not
    /// UTF-8. The id is a user's text: it may be logged but must not appear in an error.
    pub fn id(&self) -> Option<&'a str> {
        let mut id = std::ptr::null();
        // SAFETY: the request is live for 'a and so is its id.
        unsafe {
            check(sys::TRITONBACKEND_RequestId(self.raw.as_ptr(), &mut id)).ok()?;
            text::borrow_c::<'a>(id).filter(|id| !id.is_empty())
        }
    }

    /// Returns whether the client has cancelled the request (`TRITONBACKEND_RequestIsCancelled`),
    /// which can happen at any time. The call is cheap enough for every denoising step.
    pub fn is_cancelled(&self) -> bool {
        let mut cancelled = false;
        // SAFETY: the request is live for 'a and the result points to a local.
        let asked = unsafe { check(sys::TRITONBACKEND_RequestIsCancelled(self.raw.as_ptr(), &mut cancelled)) };
        asked.is_ok() && cancelled
    }

    /// Returns the time limit that the client has set (`TRITONBACKEND_InferenceRequestTimeoutMicroseconds`); `None`
    /// without one.
    ///
    /// # Errors
    ///
    /// Triton cannot return the time limit.
    pub fn timeout(&self) -> Result<Option<Duration>, Error> {
        let mut microseconds = 0;
        // SAFETY: the request is live for 'a and the result points to a local.
        unsafe {
            check(sys::TRITONBACKEND_InferenceRequestTimeoutMicroseconds(
                self.raw.as_ptr(),
                &mut microseconds,
            ))?;
        }
        Ok((microseconds > 0).then(|| Duration::from_micros(microseconds)))
    }

    /// Returns the inputs of the request (`TRITONBACKEND_RequestInputByIndex`), without the optional
    /// inputs that the client omitted.
    ///
    /// # Errors
    ///
    /// Triton cannot return an input, or the type of an input is unknown.
    pub fn inputs(&self) -> Result<Vec<Input<'a>>, Error> {
        let mut count = 0;
        // SAFETY: the request is live for 'a and the result points to a local.
        unsafe {
            check(sys::TRITONBACKEND_RequestInputCount(self.raw.as_ptr(), &mut count))?;
        }
        (0..count)
            .map(|index| {
                let mut input = std::ptr::null_mut();
                // SAFETY: as above; inputs live as long as their request.
                unsafe {
                    check(sys::TRITONBACKEND_RequestInputByIndex(
                        self.raw.as_ptr(),
                        index,
                        &mut input,
                    ))?;
                    Input::new(non_null(input, "input")?)
                }
            })
            .collect()
    }

    /// Returns the input of that name; `None` if the client omitted it.
    ///
    /// # Errors
    ///
    /// Those of [`Request::inputs`].
    pub fn input(&self, name: &str) -> Result<Option<Input<'a>>, Error> {
        Ok(self.inputs()?.into_iter().find(|input| input.name() == name))
    }

    /// Returns whether an output will be in host memory (`TRITONBACKEND_RequestOutputBufferProperties`), which the client
    /// decides. True if Triton does not know before the output is made.
    pub fn output_is_on_host(&self, name: &str) -> bool {
        let Ok(name) = CString::new(name) else {
            return true;
        };
        let mut memory_type = sys::TRITONSERVER_MEMORY_CPU;
        let mut memory_type_id = 0;
        // SAFETY: the request is live for 'a, the name is a C string, a size is optional, and the results point to locals.
        let asked = unsafe {
            check(sys::TRITONBACKEND_RequestOutputBufferProperties(
                self.raw.as_ptr(),
                name.as_ptr(),
                std::ptr::null_mut(),
                &mut memory_type,
                &mut memory_type_id,
            ))
        };
        asked.is_err() || MemoryType::from_raw(memory_type).is_some_and(MemoryType::is_host)
    }

    /// Returns the names of the outputs that the client requested (`TRITONBACKEND_RequestOutputName`):
    /// all outputs of the model if the client named none.
    ///
    /// # Errors
    ///
    /// Triton cannot return a name.
    pub fn requested_outputs(&self) -> Result<Vec<&'a str>, Error> {
        let mut count = 0;
        // SAFETY: the request is live for 'a and the result points to a local.
        unsafe {
            check(sys::TRITONBACKEND_RequestOutputCount(self.raw.as_ptr(), &mut count))?;
        }
        (0..count)
            .map(|index| {
                let mut name = std::ptr::null();
                // SAFETY: as above; the names live as long as the request.
                unsafe {
                    check(sys::TRITONBACKEND_RequestOutputName(
                        self.raw.as_ptr(),
                        index,
                        &mut name,
                    ))?;
                    text::borrow_c::<'a>(name)
                }
                .ok_or_else(|| Error::internal("Triton passed a null pointer for the name of an output"))
            })
            .collect()
    }
}
