//! Zheng et al., "Trajectory Consistency Distillation" (2024).
//!
//! Source: diffusers `schedulers/scheduling_tcd.py`, which reads the keys of clipping and thresholding but does neither.

use tch::Tensor;

use super::common::alpha_schedule::{AlphaSchedule, AlphaStep};
use super::common::config::{PredictionType, RawConfig};
use super::common::lcm_common::Distillation;
use super::common::prediction::{AlphaSigma, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::numerics::torch_scalar::{pow_half, sqrt};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// The configuration of `TCDScheduler`.
#[derive(Clone, Debug)]
pub struct TcdConfig {
    distillation: Distillation,
}

impl SchedulerBuilder for TcdConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            distillation: Distillation::read(raw)?,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        if !(0.0..=1.0).contains(&options.eta) {
            return Err(Error::invalid_argument(
                "gen_args: eta: must be 0 to 1 with TCDScheduler",
            ));
        }
        let rule = Tcd {
            prediction_type: self.distillation.prediction_type,
            eta: options.eta,
        };
        let cursor = self.distillation.cursor(options)?;
        Ok(Run::boxed(cursor, self.distillation.alphas.clone(), rule))
    }
}

struct Tcd {
    prediction_type: PredictionType,
    /// γ of the paper: the share of the way to the next timestep that is denoised and noised again.
    eta: f64,
}

impl UpdateRule for Tcd {
    type Noise = AlphaSchedule;

    fn step(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let prev_timestep = at.next_timestep();
        // The timestep that is denoised to, computed in float32 as in diffusers.
        let timestep_s = ((1.0 - self.eta) as f32 * prev_timestep.unwrap_or(0) as f32).floor() as i64;
        let alpha_prod_t = at.noise.alpha_cumprod(at.timestep()?)?;
        let alpha_prod_s = at.noise.alpha_cumprod(timestep_s)?;

        // diffusers takes these square roots in two ways, which differ in the last bit.
        let square_root = match self.prediction_type {
            PredictionType::Epsilon => sqrt,
            PredictionType::Sample | PredictionType::VPrediction => pow_half,
        };
        let alpha_sigma = AlphaSigma {
            alpha: square_root(alpha_prod_t)?,
            sigma: square_root(1.0 - alpha_prod_t)?,
        };
        let pred_original_sample = alpha_sigma.pred_original_sample(self.prediction_type, model_output, sample)?;
        let pred_epsilon = alpha_sigma.pred_epsilon(self.prediction_type, model_output, sample)?;
        let pred_noised_sample = mul_scalar(&pred_original_sample, sqrt(alpha_prod_s)?)?
            .f_add(&mul_scalar(&pred_epsilon, sqrt(1.0 - alpha_prod_s)?)?)?;

        let Some(prev_timestep) = prev_timestep.filter(|_| self.eta > 0.0) else {
            return Ok(pred_noised_sample);
        };
        let noise = rng.randn_like(model_output, pred_noised_sample.kind())?;
        let ratio = at.noise.alpha_cumprod(prev_timestep)? / alpha_prod_s;
        Ok(mul_scalar(&pred_noised_sample, sqrt(ratio)?)?.f_add(&mul_scalar(&noise, sqrt(1.0 - ratio)?)?)?)
    }
}
