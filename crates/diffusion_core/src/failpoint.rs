//! Armed failures, for tests.
//!
//! Without the feature `failpoints` nothing can be armed and [`maybe_fail`] does nothing.

#[cfg(not(feature = "failpoints"))]
use crate::error::Result;

/// A place in the code that a test can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// The load of a model.
    Load,
    /// The preparation of a job from a request.
    Prepare,
    /// A UNet call.
    Step,
    /// The decoding of latents into images.
    Finish,
}

/// Fails if a failure is armed for this point.
///
/// # Errors
/// The armed failure.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn maybe_fail(_: FailPoint) -> Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::{Failure, arm, maybe_fail};

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::{Mutex, PoisonError};

    use super::FailPoint;
    use crate::error::{Error, Result};

    /// How a point fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Failure {
        /// It panics.
        Panic,
        /// It returns an out-of-memory error.
        OutOfMemory,
    }

    static ARMED: Mutex<Vec<(FailPoint, Failure)>> = Mutex::new(Vec::new());

    /// Makes the next pass of `point` in this process fail, once. Several failures of one point happen in the order of
    /// the calls.
    pub fn arm(point: FailPoint, failure: Failure) {
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        armed.push((point, failure));
    }

    /// Fails if a failure is armed for this point.
    ///
    /// # Errors
    /// The armed failure.
    ///
    /// # Panics
    /// If the armed failure is a panic.
    #[expect(clippy::panic, reason = "a test armed the panic")]
    pub fn maybe_fail(point: FailPoint) -> Result<()> {
        let failure = {
            let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
            let found = armed.iter().position(|(at, _)| *at == point);
            found.map(|index| armed.remove(index).1)
        };
        match failure {
            None => Ok(()),
            Some(Failure::OutOfMemory) => Err(Error::out_of_memory("an armed failure")),
            Some(Failure::Panic) => panic!("an armed panic"),
        }
    }
}
