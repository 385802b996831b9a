//! The configuration that the classes for distilled networks share, LCM and TCD.
//!
//! Source: diffusers `schedulers/scheduling_lcm.py` and `scheduling_tcd.py`.

use serde::Deserialize;
use serde_json::json;

use super::alpha_schedule::AlphaSchedule;
use super::betas::BetasConfig;
use super::config::{PredictionType, RawConfig};
use super::scheduler::SamplingOptions;
use super::spacing::check_num_inference_steps;
use super::step_cursor::StepCursor;
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

/// How a network was trained and distilled.
#[derive(Clone, Debug)]
pub struct Distillation {
    original_inference_steps: i64,
    /// ᾱ of every training timestep.
    pub alphas: AlphaSchedule,
    /// What the network predicts.
    pub prediction_type: PredictionType,
}

impl Distillation {
    /// Returns the keys with the defaults of both classes.
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
        let alphas = AlphaSchedule::new(&keys.betas)?;
        if !(1..=train).contains(&keys.original_inference_steps) {
            return Err(Error::invalid_argument(format!(
                "scheduler_config.json: original_inference_steps must be 1 to {train}, the number of training timesteps"
            )));
        }
        Ok(Self {
            original_inference_steps: keys.original_inference_steps,
            alphas,
            prediction_type: keys.prediction_type,
        })
    }

    /// Starts a run of custom timesteps, or of timesteps chosen about evenly from those of the distillation.
    ///
    /// # Errors
    /// `InvalidArgument` for more steps than the distillation had, or for a timestep outside of training.
    pub fn cursor(&self, options: &SamplingOptions) -> Result<StepCursor> {
        match &options.timesteps {
            Some(timesteps) => self.alphas.cursor(timesteps),
            None => self.alphas.cursor(&self.timesteps(options.num_inference_steps)?),
        }
    }

    fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let train = self.alphas.num_train_timesteps();
        check_num_inference_steps(steps, train)?;
        let original = self.original_inference_steps;
        if i64::try_from(steps).is_ok_and(|steps| steps > original) {
            return Err(Error::invalid_argument(format!(
                "gen_args: num_inference_steps: must be 1 to {original} with this scheduler, its original_inference_steps"
            )));
        }
        let ratio = train / original;
        // `np.linspace(0, original, steps, endpoint=False)` from the noisy end, rounded down.
        let stride = original as f64 / steps as f64;
        Ok((0..steps)
            .map(|i| (original - (i as f64 * stride).floor() as i64) * ratio - 1)
            .collect())
    }
}
