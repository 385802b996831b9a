//! Ho et al., "Denoising Diffusion Probabilistic Models" (2020).
//!
//! Source: diffusers `schedulers/scheduling_ddpm.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::config::{PredictionType, RawConfig, TimestepSpacing};
use super::common::noise_schedule::{BetasConfig, add_noise, to_vec};
use super::common::prediction::{Shares, times};
use super::common::spacing::ascending;
use super::common::steps::Steps;
use super::common::threshold::Clipping;
use super::numerics::torch_scalar::{exp, log, root};
use super::{Family, Plan, Scheduler, at, check_steps};
use crate::torch::Generator;
use diffusion_core::Result;

/// The least variance, so that it has a logarithm.
const MIN_VARIANCE: f32 = 1e-20;

/// The variance of the noise that a step adds, which the paper leaves open.
#[expect(clippy::enum_variant_names, reason = "the names are diffusers'")]
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum VarianceType {
    /// That of the posterior given the clean sample.
    FixedSmall,
    /// The same through its logarithm.
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

/// `DDPMScheduler`.
#[derive(Clone, Debug)]
pub struct DdpmConfig {
    keys: Keys,
    alphas_cumprod: Vec<f32>,
}

impl DdpmConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for a variance that the network would have to
    /// predict, and for `fixed_large_log`, of which diffusers takes the root of a negative number.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        raw.refuse("variance_type", &["learned", "learned_range", "fixed_large_log"])?;
        let keys: Keys = raw.read()?;
        Ok(Self {
            alphas_cumprod: to_vec(&keys.betas.alphas_cumprod()?)?,
            keys,
        })
    }

    fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let keys = &self.keys;
        let train = keys.betas.num_train_timesteps;
        check_steps(steps, train)?;
        let mut timesteps = ascending(keys.timestep_spacing, train, steps, keys.steps_offset);
        timesteps.reverse();
        Ok(timesteps)
    }
}

impl Family for DdpmConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let timesteps = match &plan.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => self.timesteps(plan.num_inference_steps)?,
        };
        for &timestep in &timesteps {
            at(&self.alphas_cumprod, timestep)?;
        }
        Ok(Box::new(Ddpm {
            config: self.clone(),
            steps: Steps::new(timesteps),
        }))
    }
}

struct Ddpm {
    config: DdpmConfig,
    steps: Steps,
}

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        self.steps.taken()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.steps.begin_at(begin_index);
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let alpha = at(&self.config.alphas_cumprod, self.steps.current()?)?;
        add_noise(original, noise, alpha)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, generator: &mut Generator) -> Result<Tensor> {
        let keys = &self.config.keys;
        let alphas_cumprod = &self.config.alphas_cumprod;
        let timestep = self.steps.current()?;
        let alpha = at(alphas_cumprod, timestep)?;
        let alpha_previous = match self.steps.following() {
            Some(previous) => at(alphas_cumprod, previous)?,
            None => 1.0,
        };
        self.steps.advance();
        let (beta, beta_previous) = (1.0 - alpha, 1.0 - alpha_previous);
        let current_alpha = alpha / alpha_previous;
        let current_beta = 1.0 - current_alpha;

        // Formula (15): the predicted sample.
        let shares = Shares {
            signal: root(alpha)?,
            noise: root(beta)?,
        };
        let pred_original = shares.clean(keys.prediction_type, model_output, sample)?;
        let pred_original = keys.clipping.apply(pred_original)?;

        // Formula (7): the mean of the posterior.
        let original_share = root(alpha_previous)? * current_beta / beta;
        let sample_share = root(current_alpha)? * beta_previous / beta;
        let previous = times(&pred_original, original_share)?.f_add(&times(sample, sample_share)?)?;
        if timestep == 0 {
            return Ok(previous);
        }
        let noise = generator
            .randn(&model_output.size(), model_output.kind())?
            .f_to_device(model_output.device())?;
        // Formulas (6) and (7): its variance.
        let small = (beta_previous / beta * current_beta).max(MIN_VARIANCE);
        let deviation = match keys.variance_type {
            VarianceType::FixedSmall => root(small)?,
            VarianceType::FixedSmallLog => exp(0.5 * log(small)?)?,
            VarianceType::FixedLarge => root(current_beta)?,
        };
        Ok(previous.f_add(&times(&noise, deviation)?)?)
    }
}
