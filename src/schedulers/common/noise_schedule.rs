//! The timesteps of a run with their sigmas.

use diffusion_core::{Error, Result};

/// The timesteps of a run and the sigma of each, noisiest first.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    /// The network's input.
    pub timesteps: Vec<f64>,
    /// Noise over signal, without the sigma after the last step.
    pub sigmas: Vec<f64>,
}

impl NoiseSchedule {
    /// Returns the sigmas in float32, and `last` after the last step.
    pub fn sigmas_to(&self, last: f32) -> Vec<f32> {
        let sigmas = self.sigmas.iter().map(|&sigma| sigma as f32);
        sigmas.chain([last]).collect()
    }

    /// Returns the timesteps rounded to float32.
    pub fn float32_timesteps(&self) -> Vec<f64> {
        let rounded = |&timestep: &f64| f64::from(timestep as f32);
        self.timesteps.iter().map(rounded).collect()
    }

    /// Refuses equal sigmas of neighboring steps for a solver of `order`. From order 2 on a solver divides by the
    /// distance of sigmas.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the argument.
    pub fn check_distances(&self, order: usize) -> Result<()> {
        if order > 1 && self.sigmas.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(equal_noise_levels_error());
        }
        Ok(())
    }
}

/// Returns the error for two steps of one noise level, where a solver cannot divide by their distance.
pub fn equal_noise_levels_error() -> Error {
    Error::invalid_argument(
        "gen_args: num_inference_steps: too many for this scheduler: two steps have the same noise level",
    )
}

/// Repeats each number but the first, for the classes that call the network twice a step (diffusers'
/// `repeat_interleave(2)`).
pub fn repeat_interior<T: Copy>(numbers: &[T]) -> Vec<T> {
    let first = numbers.iter().take(1).copied();
    let rest = numbers.iter().skip(1).flat_map(|&number| [number, number]);
    first.chain(rest).collect()
}
