//! Luo et al., "Latent Consistency Models" (2023).
//!
//! Source: diffusers `schedulers/scheduling_lcm.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::alpha_schedule::{AlphaSchedule, AlphaStep};
use super::common::config::RawConfig;
use super::common::lcm_common::Distillation;
use super::common::prediction::{AlphaSigma, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::thresholding::Clipping;
use super::numerics::torch_scalar::{pow, pow_half, sqrt};
use crate::torch::Generator;
use diffusion_core::Result;

/// `sigma_data` squared: the variance of clean samples that the boundary condition assumes.
const DATA_VARIANCE: f32 = 0.25;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    clipping: Clipping,
    /// The factor of the timestep in the boundary condition.
    timestep_scaling: f64,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            clipping: Clipping::default(),
            timestep_scaling: 10.0,
        }
    }
}

/// The configuration of `LCMScheduler`.
#[derive(Clone, Debug)]
pub struct LcmConfig {
    keys: Keys,
    distillation: Distillation,
}

impl SchedulerBuilder for LcmConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            keys: Distillation::defaults(raw).read()?,
            distillation: Distillation::read(raw)?,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let cursor = self.distillation.cursor(options)?;
        let config = self.clone();
        Ok(Run::boxed(cursor, self.distillation.alphas.clone(), Lcm { config }))
    }
}

struct Lcm {
    config: LcmConfig,
}

impl UpdateRule for Lcm {
    type Noise = AlphaSchedule;

    fn step(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let LcmConfig { keys, distillation } = &self.config;
        let timestep = at.timestep()?;
        let alpha_prod_t = at.noise.alpha_cumprod(timestep)?;
        let alpha_sigma = AlphaSigma {
            alpha: sqrt(alpha_prod_t)?,
            sigma: sqrt(1.0 - alpha_prod_t)?,
        };
        let predicted_original_sample =
            alpha_sigma.pred_original_sample(distillation.prediction_type, model_output, sample)?;
        let predicted_original_sample = keys.clipping.apply(predicted_original_sample)?;

        // The boundary condition: at timestep 0 the sample is its own prediction.
        let scaled_timestep = timestep as f32 * keys.timestep_scaling as f32;
        let variance = pow(scaled_timestep, 2.0)? + DATA_VARIANCE;
        let c_skip = 1.0 / variance * DATA_VARIANCE;
        let c_out = scaled_timestep / pow_half(variance)?;
        let denoised = mul_scalar(&predicted_original_sample, c_out)?.f_add(&mul_scalar(sample, c_skip)?)?;

        let Some(prev_timestep) = at.next_timestep() else {
            return Ok(denoised);
        };
        let noise = rng.randn_like(model_output, denoised.kind())?;
        let alpha_prod_t_prev = at.noise.alpha_cumprod(prev_timestep)?;
        let signal = mul_scalar(&denoised, sqrt(alpha_prod_t_prev)?)?;
        Ok(signal.f_add(&mul_scalar(&noise, sqrt(1.0 - alpha_prod_t_prev)?)?)?)
    }
}
