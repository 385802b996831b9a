//! The state that the samplers which count in sigmas have in common, and their formulas.
//!
//! Source: `scale_model_input`, `add_noise`, `index_for_timestep`, `init_noise_sigma` and `step` of
//! diffusers' `schedulers/scheduling_euler_discrete.py`.

use tch::Tensor;

use super::config::{PredictionType, TimestepSpacing};
use crate::schedulers::numerics::torch_scalar::{pow, root};
use crate::schedulers::past_the_end;
use diffusion_core::{Error, Result};

/// Where a run is.
pub struct Run {
    /// One for each call of the network.
    timesteps: Vec<f64>,
    /// At least one more.
    sigmas: Vec<f32>,
    begin: Option<usize>,
    index: usize,
    init_noise_sigma: f64,
}

impl Run {
    /// A run that no [`set_begin_index`](Run::set_begin_index) has been said to.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(timesteps: Vec<f64>, sigmas: Vec<f32>, spacing: TimestepSpacing) -> Result<Self> {
        let max = sigmas.iter().copied().fold(0.0, f32::max);
        let init_noise_sigma = f64::from(match spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
            TimestepSpacing::Leading => root_of_one_more(max)?,
        });
        Ok(Self {
            index: first_index(&timesteps),
            timesteps,
            sigmas,
            begin: None,
            init_noise_sigma,
        })
    }

    /// The timesteps from the begin index on.
    pub fn timesteps(&self) -> &[f64] {
        self.timesteps.get(self.begin.unwrap_or(0)..).unwrap_or_default()
    }

    /// Standard deviation of the starting noise.
    pub fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    /// Leaves out the first timesteps.
    pub fn set_begin_index(&mut self, begin_index: usize) {
        self.begin = Some(begin_index);
        self.index = begin_index;
    }

    /// The place of the next call among all timesteps.
    ///
    /// # Errors
    /// A run that is at its end; `InvalidArgument` for one that cannot begin.
    pub fn index(&self) -> Result<usize> {
        if self.index >= self.timesteps.len() {
            return Err(past_the_end());
        }
        // Such a run of diffusers starts at the second of the two and fails at its end, where it
        // wants a sigma too many.
        if self.begin.is_none() && first_index(&self.timesteps) > 0 {
            return Err(Error::invalid_argument(
                "gen_args: num_inference_steps, timesteps or sigmas: the run's first timestep comes twice, with which this scheduler cannot begin",
            ));
        }
        Ok(self.index)
    }

    /// The sigma at a place.
    ///
    /// # Errors
    /// A place past the end.
    pub fn sigma(&self, index: usize) -> Result<f32> {
        self.sigmas.get(index).copied().ok_or_else(past_the_end)
    }

    /// Goes on to the next call.
    pub fn advance(&mut self) {
        self.index += 1;
    }

    /// A clean sample with noise of the present sigma.
    ///
    /// # Errors
    /// Out of memory, or a run that is at its end.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // diffusers first rounds the sigmas to the sample's dtype.
        let sigma = Tensor::f_from_slice(&[self.sigma(self.index()?)?])?
            .f_to_kind(original.kind())?
            .f_view([1, 1, 1, 1])?
            .f_to_device(original.device())?;
        Ok(original.f_add(&noise.f_mul(&sigma)?)?)
    }
}

/// Where a run begins that is not told where: at the second of equal timesteps, so that one that
/// starts in the middle does not skip a sigma.
fn first_index(timesteps: &[f64]) -> usize {
    let mut equal = (0..timesteps.len()).filter(|&i| timesteps.get(i) == timesteps.first());
    equal.nth(1).unwrap_or(0)
}

/// The error for an ancestral step whose way down is so long that float32 cannot tell it from the way
/// to no noise, of which diffusers makes NaN.
pub fn too_steep() -> Error {
    Error::invalid_argument(
        "gen_args: num_inference_steps: so few steps are too far apart for ancestral sampling with this model's noise schedule",
    )
}

/// `(sigma ** 2 + 1) ** 0.5`.
fn root_of_one_more(sigma: f32) -> Result<f32> {
    root(pow(sigma, 2.0)? + 1.0)
}

/// `a·x`.
///
/// # Errors
/// Out of memory.
pub fn times(x: &Tensor, a: f32) -> Result<Tensor> {
    Ok(x.f_mul_scalar(f64::from(a))?)
}

/// The sample as the network wants it: with variance 1.
///
/// # Errors
/// Out of memory.
pub fn scale(sample: &Tensor, sigma: f32) -> Result<Tensor> {
    Ok(sample.f_div_scalar(f64::from(root_of_one_more(sigma)?))?)
}

/// The clean sample that the network's output predicts behind `sample`.
///
/// # Errors
/// Out of memory.
pub fn pred_original_sample(
    prediction_type: PredictionType,
    model_output: &Tensor,
    sample: &Tensor,
    sigma: f32,
) -> Result<Tensor> {
    match prediction_type {
        PredictionType::Epsilon => Ok(sample.f_sub(&times(model_output, sigma)?)?),
        PredictionType::VPrediction => {
            let from_output = times(model_output, -sigma / root_of_one_more(sigma)?)?;
            let from_sample = sample.f_div_scalar(f64::from(pow(sigma, 2.0)? + 1.0))?;
            Ok(from_output.f_add(&from_sample)?)
        }
        PredictionType::Sample => Ok(model_output.shallow_clone()),
    }
}

/// dx/dσ of the probability flow (Karras et al., 2022, equation 3).
///
/// # Errors
/// Out of memory.
pub fn derivative(sample: &Tensor, pred_original_sample: &Tensor, sigma: f32) -> Result<Tensor> {
    Ok(sample.f_sub(pred_original_sample)?.f_div_scalar(f64::from(sigma))?)
}

/// `sample + derivative · dt`.
///
/// # Errors
/// Out of memory.
pub fn along(sample: &Tensor, derivative: &Tensor, dt: f32) -> Result<Tensor> {
    Ok(sample.f_add(&times(derivative, dt)?)?)
}
