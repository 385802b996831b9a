//! Luo et al., "Latent Consistency Models" (2023).
//!
//! Source: diffusers `schedulers/scheduling_lcm.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::config::RawConfig;
use super::common::lcm_common::Distillation;
use super::common::noise_schedule::add_noise;
use super::common::prediction::{Shares, times};
use super::common::steps::Steps;
use super::common::threshold::Clipping;
use super::numerics::torch_scalar::{pow, root, sqrt};
use super::{Family, Plan, Scheduler, at};
use crate::torch::Generator;
use diffusion_core::Result;

/// The variance of clean samples that the boundary condition assumes: 0.5 squared.
const DATA_VARIANCE: f32 = 0.25;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    clipping: Clipping,
    /// Times which a timestep counts in the boundary condition.
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

/// `LCMScheduler`.
#[derive(Clone, Debug)]
pub struct LcmConfig {
    keys: Keys,
    distillation: Distillation,
}

impl LcmConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            keys: Distillation::defaults(raw).read()?,
            distillation: Distillation::read(raw)?,
        })
    }
}

impl Family for LcmConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(Lcm {
            steps: Steps::new(self.distillation.timesteps(plan)?),
            config: self.clone(),
        }))
    }
}

struct Lcm {
    config: LcmConfig,
    steps: Steps,
}

impl Lcm {
    fn alpha(&self, timestep: i64) -> Result<f32> {
        at(&self.config.distillation.alphas_cumprod, timestep)
    }
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        self.steps.taken()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.steps.begin_at(begin_index);
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        add_noise(original, noise, self.alpha(self.steps.current()?)?)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, generator: &mut Generator) -> Result<Tensor> {
        let timestep = self.steps.current()?;
        let following = self.steps.following();
        let alpha = self.alpha(timestep)?;
        self.steps.advance();

        let shares = Shares {
            signal: sqrt(alpha)?,
            noise: sqrt(1.0 - alpha)?,
        };
        let predicts = self.config.distillation.prediction_type;
        let pred_original = shares.clean(predicts, model_output, sample)?;
        let pred_original = self.config.keys.clipping.apply(pred_original)?;

        // The boundary condition: at timestep 0 the sample is its own prediction.
        let scaled = timestep as f32 * self.config.keys.timestep_scaling as f32;
        let variance = pow(scaled, 2.0)? + DATA_VARIANCE;
        let (skip, out) = (1.0 / variance * DATA_VARIANCE, scaled / root(variance)?);
        let denoised = times(&pred_original, out)?.f_add(&times(sample, skip)?)?;

        let Some(following) = following else {
            return Ok(denoised);
        };
        let noise = generator
            .randn(&model_output.size(), denoised.kind())?
            .f_to_device(model_output.device())?;
        let alpha = self.alpha(following)?;
        let signal = times(&denoised, sqrt(alpha)?)?;
        Ok(signal.f_add(&times(&noise, sqrt(1.0 - alpha)?)?)?)
    }
}
