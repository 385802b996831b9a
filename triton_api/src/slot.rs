//! An accepted request and the promise to answer it.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, check};
use crate::instance::InstanceHandle;
use crate::request::Request;
use crate::response::{OutputTensor, Parameter, Response};
use crate::stats::{Stopwatch, report_batch, report_request, steady_clock_ns};
use crate::{log_error, sys};

/// An accepted request with its response.
///
/// A slot owns both. However it ends, by [`respond`](Slot::respond), by [`fail`](Slot::fail) or
/// by being dropped, the client gets one final response, Triton gets the statistics, and the
/// request is released, once each and in this order. It may end on any thread, long after
/// `execute` has returned; but the instance must have ended all its slots when its own drop
/// returns, for Triton may free the instance then.
#[derive(Debug)]
pub struct Slot {
    instance: Arc<InstanceHandle>,
    request: NonNull<sys::TRITONBACKEND_Request>,
    /// `None` once the slot has ended.
    response: Option<Response>,
    stopwatch: Stopwatch,
    batch_size: u64,
}

// SAFETY: a request and its response may be used from any thread, one at a time, and `Slot` has
// no method that changes them through a shared reference.
unsafe impl Send for Slot {}

impl Slot {
    /// # Safety
    ///
    /// The request is live and nobody else will answer or release it.
    pub(crate) unsafe fn new(
        instance: Arc<InstanceHandle>,
        request: NonNull<sys::TRITONBACKEND_Request>,
        response: Response,
    ) -> Self {
        Self {
            instance,
            request,
            response: Some(response),
            stopwatch: Stopwatch::start(),
            batch_size: 1,
        }
    }

    /// The name of the model that was asked.
    pub fn model_name(&self) -> &str {
        &self.instance.model_name
    }

    /// The request: its id, inputs and wanted outputs.
    pub fn request(&self) -> Request<'_> {
        // SAFETY: the request is released when the slot ends, which a borrow of it prevents.
        unsafe { Request::new(self.request) }
    }

    /// Whether the client has taken the request back ([`Request::is_cancelled`]).
    pub fn is_cancelled(&self) -> bool {
        self.request().is_cancelled()
    }

    /// Adds a parameter to the response. Set each name once: Triton does not replace.
    ///
    /// # Errors
    ///
    /// If Triton rejects it.
    pub fn set_parameter(&mut self, name: &str, value: impl Into<Parameter>) -> Result<(), Error> {
        match &mut self.response {
            Some(response) => response.set_parameter(name, &value.into()),
            None => Ok(()),
        }
    }

    /// The inputs are read and the computation begins (see [`Timestamps`](crate::Timestamps)).
    pub fn mark_compute_start(&mut self) {
        self.stopwatch.mark_compute_start();
    }

    /// The computation has ended and the outputs are about to be made.
    pub fn mark_compute_end(&mut self) {
        self.stopwatch.mark_compute_end();
    }

    /// How many rows the request has, for the batch statistics; 1 unless set.
    pub fn set_batch_size(&mut self, rows: u64) {
        self.batch_size = rows.max(1);
    }

    /// Answers with those of `outputs` that the client wants. Their buffers are made here, in
    /// host memory.
    ///
    /// # Errors
    ///
    /// If an output cannot be made, the client has been answered with this error; if the
    /// response cannot be sent, nothing more can be done. Either way the slot has ended.
    pub fn respond(mut self, outputs: &[OutputTensor<'_>]) -> Result<(), Error> {
        let made = self.add_outputs(outputs);
        self.finish(made.as_ref().err())?;
        made
    }

    /// Answers with an error.
    pub fn fail(mut self, error: &Error) {
        // A failure to send has been logged.
        let _ = self.finish(Some(error));
    }

    fn add_outputs(&mut self, outputs: &[OutputTensor<'_>]) -> Result<(), Error> {
        let in_model = |error: Error| error.context(format_args!("model '{}'", self.instance.model_name));
        // SAFETY: as in `request`; borrowed apart from the response.
        let request: Request<'_> = unsafe { Request::new(self.request) };
        let wanted = request.requested_outputs().map_err(in_model)?;
        if let Some(response) = &mut self.response {
            for output in outputs {
                if wanted.contains(&output.name()) {
                    response.add_output(output).map_err(in_model)?;
                }
            }
        }
        Ok(())
    }

    /// Sends, reports and releases, unless that has been done. Does not panic: it runs in `drop`.
    fn finish(&mut self, error: Option<&Error>) -> Result<(), Error> {
        let Some(response) = self.response.take() else {
            return Ok(());
        };
        let sent = response.send(error);
        if let Err(error) = &sent {
            log_error!("model '{}': no response: {error}", self.instance.model_name);
        }
        let success = error.is_none() && sent.is_ok();
        self.report(success);
        // SAFETY: the request is owned and not used after this: `response` is `None` now.
        let released = unsafe {
            check(sys::TRITONBACKEND_RequestRelease(
                self.request.as_ptr(),
                sys::TRITONSERVER_REQUEST_RELEASE_ALL,
            ))
        };
        if let Err(error) = released {
            log_error!(
                "model '{}': a request was not released: {error}",
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
                report_request(instance, self.request, success, &times).and(report_batch(
                    instance,
                    self.batch_size,
                    &times,
                ))
            };
            if let Err(error) = reported {
                log_error!("model '{}': no statistics: {error}", self.instance.model_name);
            }
        });
    }
}

impl Drop for Slot {
    /// Answers with INTERNAL if nothing else did, as when a panic unwinds past the slot.
    fn drop(&mut self) {
        if self.response.is_some() {
            let error = Error::internal(format!(
                "model '{}': the request was given up before it was answered",
                self.instance.model_name
            ));
            // A failure to send has been logged.
            let _ = self.finish(Some(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_can_go_to_another_thread() {
        fn movable<T: Send + 'static>() {}
        movable::<Slot>();
    }
}
