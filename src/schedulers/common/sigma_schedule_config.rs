//! The configuration of the classes that count in sigmas, and the timesteps and sigmas of their runs.
//!
//! Source: the constructors and `set_timesteps` of diffusers' `schedulers/scheduling_euler_discrete.py`,
//! `scheduling_euler_ancestral_discrete.py`, `scheduling_heun_discrete.py`, `scheduling_lms_discrete.py`,
//! `scheduling_k_dpm_2_discrete.py` and `scheduling_k_dpm_2_ancestral_discrete.py`.

use serde::Deserialize;

use super::betas::BetasConfig;
use super::config::{PredictionType, TimestepSpacing};
use super::noise_schedule::NoiseSchedule;
use super::sigmas::{SigmaConversion, SigmaKeys, TrainingSigmas};
use super::spacing::{check_num_inference_steps, descending_to_zero, linspace, rounded};
use diffusion_core::{Error, Result};

/// The keys of these classes. A class without one of the keys clears it before it goes on.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// The noise that training added.
    #[serde(flatten)]
    pub betas: BetasConfig,
    /// The spacing of sigmas, unless they are those of the timesteps.
    #[serde(flatten)]
    pub sigmas: SigmaKeys,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// The spacing of timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Added to timesteps with `leading` spacing.
    pub steps_offset: i64,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            betas: BetasConfig::default(),
            sigmas: SigmaKeys::default(),
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
        }
    }
}

impl Keys {
    /// Refuses a network that predicts the sample, for the classes without that prediction type.
    ///
    /// # Errors
    /// `Unsupported`, naming the key.
    pub fn refuse_sample_prediction(&self) -> Result<()> {
        if self.prediction_type == PredictionType::Sample {
            return Err(Error::unsupported(
                "scheduler_config.json: prediction_type sample is not supported by this scheduler class",
            ));
        }
        Ok(())
    }
}

/// The configuration of one class.
#[derive(Clone, Debug)]
pub struct SigmaScheduleConfig {
    /// The keys of the class.
    pub keys: Keys,
    /// The sigmas of training.
    pub training: TrainingSigmas,
    /// The spacing of sigmas, unless they are those of the timesteps.
    pub conversion: Option<SigmaConversion>,
}

impl SigmaScheduleConfig {
    /// Computes the sigmas of training.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the keys; `Unsupported` for a schedule that the class does not have.
    pub fn new(keys: Keys) -> Result<Self> {
        Ok(Self {
            training: TrainingSigmas::new(&keys.betas.alphas_cumprod_with_finite_sigmas()?)?,
            conversion: keys.sigmas.conversion()?,
            keys,
        })
    }

    /// Returns the schedule of a run of `steps` steps.
    ///
    /// # Errors
    /// `InvalidArgument` for no steps or more steps than training timesteps.
    pub fn schedule(&self, steps: usize) -> Result<NoiseSchedule> {
        let timesteps = self.timesteps(steps)?;
        let sigmas = self.sigmas_at(&timesteps);
        Ok(self.converted(timesteps, sigmas, steps))
    }

    /// Spaces `steps` sigmas as configured between the first and the last of `sigmas`, with their timesteps. Without a
    /// configured spacing, keeps the arguments.
    pub fn converted(&self, timesteps: Vec<f64>, sigmas: Vec<f64>, steps: usize) -> NoiseSchedule {
        let Some(conversion) = self.conversion else {
            return NoiseSchedule { timesteps, sigmas };
        };
        let sigmas = conversion.convert(&sigmas, steps);
        NoiseSchedule {
            timesteps: sigmas.iter().map(|&sigma| self.training.timestep(sigma)).collect(),
            sigmas,
        }
    }

    /// Checks custom timesteps, noisiest first, and rounds them to float32.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty list, or for a configuration that spaces sigmas.
    pub fn custom_timesteps(&self, timesteps: &[i64]) -> Result<Vec<f64>> {
        if timesteps.is_empty() {
            return Err(Error::invalid_argument("gen_args: timesteps: must not be empty"));
        }
        if self.conversion.is_some() {
            return Err(Error::invalid_argument(
                "gen_args: timesteps: not supported by a scheduler whose configuration sets use_karras_sigmas, use_exponential_sigmas or use_beta_sigmas",
            ));
        }
        // numpy holds them in float32.
        Ok(timesteps.iter().map(|&t| f64::from(t as f32)).collect())
    }

    /// Returns the sigma of each timestep. Interpolates linearly for fractions.
    pub fn sigmas_at(&self, timesteps: &[f64]) -> Vec<f64> {
        let at = |&timestep: &f64| self.training.at(timestep);
        timesteps.iter().map(at).collect()
    }

    /// Returns the timesteps of a run of `steps` steps, noisiest first, rounded to float32.
    ///
    /// # Errors
    /// `InvalidArgument` for no steps or more steps than training timesteps.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<f64>> {
        let train = self.keys.betas.num_train_timesteps;
        check_num_inference_steps(steps, train)?;
        let timesteps: Vec<f32> = match self.keys.timestep_spacing {
            TimestepSpacing::Linspace => linspace(0.0, (train - 1) as f64, steps)
                .into_iter()
                .rev()
                .map(|timestep| timestep as f32)
                .collect(),
            TimestepSpacing::Leading => {
                let ratio = train / steps as i64;
                let offset = self.keys.steps_offset as f32;
                (0..steps as i64).rev().map(|i| (i * ratio) as f32 + offset).collect()
            }
            TimestepSpacing::Trailing => rounded(&descending_to_zero(train as f64, train as f64 / steps as f64))
                .into_iter()
                .map(|timestep| timestep as f32 - 1.0)
                .collect(),
        };
        Ok(timesteps.into_iter().map(f64::from).collect())
    }
}
