//! What the samplers of distilled networks share: keys, and timesteps that are among those of the
//! distillation.
//!
//! Source: diffusers `schedulers/scheduling_lcm.py` and `scheduling_tcd.py`.

use serde::Deserialize;
use serde_json::json;

use super::config::{PredictionType, RawConfig};
use super::noise_schedule::{BetasConfig, to_vec};
use crate::schedulers::{Plan, at, check_steps};
use diffusion_core::{Error, Result};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    original_inference_steps: i64,
    prediction_type: PredictionType,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            betas: BetasConfig::default(),
            original_inference_steps: 50,
            prediction_type: PredictionType::Epsilon,
        }
    }
}

/// How a network was trained and then distilled.
#[derive(Clone, Debug)]
pub struct Distillation {
    train: i64,
    /// Timesteps of the distillation.
    original_steps: i64,
    /// ᾱ of every training timestep.
    pub alphas_cumprod: Vec<f32>,
    /// What the network predicts.
    pub prediction_type: PredictionType,
}

impl Distillation {
    /// The keys with the defaults of the samplers of distilled networks.
    pub fn defaults(raw: &RawConfig) -> RawConfig {
        raw.with_defaults(&[
            ("beta_start", json!(0.00085)),
            ("beta_end", json!(0.012)),
            ("beta_schedule", json!("scaled_linear")),
            ("clip_sample", json!(false)),
        ])
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let keys: Keys = Self::defaults(raw).read()?;
        let train = keys.betas.num_train_timesteps;
        let alphas_cumprod = to_vec(&keys.betas.alphas_cumprod()?)?;
        if !(1..=train).contains(&keys.original_inference_steps) {
            return Err(Error::invalid_argument(format!(
                "scheduler_config.json: original_inference_steps must be 1 to {train}, the timesteps that the model was trained with"
            )));
        }
        Ok(Self {
            train,
            original_steps: keys.original_inference_steps,
            alphas_cumprod,
            prediction_type: keys.prediction_type,
        })
    }

    /// The timesteps of a run, noisiest first: the plan's own, or about evenly chosen from those of the
    /// distillation.
    ///
    /// # Errors
    /// `InvalidArgument` for more steps than the distillation had, or a timestep beyond training.
    pub fn timesteps(&self, plan: &Plan) -> Result<Vec<i64>> {
        let timesteps = match &plan.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => self.chosen(plan.num_inference_steps)?,
        };
        for &timestep in &timesteps {
            at(&self.alphas_cumprod, timestep)?;
        }
        Ok(timesteps)
    }

    fn chosen(&self, steps: usize) -> Result<Vec<i64>> {
        check_steps(steps, self.train)?;
        let original = self.original_steps;
        if i64::try_from(steps).is_ok_and(|steps| steps > original) {
            return Err(Error::invalid_argument(format!(
                "gen_args: num_inference_steps: must be 1 to {original} with this scheduler, its original_inference_steps"
            )));
        }
        let ratio = self.train / original;
        // `np.linspace(0, original, steps, endpoint=False)` from the noisy end, rounded down.
        let stride = original as f64 / steps as f64;
        Ok((0..steps)
            .map(|i| (original - (i as f64 * stride).floor() as i64) * ratio - 1)
            .collect())
    }
}
