//! Song et al., "Denoising Diffusion Implicit Models" (2020).
//!
//! Source: diffusers `schedulers/scheduling_ddim.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::alpha_schedule::{AlphaSchedule, AlphaStep};
use super::common::betas::BetasConfig;
use super::common::config::{PredictionType, RawConfig, TimestepSpacing};
use super::common::prediction::{AlphaSigma, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::spacing::{ascending, check_num_inference_steps};
use super::common::thresholding::Clipping;
use super::numerics::torch_scalar::{pow, pow_half};
use crate::torch::Generator;
use diffusion_core::Result;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    #[serde(flatten)]
    clipping: Clipping,
    set_alpha_to_one: bool,
    steps_offset: i64,
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            betas: BetasConfig::default(),
            clipping: Clipping::default(),
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
        }
    }
}

/// The configuration of `DDIMScheduler`.
#[derive(Clone, Debug)]
pub struct DdimConfig {
    keys: Keys,
    alphas: AlphaSchedule,
}

impl SchedulerBuilder for DdimConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let keys: Keys = raw.read()?;
        Ok(Self {
            alphas: AlphaSchedule::new(&keys.betas)?,
            keys,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let train = self.keys.betas.num_train_timesteps;
        let steps = options.num_inference_steps;
        check_num_inference_steps(steps, train)?;
        let mut timesteps = ascending(self.keys.timestep_spacing, train, steps, self.keys.steps_offset);
        timesteps.reverse();
        let rule = Ddim {
            keys: self.keys.clone(),
            eta: options.eta as f32,
            step_ratio: train / steps as i64,
        };
        Ok(Run::boxed(self.alphas.cursor(&timesteps)?, self.alphas.clone(), rule))
    }
}

struct Ddim {
    keys: Keys,
    eta: f32,
    step_ratio: i64,
}

impl UpdateRule for Ddim {
    type Noise = AlphaSchedule;

    fn step(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let keys = &self.keys;
        let timestep = at.timestep()?;
        let prev_timestep = timestep - self.step_ratio;
        let alpha_prod_t = at.noise.alpha_cumprod(timestep)?;
        let alpha_prod_t_prev = at.noise.alpha_prod_t_prev(prev_timestep, keys.set_alpha_to_one)?;
        let beta_prod_t = 1.0 - alpha_prod_t;

        // Formula (12): the predicted sample and the predicted noise.
        let alpha_sigma = AlphaSigma {
            alpha: pow_half(alpha_prod_t)?,
            sigma: pow_half(beta_prod_t)?,
        };
        let pred_original_sample = alpha_sigma.pred_original_sample(keys.prediction_type, model_output, sample)?;
        let pred_epsilon = alpha_sigma.pred_epsilon(keys.prediction_type, model_output, sample)?;
        let pred_original_sample = keys.clipping.apply(pred_original_sample)?;

        // Formula (16).
        let variance = ((1.0 - alpha_prod_t_prev) / beta_prod_t) * (1.0 - alpha_prod_t / alpha_prod_t_prev);
        let std_dev_t = self.eta * pow_half(variance)?;
        let pred_sample_direction =
            mul_scalar(&pred_epsilon, pow_half(1.0 - alpha_prod_t_prev - pow(std_dev_t, 2.0)?)?)?;
        let prev_sample =
            mul_scalar(&pred_original_sample, pow_half(alpha_prod_t_prev)?)?.f_add(&pred_sample_direction)?;
        if self.eta > 0.0 {
            let variance_noise = rng.randn_like(model_output, model_output.kind())?;
            return Ok(prev_sample.f_add(&mul_scalar(&variance_noise, std_dev_t)?)?);
        }
        Ok(prev_sample)
    }
}
