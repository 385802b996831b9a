//! Planned failures, for tests.
//!
//! Without the feature `failpoints` every check is empty and nothing can be planned.

#[cfg(not(feature = "failpoints"))]
use crate::error::Result;

/// Where a failure can be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// A model is being loaded.
    Load,
    /// A request becomes a job.
    Prepare,
    /// A UNet call.
    Step,
    /// Latents become images.
    Finish,
}

/// Fails as planned for this point.
///
/// # Errors
/// The planned one.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn check(_: FailPoint) -> Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use planned::{Fault, check, plan};

#[cfg(feature = "failpoints")]
mod planned {
    use std::sync::{Mutex, PoisonError};

    use super::FailPoint;
    use crate::error::{Error, Result};

    /// How to fail.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// A panic.
        Panic,
        /// Memory runs out.
        OutOfMemory,
    }

    static PLANNED: Mutex<Vec<(FailPoint, Fault)>> = Mutex::new(Vec::new());

    /// Fails the next check of `point` in this process, once. Several plans are kept in order.
    pub fn plan(point: FailPoint, fault: Fault) {
        PLANNED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((point, fault));
    }

    /// Fails as planned for this point.
    ///
    /// # Errors
    /// The planned one.
    ///
    /// # Panics
    /// If that is the plan.
    #[expect(clippy::panic, reason = "a planned panic is what tests ask for")]
    pub fn check(point: FailPoint) -> Result<()> {
        let fault = {
            let mut planned = PLANNED.lock().unwrap_or_else(PoisonError::into_inner);
            let found = planned.iter().position(|(at, _)| *at == point);
            found.map(|index| planned.remove(index).1)
        };
        match fault {
            None => Ok(()),
            Some(Fault::OutOfMemory) => Err(Error::out_of_memory("a planned failure")),
            Some(Fault::Panic) => panic!("a planned panic"),
        }
    }
}
