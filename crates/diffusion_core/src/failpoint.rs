//! Failures that a test arms at a fixed point of the backend.
//!
//! Without the feature `failpoints`, [`maybe_fail`] never fails and nothing can be armed.

#[cfg(not(feature = "failpoints"))]
use crate::error::Result;

/// A point at which a failure can be armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// A model is loaded.
    Load,
    /// A job is prepared from a request.
    Prepare,
    /// A UNet call.
    Step,
    /// Latents are decoded into images.
    Finish,
}

/// Returns the failure armed at this point, if any.
///
/// # Errors
/// The armed failure.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn maybe_fail(_: FailPoint) -> Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::{Fault, arm, maybe_fail};

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::{Mutex, PoisonError};

    use super::FailPoint;
    use crate::error::{Error, Result};

    /// The kind of an armed failure.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// A panic.
        Panic,
        /// An [`Error::OutOfMemory`].
        OutOfMemory,
    }

    static ARMED: Mutex<Vec<(FailPoint, Fault)>> = Mutex::new(Vec::new());

    /// Makes the next [`maybe_fail`] at `point` in this process fail, once. Repeated calls queue up.
    pub fn arm(point: FailPoint, fault: Fault) {
        ARMED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((point, fault));
    }

    /// Names a folder in which another program arms failures: it makes a file such as `step.panic` or
    /// `prepare.out_of_memory`, which the failure removes.
    const FOLDER: &str = "TRITON_DIFFUSION_FAILPOINTS";

    /// Takes a failure that another program has armed.
    fn take_file(point: FailPoint) -> Option<Fault> {
        let folder = std::env::var_os(FOLDER)?;
        let point = match point {
            FailPoint::Load => "load",
            FailPoint::Prepare => "prepare",
            FailPoint::Step => "step",
            FailPoint::Finish => "finish",
        };
        let faults = [("panic", Fault::Panic), ("out_of_memory", Fault::OutOfMemory)];
        let mut armed = faults.into_iter().filter(|(fault, _)| {
            let file = std::path::Path::new(&folder).join(format!("{point}.{fault}"));
            std::fs::remove_file(file).is_ok()
        });
        armed.next().map(|(_, fault)| fault)
    }

    /// Returns the failure armed at this point, if any.
    ///
    /// # Errors
    /// The armed failure.
    ///
    /// # Panics
    /// If the armed failure is [`Fault::Panic`].
    #[expect(clippy::panic, reason = "a test armed it")]
    pub fn maybe_fail(point: FailPoint) -> Result<()> {
        let fault = {
            let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
            let found = armed.iter().position(|(at, _)| *at == point);
            found.map(|index| armed.remove(index).1)
        };
        match fault.or_else(|| take_file(point)) {
            None => Ok(()),
            Some(Fault::OutOfMemory) => Err(Error::out_of_memory("armed failure")),
            Some(Fault::Panic) => panic!("armed panic"),
        }
    }
}
