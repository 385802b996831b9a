//! Zheng et al., "Trajectory Consistency Distillation" (2024).
//!
//! Source: diffusers `schedulers/scheduling_tcd.py`, which reads keys of clipping and thresholding but
//! does neither.

use tch::Tensor;

use super::common::config::{PredictionType, RawConfig};
use super::common::lcm_common::Distillation;
use super::common::noise_schedule::add_noise;
use super::common::prediction::{Shares, times};
use super::common::steps::Steps;
use super::numerics::torch_scalar::{root, sqrt};
use super::{Family, Plan, Scheduler, at};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// `TCDScheduler`.
#[derive(Clone, Debug)]
pub struct TcdConfig {
    distillation: Distillation,
}

impl TcdConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            distillation: Distillation::read(raw)?,
        })
    }
}

impl Family for TcdConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        if !(0.0..=1.0).contains(&plan.eta) {
            return Err(Error::invalid_argument(
                "gen_args: eta: must be 0 to 1 with TCDScheduler",
            ));
        }
        Ok(Box::new(Tcd {
            steps: Steps::new(self.distillation.timesteps(plan)?),
            distillation: self.distillation.clone(),
            eta: plan.eta,
        }))
    }
}

struct Tcd {
    distillation: Distillation,
    /// γ of the paper: the share of the way to the next timestep that is denoised and noised again.
    eta: f64,
    steps: Steps,
}

impl Tcd {
    fn alpha(&self, timestep: i64) -> Result<f32> {
        at(&self.distillation.alphas_cumprod, timestep)
    }
}

impl Scheduler for Tcd {
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
        let following = self.steps.following();
        let alpha = self.alpha(self.steps.current()?)?;
        // The timestep that is denoised to, in float32 as diffusers has it.
        let between = (1.0 - self.eta) as f32 * following.unwrap_or(0) as f32;
        let alpha_between = self.alpha(between.floor() as i64)?;
        self.steps.advance();

        let predicts = self.distillation.prediction_type;
        // diffusers takes these roots in two ways, which are not equal to the last bit.
        let square_root = match predicts {
            PredictionType::Epsilon => sqrt,
            PredictionType::Sample | PredictionType::VPrediction => root,
        };
        let shares = Shares {
            signal: square_root(alpha)?,
            noise: square_root(1.0 - alpha)?,
        };
        let pred_original = shares.clean(predicts, model_output, sample)?;
        let pred_epsilon = shares.noise(predicts, model_output, sample)?;
        let noised =
            times(&pred_original, sqrt(alpha_between)?)?.f_add(&times(&pred_epsilon, sqrt(1.0 - alpha_between)?)?)?;

        let Some(following) = following.filter(|_| self.eta > 0.0) else {
            return Ok(noised);
        };
        let noise = generator
            .randn(&model_output.size(), noised.kind())?
            .f_to_device(model_output.device())?;
        let ratio = self.alpha(following)? / alpha_between;
        Ok(times(&noised, sqrt(ratio)?)?.f_add(&times(&noise, sqrt(1.0 - ratio)?)?)?)
    }
}
