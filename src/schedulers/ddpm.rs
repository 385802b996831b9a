//! Ho et al., "Denoising Diffusion Probabilistic Models" (2020).
//!
//! Source: diffusers `schedulers/scheduling_ddpm.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::alpha_schedule::{AlphaSchedule, AlphaStep};
use super::common::betas::BetasConfig;
use super::common::config::{PredictionType, RawConfig, TimestepSpacing};
use super::common::prediction::{AlphaSigma, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::spacing::{ascending, check_num_inference_steps};
use super::common::thresholding::Clipping;
use super::numerics::torch_scalar::{exp, log, pow_half};
use crate::torch::Generator;
use diffusion_core::Result;

/// Lower bound of the variance, which needs a logarithm.
const MIN_VARIANCE: f32 = 1e-20;

/// The variance of the noise that a step adds. The paper leaves it open.
#[expect(clippy::enum_variant_names, reason = "the names are diffusers'")]
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum VarianceType {
    /// The variance of the posterior given the clean sample.
    FixedSmall,
    /// The same variance, computed by way of its logarithm.
    FixedSmallLog,
    /// β of the step.
    FixedLarge,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    #[serde(flatten)]
    clipping: Clipping,
    variance_type: VarianceType,
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
            variance_type: VarianceType::FixedSmall,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
        }
    }
}

/// The configuration of `DDPMScheduler`.
#[derive(Clone, Debug)]
pub struct DdpmConfig {
    keys: Keys,
    alphas: AlphaSchedule,
}

impl DdpmConfig {
    fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let train = self.keys.betas.num_train_timesteps;
        check_num_inference_steps(steps, train)?;
        let mut timesteps = ascending(self.keys.timestep_spacing, train, steps, self.keys.steps_offset);
        timesteps.reverse();
        Ok(timesteps)
    }
}

impl SchedulerBuilder for DdpmConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        // diffusers takes the square root of a negative number for `fixed_large_log`.
        raw.refuse("variance_type", &["learned", "learned_range", "fixed_large_log"])?;
        let keys: Keys = raw.read()?;
        Ok(Self {
            alphas: AlphaSchedule::new(&keys.betas)?,
            keys,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let cursor = match &options.timesteps {
            Some(timesteps) => self.alphas.cursor(timesteps)?,
            None => self.alphas.cursor(&self.timesteps(options.num_inference_steps)?)?,
        };
        let keys = self.keys.clone();
        Ok(Run::boxed(cursor, self.alphas.clone(), Ddpm { keys }))
    }
}

struct Ddpm {
    keys: Keys,
}

impl UpdateRule for Ddpm {
    type Noise = AlphaSchedule;

    fn step(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let keys = &self.keys;
        let timestep = at.timestep()?;
        let alpha_prod_t = at.noise.alpha_cumprod(timestep)?;
        let alpha_prod_t_prev = match at.next_timestep() {
            Some(prev_timestep) => at.noise.alpha_cumprod(prev_timestep)?,
            None => 1.0,
        };
        let beta_prod_t = 1.0 - alpha_prod_t;
        let beta_prod_t_prev = 1.0 - alpha_prod_t_prev;
        let current_alpha_t = alpha_prod_t / alpha_prod_t_prev;
        let current_beta_t = 1.0 - current_alpha_t;

        // Formula (15): the predicted sample.
        let alpha_sigma = AlphaSigma {
            alpha: pow_half(alpha_prod_t)?,
            sigma: pow_half(beta_prod_t)?,
        };
        let pred_original_sample = alpha_sigma.pred_original_sample(keys.prediction_type, model_output, sample)?;
        let pred_original_sample = keys.clipping.apply(pred_original_sample)?;

        // Formula (7): the mean of the posterior.
        let pred_original_sample_coeff = pow_half(alpha_prod_t_prev)? * current_beta_t / beta_prod_t;
        let current_sample_coeff = pow_half(current_alpha_t)? * beta_prod_t_prev / beta_prod_t;
        let pred_prev_sample = mul_scalar(&pred_original_sample, pred_original_sample_coeff)?
            .f_add(&mul_scalar(sample, current_sample_coeff)?)?;
        if timestep == 0 {
            return Ok(pred_prev_sample);
        }
        let variance_noise = rng.randn_like(model_output, model_output.kind())?;
        // Formulas (6) and (7): the variance of the posterior.
        let variance = (beta_prod_t_prev / beta_prod_t * current_beta_t).max(MIN_VARIANCE);
        let std_dev = match keys.variance_type {
            VarianceType::FixedSmall => pow_half(variance)?,
            VarianceType::FixedSmallLog => exp(0.5 * log(variance)?)?,
            VarianceType::FixedLarge => pow_half(current_beta_t)?,
        };
        Ok(pred_prev_sample.f_add(&mul_scalar(&variance_noise, std_dev)?)?)
    }
}
