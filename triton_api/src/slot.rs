//! An accepted request that must be answered.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, check};
use crate::instance::InstanceHandle;
use crate::request::Request;
use crate::response::{OutputTensor, Parameter, Response};
use crate::stats::{Stopwatch, report_batch, report_request, steady_clock_ns};
use crate::{log_error, optional, sys, text};

/// An accepted request with its response.
///
/// A slot ends by [`respond`](Slot::respond), by [`fail`](Slot::fail) or by being dropped. On each
/// path, the client gets one final response, Triton gets the statistics and the request is
/// released, once each and in this order. A slot may end on any thread, long after `execute` has
/// returned. All slots must end before the drop of their instance returns, because Triton may
/// then free the instance.
#[derive(Debug)]
pub struct Slot {
    instance: Arc<InstanceHandle>,
    request: NonNull<sys::TRITONBACKEND_Request>,
    /// The next response; `None` if Triton has refused to make it.
    response: Option<Response>,
    has_ended: bool,
    stopwatch: Stopwatch,
    batch_size: u64,
}

// SAFETY: a request and its response may be used from any thread, one at a time, and `Slot` has
// no method that changes them through a shared reference.
unsafe impl Send for Slot {}

impl Slot {
    /// # Safety
    ///
    /// The request is live, and nothing else will answer or release it.
    pub(crate) unsafe fn new(
        instance: Arc<InstanceHandle>,
        request: NonNull<sys::TRITONBACKEND_Request>,
        response: Response,
    ) -> Self {
        Self {
            instance,
            request,
            response: Some(response),
            has_ended: false,
            stopwatch: Stopwatch::start(),
            batch_size: 1,
        }
    }

    /// Returns the name of the model that the request is for.
    pub fn model_name(&self) -> &str {
        &self.instance.model_name
    }

    /// Returns the request with its id, inputs and requested outputs.
    pub fn request(&self) -> Request<'_> {
        // SAFETY: the request is released when the slot ends, which a borrow of it prevents.
        unsafe { Request::new(self.request) }
    }

    /// Returns whether the client has cancelled the request ([`Request::is_cancelled`]).
    pub fn is_cancelled(&self) -> bool {
        self.request().is_cancelled()
    }

    /// Adds a parameter to the next response. Triton does not replace a parameter, so set each name once.
    ///
    /// # Errors
    ///
    /// Triton rejects the parameter.
    pub fn set_parameter(&mut self, name: &str, value: impl Into<Parameter>) -> Result<(), Error> {
        match &mut self.response {
            Some(response) => response.set_parameter(name, &value.into()),
            None => Ok(()),
        }
    }

    /// Sends a response with parameters and the requested ones of `outputs`, which others follow. The model must be decoupled
    /// (`model_transaction_policy` in its configuration).
    ///
    /// # Errors
    ///
    /// Triton rejects the response, an output or a parameter. The slot has not ended.
    pub fn send_partial(
        &mut self,
        outputs: &[OutputTensor<'_>],
        parameters: &[(&str, Parameter)],
    ) -> Result<(), Error> {
        let mut response = self.take_response()?;
        let made = parameters
            .iter()
            .try_for_each(|(name, value)| response.set_parameter(name, value))
            .and_then(|()| self.add_outputs(&mut response, outputs));
        // Triton's gRPC front end has one response of a request at a time: the next one is made when this one is sent.
        let sent = match made {
            Ok(()) => response.send_partial(),
            Err(error) => {
                drop(response);
                Err(error)
            }
        };
        self.response = Some(self.take_response()?);
        sent
    }

    /// Takes the next response, and makes it if there is none.
    fn take_response(&mut self) -> Result<Response, Error> {
        match self.response.take() {
            Some(response) => Ok(response),
            // SAFETY: the slot owns the request, which is not released yet.
            None => unsafe { Response::new(self.request) },
        }
    }

    /// Records that work on the request begins. The time before counts as queue time. Without a call, work begins when the
    /// request is accepted.
    pub fn mark_exec_start(&mut self) {
        self.stopwatch.mark_exec_start();
    }

    /// Records that the inputs are read and computing begins (see [`Timestamps`](crate::Timestamps)).
    pub fn mark_compute_start(&mut self) {
        self.stopwatch.mark_compute_start();
    }

    /// Records that computing has ended and building the outputs begins. A later call replaces the time.
    pub fn mark_compute_end(&mut self) {
        self.stopwatch.mark_compute_end();
    }

    /// Reports activities to the trace of the request, if it is traced: names and times of [`steady_clock_ns`]. Servers
    /// before 24.07 have no such activities.
    ///
    /// # Errors
    ///
    /// Triton rejects an activity.
    pub fn report_activities<'n>(&mut self, activities: impl IntoIterator<Item = (&'n str, u64)>) -> Result<(), Error> {
        let Some(functions) = optional::traces() else {
            return Ok(());
        };
        let mut trace = std::ptr::null_mut();
        // SAFETY: the slot owns the request, which is not released yet; the trace stays the request's.
        unsafe { check((functions.of_request)(self.request.as_ptr(), &mut trace))? };
        if trace.is_null() {
            return Ok(());
        }
        for (name, time) in activities {
            let name = text::to_c(name);
            // SAFETY: the trace lives as long as the request; Triton copies the name.
            unsafe { check((functions.report_activity)(trace, time, name.as_ptr()))? };
        }
        Ok(())
    }

    /// Sets the number of batch elements in the request, for the batch statistics. The default is 1.
    pub fn set_batch_size(&mut self, batch_size: u64) {
        self.batch_size = batch_size.max(1);
    }

    /// Answers with the requested ones of `outputs`, in host memory.
    ///
    /// # Errors
    ///
    /// An output cannot be built, and the client got this error; or the response cannot be sent.
    /// The slot has ended in both cases.
    pub fn respond(mut self, outputs: &[OutputTensor<'_>]) -> Result<(), Error> {
        let made = self.take_response().and_then(|mut response| {
            let made = self.add_outputs(&mut response, outputs);
            self.response = Some(response);
            made
        });
        self.finish(made.as_ref().err())?;
        made
    }

    /// Answers with an error.
    pub fn fail(mut self, error: &Error) {
        // `finish` has logged a failure to send.
        let _ = self.finish(Some(error));
    }

    /// Adds the outputs that the client asks for to a response.
    fn add_outputs(&self, response: &mut Response, outputs: &[OutputTensor<'_>]) -> Result<(), Error> {
        let in_model = |error: Error| error.context(format_args!("model '{}'", self.instance.model_name));
        let request = self.request();
        let wanted = request.requested_outputs().map_err(in_model)?;
        for output in outputs {
            if wanted.contains(&output.name()) {
                response.add_output(output).map_err(in_model)?;
            }
        }
        Ok(())
    }

    /// Sends the response, reports statistics and releases the request, once. Never panics, because `drop` calls it.
    fn finish(&mut self, error: Option<&Error>) -> Result<(), Error> {
        if std::mem::replace(&mut self.has_ended, true) {
            return Ok(());
        }
        let sent = self.take_response().and_then(|response| response.send(error));
        if let Err(error) = &sent {
            log_error!("model '{}': cannot send a response: {error}", self.instance.model_name);
        }
        let success = error.is_none() && sent.is_ok();
        self.report(success);
        // SAFETY: the request is owned and not used after this: the slot has ended.
        let released = unsafe {
            check(sys::TRITONBACKEND_RequestRelease(
                self.request.as_ptr(),
                sys::TRITONSERVER_REQUEST_RELEASE_ALL,
            ))
        };
        if let Err(error) = released {
            log_error!(
                "model '{}': cannot release a request: {error}",
                self.instance.model_name
            );
        }
        sent
    }

    fn report(&self, success: bool) {
        let times = self.stopwatch.stop(steady_clock_ns());
        self.instance.with(|instance| {
            // SAFETY: `with` keeps the instance and the request is not released yet.
            let reported = unsafe {
                report_request(instance, self.request, success, &times).and_then(|()| {
                    // A request that was refused, or that ended while it waited, was not executed.
                    if success || self.stopwatch.has_computed() {
                        report_batch(instance, self.batch_size, &times)
                    } else {
                        Ok(())
                    }
                })
            };
            if let Err(error) = reported {
                log_error!(
                    "model '{}': cannot report statistics: {error}",
                    self.instance.model_name
                );
            }
        });
    }
}

impl Drop for Slot {
    /// Answers with INTERNAL unless the slot has ended; a panic can drop a slot early.
    fn drop(&mut self) {
        if !self.has_ended {
            let error = Error::internal(format!(
                "model '{}': the request was dropped without a response",
                self.instance.model_name
            ));
            // `finish` has logged a failure to send.
            let _ = self.finish(Some(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_send() {
        fn movable<T: Send + 'static>() {}
        movable::<Slot>();
    }
}
