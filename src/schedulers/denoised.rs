//! The clean sample that the network predicts in the middle of a run, for previews.

use serde::Deserialize;
use tch::Tensor;

use super::SchedulerConfig;
use super::common::betas::BetasConfig;
use super::common::config::PredictionType;
use super::common::prediction::AlphaSigma;
use diffusion_core::Result;

/// ᾱ is at least this, as in diffusers' sigmas: a run with a terminal SNR of 0 starts at 0.
const MIN_ALPHA_CUMPROD: f32 = 1.0 / (1 << 24) as f32;

/// Computes the clean sample from a call of the network.
///
/// Every class gives the network a sample of the form `√ᾱ · clean sample + √(1−ᾱ) · noise`, with ᾱ of the timestep that it
/// gives too. So the class does not matter, and neither does how it counts noise.
#[derive(Clone, Debug)]
pub struct Denoiser {
    alphas_cumprod: Vec<f32>,
    prediction_type: PredictionType,
}

/// The keys of a `scheduler_config.json`.
#[derive(Deserialize)]
struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    #[serde(default = "epsilon")]
    prediction_type: PredictionType,
}

/// The default of all classes.
fn epsilon() -> PredictionType {
    PredictionType::Epsilon
}

impl SchedulerConfig {
    /// Prepares the computation of clean samples.
    ///
    /// # Errors
    /// `InvalidArgument` for betas that make no schedule.
    pub fn denoiser(&self) -> Result<Denoiser> {
        let Keys { betas, prediction_type } = self.raw.read()?;
        let betas = BetasConfig {
            allow_exp: true,
            ..betas
        };
        Ok(Denoiser {
            alphas_cumprod: betas.alphas_cumprod()?,
            prediction_type,
        })
    }
}

impl Denoiser {
    /// Returns the clean sample that `model_output` predicts for `model_input` at a timestep from 0 on, which need not be
    /// whole. All tensors are of one shape.
    pub fn pred_original_sample(&self, timestep: f64, model_input: &Tensor, model_output: &Tensor) -> Result<Tensor> {
        let alpha_cumprod = self.alpha_cumprod(timestep);
        let weights = AlphaSigma {
            alpha: alpha_cumprod.sqrt(),
            sigma: (1.0 - alpha_cumprod).sqrt(),
        };
        weights.pred_original_sample(self.prediction_type, model_output, model_input)
    }

    /// Returns ᾱ at a timestep, between those of its neighbors.
    fn alpha_cumprod(&self, timestep: f64) -> f32 {
        let last = self.alphas_cumprod.len().saturating_sub(1);
        let timestep = timestep.clamp(0.0, last as f64);
        let at = |index: usize| self.alphas_cumprod.get(index.min(last)).copied().unwrap_or(1.0);
        let index = timestep as usize;
        let (below, above) = (at(index), at(index + 1));
        let share = (timestep - index as f64) as f32;
        (below + (above - below) * share).max(MIN_ALPHA_CUMPROD)
    }
}
