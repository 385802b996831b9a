//! Song et al., "Denoising Diffusion Implicit Models" (2020).
//!
//! Source: diffusers `schedulers/scheduling_ddim.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::config::{PredictionType, RawConfig, TimestepSpacing};
use super::common::noise_schedule::{BetasConfig, add_noise, to_vec};
use super::common::prediction::{Shares, times};
use super::common::spacing::ascending;
use super::common::steps::Steps;
use super::common::threshold::Clipping;
use super::numerics::torch_scalar::{pow, root};
use super::{Family, Plan, Scheduler, at, check_steps};
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

/// `DDIMScheduler`.
#[derive(Clone, Debug)]
pub struct DdimConfig {
    keys: Keys,
    alphas_cumprod: Vec<f32>,
}

impl DdimConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let keys: Keys = raw.read()?;
        Ok(Self {
            alphas_cumprod: to_vec(&keys.betas.alphas_cumprod()?)?,
            keys,
        })
    }
}

impl Family for DdimConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let train = self.keys.betas.num_train_timesteps;
        let steps = plan.num_inference_steps;
        check_steps(steps, train)?;
        let ratio = train / steps as i64;
        let mut timesteps = ascending(self.keys.timestep_spacing, train, steps, self.keys.steps_offset);
        timesteps.reverse();
        for &timestep in &timesteps {
            at(&self.alphas_cumprod, timestep)?;
        }
        Ok(Box::new(Ddim {
            config: self.clone(),
            eta: plan.eta as f32,
            step_ratio: ratio,
            steps: Steps::new(timesteps),
        }))
    }
}

struct Ddim {
    config: DdimConfig,
    eta: f32,
    step_ratio: i64,
    steps: Steps,
}

impl Ddim {
    /// ᾱ of the step after this one.
    fn previous_alpha(&self, timestep: i64) -> Result<f32> {
        let previous = timestep - self.step_ratio;
        if previous >= 0 {
            at(&self.config.alphas_cumprod, previous)
        } else if self.config.keys.set_alpha_to_one {
            Ok(1.0)
        } else {
            at(&self.config.alphas_cumprod, 0)
        }
    }
}

impl Scheduler for Ddim {
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
        let timestep = self.steps.current()?;
        self.steps.advance();
        let keys = &self.config.keys;
        let alpha = at(&self.config.alphas_cumprod, timestep)?;
        let alpha_previous = self.previous_alpha(timestep)?;
        let beta = 1.0 - alpha;

        // Formula (12): the predicted sample and the predicted noise.
        let shares = Shares {
            signal: root(alpha)?,
            noise: root(beta)?,
        };
        let pred_original = shares.clean(keys.prediction_type, model_output, sample)?;
        let pred_epsilon = shares.noise(keys.prediction_type, model_output, sample)?;
        let pred_original = keys.clipping.apply(pred_original)?;

        // Formula (16).
        let variance = ((1.0 - alpha_previous) / beta) * (1.0 - alpha / alpha_previous);
        let std_dev = self.eta * root(variance)?;
        let direction = times(&pred_epsilon, root(1.0 - alpha_previous - pow(std_dev, 2.0)?)?)?;
        let previous = times(&pred_original, root(alpha_previous)?)?.f_add(&direction)?;
        if self.eta > 0.0 {
            let noise = generator
                .randn(&model_output.size(), model_output.kind())?
                .f_to_device(model_output.device())?;
            return Ok(previous.f_add(&times(&noise, std_dev)?)?);
        }
        Ok(previous)
    }
}
