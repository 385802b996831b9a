//! Requests: borrowed as a batch first, owned one by one after `accept`.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, check, non_null};
use crate::input::Input;
use crate::instance::InstanceHandle;
use crate::response::Response;
use crate::slot::Slot;
use crate::{sys, text};

/// The requests of one `TRITONBACKEND_ModelInstanceExecute`. They are still Triton's, and go
/// back to it if this is dropped; only [`RequestBatch::accept`] takes them over.
#[derive(Debug)]
pub struct RequestBatch<'call> {
    instance: &'call Arc<InstanceHandle>,
    requests: &'call [*mut sys::TRITONBACKEND_Request],
    /// Tells the entry point whose the requests are when `execute` has ended.
    accepted: &'call Cell<bool>,
}

impl<'call> RequestBatch<'call> {
    /// # Safety
    ///
    /// `requests` is null or an array of `count` requests that are Triton's to give away and
    /// that stay until this call of Execute returns an error or they are released.
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
            // SAFETY: not null; the caller vouches for its length.
            unsafe { std::slice::from_raw_parts(requests.as_ptr(), count as usize) }
        };
        Ok(Self {
            instance,
            requests,
            accepted,
        })
    }

    /// How many requests there are. Can be 0.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Takes the requests over: makes a response for each of them (`TRITONBACKEND_ResponseNew`)
    /// and starts their clocks. From here on each slot answers for its request.
    ///
    /// # Errors
    ///
    /// If a response cannot be made. Those made before are deleted and all requests stay
    /// Triton's: return the error from `execute`, and Triton answers them with it.
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
        // Nothing below can fail, so the requests change hands here.
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

    /// The id that the client gave (`TRITONBACKEND_RequestId`); `None` if it is null, empty or
    /// not UTF-8. It is the user's text: good for a log, not for an error.
    pub fn id(&self) -> Option<&'a str> {
        let mut id = std::ptr::null();
        // SAFETY: the request is live for 'a and so is its id.
        unsafe {
            check(sys::TRITONBACKEND_RequestId(self.raw.as_ptr(), &mut id)).ok()?;
            text::borrow_c::<'a>(id).filter(|id| !id.is_empty())
        }
    }

    /// Whether the client has taken the request back (`TRITONBACKEND_RequestIsCancelled`). Can
    /// become true at any time; cheap enough to ask in each step.
    pub fn is_cancelled(&self) -> bool {
        let mut cancelled = false;
        // SAFETY: the request is live for 'a and the result points to a local.
        let asked = unsafe { check(sys::TRITONBACKEND_RequestIsCancelled(self.raw.as_ptr(), &mut cancelled)) };
        asked.is_ok() && cancelled
    }

    /// All inputs of the request (`TRITONBACKEND_RequestInputByIndex`). Optional inputs that
    /// the client left out are not among them.
    ///
    /// # Errors
    ///
    /// If Triton does not give an input or its type is not known.
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

    /// The input of that name; `None` if the client left it out.
    ///
    /// # Errors
    ///
    /// As [`Request::inputs`].
    pub fn input(&self, name: &str) -> Result<Option<Input<'a>>, Error> {
        Ok(self.inputs()?.into_iter().find(|input| input.name() == name))
    }

    /// The names of the outputs that the client wants (`TRITONBACKEND_RequestOutputName`).
    /// Triton names all of the model's if the client named none.
    ///
    /// # Errors
    ///
    /// If Triton does not give a name.
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
                .ok_or_else(|| Error::internal("Triton passed an output without a name"))
            })
            .collect()
    }
}
