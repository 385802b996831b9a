//! The noise of the solvers in half log-SNR: DPM-Solver (Lu et al., 2022) and the classes that follow it.
//!
//! In their terms a sample is α times the clean sample plus σ times noise, with α² + σ² = 1 and λ = log(α/σ).

use tch::Tensor;

use super::prediction::AlphaSigma;
use super::scheduler::{NoiseModel, Step};
use super::step_cursor::{StepCursor, end_of_schedule_error};
use crate::schedulers::numerics::torch_scalar::{host_scalar, log, pow, pow_half};
use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

/// One noise level, in the terms of the papers.
#[derive(Clone, Copy, Debug)]
pub struct NoiseLevel {
    /// Weight of the clean sample.
    pub alpha: f32,
    /// Weight of the noise.
    pub sigma: f32,
    /// log(alpha / sigma). Infinite without noise.
    pub lambda: f32,
}

impl NoiseLevel {
    /// Computes the level of `sigma`, the ratio of noise to signal (diffusers' `_sigma_to_alpha_sigma_t`).
    fn new(sigma: f32) -> Result<Self> {
        let alpha = 1.0 / pow_half(pow(sigma, 2.0)? + 1.0)?;
        let sigma = sigma * alpha;
        Ok(Self {
            alpha,
            sigma,
            lambda: log(alpha)? - log(sigma)?,
        })
    }

    /// Returns the weights of clean sample and noise.
    pub fn alpha_sigma(self) -> AlphaSigma {
        let Self { alpha, sigma, .. } = self;
        AlphaSigma { alpha, sigma }
    }
}

/// The ratio of noise to signal at every timestep of a run, and after its last step.
#[derive(Debug)]
pub struct LambdaSchedule {
    sigmas: Vec<f32>,
}

impl LambdaSchedule {
    /// Takes one sigma more than the run has timesteps, noisiest first.
    pub fn new(sigmas: Vec<f32>) -> Self {
        Self { sigmas }
    }

    /// Returns whether the last step leads to the sigma that it starts from.
    pub fn last_step_is_zero_length(&self) -> bool {
        matches!(self.sigmas[..], [.., from, to] if from == to)
    }
}

impl NoiseModel for LambdaSchedule {
    const SEARCHES_FIRST_STEP: bool = true;

    fn add_noise(&self, cursor: &StepCursor, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // diffusers first rounds the sigmas to the sample's dtype, and computes α and σ in that dtype.
        let sigma = *self.sigmas.get(cursor.index()).ok_or_else(end_of_schedule_error)?;
        let sigma = host_scalar(sigma, original.kind())?;
        let alpha = sigma.pow_number(2)?.add_number(1)?.pow_number(0.5)?.f_reciprocal()?;
        let sigma = sigma.f_mul(&alpha)?;
        Ok(alpha.f_mul(original)?.f_add(&sigma.f_mul(noise)?)?)
    }
}

/// A step of these classes.
pub type LambdaStep<'a> = Step<'a, LambdaSchedule>;

impl LambdaStep<'_> {
    /// Returns a noise level: for `back` 0 the one that the step leads to, for 1 the one that it starts from, for 2 the
    /// one that the step before started from, and so on.
    ///
    /// # Errors
    /// `Internal` for a level before the first or after the last.
    pub fn level(&self, back: usize) -> Result<NoiseLevel> {
        let index = (self.cursor.index() + 1).checked_sub(back);
        let sigma = index.and_then(|index| self.noise.sigmas.get(index));
        NoiseLevel::new(*sigma.ok_or_else(end_of_schedule_error)?)
    }
}
