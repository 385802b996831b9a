//! The noise of the classes that look ᾱ up by the timestep: DDPM, DDIM, PNDM, LCM and TCD.

use std::sync::Arc;

use tch::Tensor;

use super::betas::BetasConfig;
use super::scheduler::{NoiseModel, Step};
use super::step_cursor::StepCursor;
use crate::schedulers::numerics::torch_scalar::host_scalar;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// ᾱ of every training timestep.
#[derive(Clone, Debug)]
pub struct AlphaSchedule {
    alphas_cumprod: Arc<[f32]>,
}

impl AlphaSchedule {
    /// Computes ᾱ of every training timestep.
    ///
    /// # Errors
    /// `InvalidArgument` for betas that make no schedule.
    pub fn new(betas: &BetasConfig) -> Result<Self> {
        Ok(Self {
            alphas_cumprod: betas.alphas_cumprod()?.into(),
        })
    }

    /// Returns the number of training timesteps.
    pub fn num_train_timesteps(&self) -> i64 {
        self.alphas_cumprod.len() as i64
    }

    /// Returns ᾱ at a timestep.
    ///
    /// # Errors
    /// `InvalidArgument` for a timestep outside of training.
    pub fn alpha_cumprod(&self, timestep: i64) -> Result<f32> {
        let index = usize::try_from(timestep).ok();
        let alpha_cumprod = index.and_then(|index| self.alphas_cumprod.get(index));
        alpha_cumprod.copied().ok_or_else(|| {
            Error::invalid_argument(format!(
                "gen_args: num_inference_steps or timesteps: timestep {timestep} is out of range; the model has {} training timesteps",
                self.alphas_cumprod.len()
            ))
        })
    }

    /// Returns ᾱ at the timestep that a step leads to. Below 0 that is diffusers' `final_alpha_cumprod`: 1 with
    /// `set_alpha_to_one`, otherwise ᾱ of timestep 0.
    ///
    /// # Errors
    /// As [`AlphaSchedule::alpha_cumprod`].
    pub fn alpha_prod_t_prev(&self, prev_timestep: i64, set_alpha_to_one: bool) -> Result<f32> {
        if prev_timestep < 0 && set_alpha_to_one {
            return Ok(1.0);
        }
        self.alpha_cumprod(prev_timestep.max(0))
    }

    /// Starts at the first of `timesteps`.
    ///
    /// # Errors
    /// `InvalidArgument` for a timestep outside of training.
    pub fn cursor(&self, timesteps: &[i64]) -> Result<StepCursor> {
        for &timestep in timesteps {
            self.alpha_cumprod(timestep)?;
        }
        Ok(StepCursor::new(timesteps.iter().map(|&t| t as f64).collect()))
    }

    /// Adds noise of one timestep's level to a clean sample of the same shape `[batch, channels, height, width]`
    /// (`add_noise` of diffusers' `schedulers/scheduling_ddpm.py`).
    ///
    /// # Errors
    /// As [`AlphaSchedule::alpha_cumprod`].
    pub fn add_noise_at(&self, timestep: i64, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // diffusers rounds the table of ᾱ to the sample's dtype before it takes the square roots.
        let alpha = host_scalar(self.alpha_cumprod(timestep)?, original.kind())?;
        let one_minus_alpha = alpha.f_neg()?.add_number(1.0)?;
        let signal = alpha.pow_number(0.5)?.f_mul(original)?;
        Ok(signal.f_add(&one_minus_alpha.pow_number(0.5)?.f_mul(noise)?)?)
    }
}

impl NoiseModel for AlphaSchedule {
    const SEARCHES_FIRST_STEP: bool = false;

    fn add_noise(&self, cursor: &StepCursor, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.add_noise_at(cursor.timestep()? as i64, original, noise)
    }
}

/// A step of these classes.
pub type AlphaStep<'a> = Step<'a, AlphaSchedule>;

impl AlphaStep<'_> {
    /// Returns the current timestep.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    pub fn timestep(&self) -> Result<i64> {
        Ok(self.cursor.timestep()? as i64)
    }

    /// Returns the timestep after the current one, unless that is the last.
    pub fn next_timestep(&self) -> Option<i64> {
        self.cursor.next_timestep().map(|timestep| timestep as i64)
    }
}
