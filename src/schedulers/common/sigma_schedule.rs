//! The noise of the classes that count in sigmas, and their formulas.
//!
//! Source: `scale_model_input`, `add_noise`, `init_noise_sigma` and `step` of diffusers'
//! `schedulers/scheduling_euler_discrete.py`.

use tch::Tensor;

use super::config::{PredictionType, TimestepSpacing};
use super::prediction::mul_scalar;
use super::scheduler::{NoiseModel, Step};
use super::step_cursor::{StepCursor, end_of_schedule_error};
use crate::schedulers::numerics::torch_scalar::host_scalar;
use crate::schedulers::numerics::torch_scalar::{pow, pow_half};
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// The sigma of every timestep of a run, and those after its last step.
pub struct SigmaSchedule {
    sigmas: Vec<f32>,
    init_noise_sigma: f64,
}

impl SigmaSchedule {
    /// Takes at least one sigma more than the run has timesteps, noisiest first.
    pub fn new(sigmas: Vec<f32>, spacing: TimestepSpacing) -> Result<Self> {
        let max = sigmas.iter().copied().fold(0.0, f32::max);
        let init_noise_sigma = f64::from(match spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
            TimestepSpacing::Leading => sqrt_sigma_sq_plus_one(max)?,
        });
        Ok(Self {
            sigmas,
            init_noise_sigma,
        })
    }

    /// Returns the sigma at an index of the run.
    ///
    /// # Errors
    /// `Internal` for an index past the end.
    pub fn sigma(&self, index: usize) -> Result<f32> {
        self.sigmas.get(index).copied().ok_or_else(end_of_schedule_error)
    }
}

impl NoiseModel for SigmaSchedule {
    const SEARCHES_FIRST_STEP: bool = true;

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, cursor: &StepCursor, sample: &Tensor) -> Result<Tensor> {
        scale_model_input(sample, self.sigma(cursor.index())?)
    }

    fn add_noise(&self, cursor: &StepCursor, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // diffusers first rounds the sigmas to the sample's dtype.
        let sigma = host_scalar(self.sigma(cursor.index())?, original.kind())?;
        Ok(original.f_add(&noise.f_mul(&sigma)?)?)
    }
}

/// A step of these classes.
pub type SigmaStep<'a> = Step<'a, SigmaSchedule>;

impl SigmaStep<'_> {
    /// Returns the sigma that the step starts from.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    pub fn sigma(&self) -> Result<f32> {
        self.noise.sigma(self.cursor.index())
    }

    /// Returns the sigma that the step leads to.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    pub fn sigma_next(&self) -> Result<f32> {
        self.noise.sigma(self.cursor.index() + 1)
    }
}

/// Returns the error for an ancestral step so large that float32 cannot tell its `sigma_down` from 0. diffusers
/// computes NaN there.
pub fn step_too_large_error() -> Error {
    Error::invalid_argument(
        "gen_args: num_inference_steps: too few for ancestral sampling with this model's noise schedule",
    )
}

/// Computes `(sigma ** 2 + 1) ** 0.5`.
fn sqrt_sigma_sq_plus_one(sigma: f32) -> Result<f32> {
    pow_half(pow(sigma, 2.0)? + 1.0)
}

/// Scales a sample of noise level `sigma` to variance 1.
pub fn scale_model_input(sample: &Tensor, sigma: f32) -> Result<Tensor> {
    sample.div_number(f64::from(sqrt_sigma_sq_plus_one(sigma)?))
}

/// Returns the clean sample that `model_output` predicts for `sample`.
pub fn pred_original_sample(
    prediction_type: PredictionType,
    model_output: &Tensor,
    sample: &Tensor,
    sigma: f32,
) -> Result<Tensor> {
    match prediction_type {
        PredictionType::Epsilon => Ok(sample.f_sub(&mul_scalar(model_output, sigma)?)?),
        PredictionType::VPrediction => {
            let from_output = mul_scalar(model_output, -sigma / sqrt_sigma_sq_plus_one(sigma)?)?;
            let from_sample = sample.div_number(f64::from(pow(sigma, 2.0)? + 1.0))?;
            Ok(from_output.f_add(&from_sample)?)
        }
        PredictionType::Sample => Ok(model_output.shallow_clone()),
    }
}

/// Returns dx/dσ of the probability flow (Karras et al., 2022, equation 3).
pub fn derivative(sample: &Tensor, pred_original_sample: &Tensor, sigma: f32) -> Result<Tensor> {
    sample.f_sub(pred_original_sample)?.div_number(f64::from(sigma))
}

/// Returns `sample + derivative · dt`.
pub fn euler_step(sample: &Tensor, derivative: &Tensor, dt: f32) -> Result<Tensor> {
    Ok(sample.f_add(&mul_scalar(derivative, dt)?)?)
}
