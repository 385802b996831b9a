//! When the phases of a job ended.

use std::time::Instant;

/// The ends of a job's phases. Each phase begins where the one before ends.
///
/// A GPU computes behind the calls: there the phases before the decoding show when the work was handed over.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// The job was started.
    pub started: Instant,
    /// The prompts were encoded.
    pub text_encoded: Instant,
    /// The input images were encoded, the depth was estimated and the noise was drawn.
    pub prepared: Instant,
    /// The last step was taken. Steps of other jobs are in the time too.
    pub stepped: Instant,
    /// The images were decoded and checked.
    pub decoded: Instant,
}
