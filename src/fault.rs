//! Planned failures, for tests.
//!
//! Without the feature `fault-injection` every check is empty and nothing can be planned.

#[cfg(not(feature = "fault-injection"))]
use crate::error::Result;

/// Where a failure can be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A model is being loaded.
    Load,
    /// A request becomes a job.
    Prepare,
    /// A UNet call.
    Step,
    /// Latents become pictures.
    Finish,
}

/// Fails as planned for this point.
///
/// # Errors
/// The planned one.
#[cfg(not(feature = "fault-injection"))]
#[inline]
pub fn check(_: Point) -> Result<()> {
    Ok(())
}

#[cfg(feature = "fault-injection")]
pub use planned::{Fault, check, plan};

#[cfg(feature = "fault-injection")]
mod planned {
    use std::sync::{Mutex, PoisonError};

    use super::Point;
    use crate::error::{Error, Result};

    /// How to fail.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// A panic.
        Panic,
        /// Memory runs out.
        OutOfMemory,
    }

    static PLANNED: Mutex<Vec<(Point, Fault)>> = Mutex::new(Vec::new());

    /// Fails the next check of `point` in this process, once. Several plans are kept in order.
    pub fn plan(point: Point, fault: Fault) {
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
    pub fn check(point: Point) -> Result<()> {
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
