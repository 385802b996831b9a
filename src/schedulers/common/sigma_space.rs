//! The configuration of the samplers that count in sigmas, and the timesteps and sigmas of their runs.
//!
//! Source: the constructors and `set_timesteps` of diffusers' `schedulers/scheduling_euler_discrete.py`,
//! `scheduling_euler_ancestral_discrete.py`, `scheduling_heun_discrete.py`, `scheduling_lms_discrete.py`,
//! `scheduling_k_dpm_2_discrete.py` and `scheduling_k_dpm_2_ancestral_discrete.py`, which have these
//! parts in common.

use serde::Deserialize;

use super::config::{PredictionType, TimestepSpacing};
use super::noise_schedule::{BetasConfig, to_vec};
use super::sigmas::{SigmaConversion, SigmaKeys, TrainingSigmas};
use super::spacing::{descending_to_zero, linspace, rounded};
use crate::schedulers::check_steps;
use diffusion_core::{Error, Result};

/// The keys of all of them. A class without one of them clears it before it goes on.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// The noise that training added.
    #[serde(flatten)]
    pub betas: BetasConfig,
    /// How sigmas are spaced, where they are not those of the timesteps.
    #[serde(flatten)]
    pub sigmas: SigmaKeys,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// How timesteps are spaced.
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
    /// Refuses a network that predicts the sample, which the class in question does not do.
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

/// What a class makes of its keys when a model is loaded.
#[derive(Clone, Debug)]
pub struct SigmaSpace {
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// How timesteps are spaced.
    pub timestep_spacing: TimestepSpacing,
    /// The sigmas of training.
    pub training: TrainingSigmas,
    /// How sigmas are spaced, where they are not those of the timesteps.
    pub conversion: Option<SigmaConversion>,
    num_train_timesteps: i64,
    steps_offset: i64,
}

/// The calls of a run before a class has made its own of them: timesteps and sigmas, noisiest first.
#[derive(Clone, Debug)]
pub struct Spaced {
    /// As many as there are steps.
    pub timesteps: Vec<f64>,
    /// As many, without the one after the last step.
    pub sigmas: Vec<f64>,
}

impl SigmaSpace {
    /// Works out the sigmas of training.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the keys; `Unsupported` for a schedule that the class does not have.
    pub fn new(keys: &Keys) -> Result<Self> {
        Self::from_alphas(keys, to_vec(&keys.betas.alphas_cumprod()?)?)
    }

    /// The same for the class that has every schedule.
    ///
    /// # Errors
    /// As [`SigmaSpace::new`].
    pub fn of_any_schedule(keys: &Keys) -> Result<Self> {
        Self::from_alphas(keys, to_vec(&keys.betas.alphas_cumprod_of_any_schedule()?)?)
    }

    fn from_alphas(keys: &Keys, mut alphas_cumprod: Vec<f32>) -> Result<Self> {
        if keys.betas.rescale_betas_zero_snr
            && let Some(last) = alphas_cumprod.last_mut()
        {
            // Close to 0 without being 0, so that the first sigma is finite.
            *last = 2f32.powi(-24);
        }
        Ok(Self {
            prediction_type: keys.prediction_type,
            timestep_spacing: keys.timestep_spacing,
            training: TrainingSigmas::new(&alphas_cumprod)?,
            conversion: keys.sigmas.conversion()?,
            num_train_timesteps: keys.betas.num_train_timesteps,
            steps_offset: keys.steps_offset,
        })
    }

    /// A run of so many steps.
    ///
    /// # Errors
    /// `InvalidArgument` for more steps than training timesteps, or none.
    pub fn spaced(&self, steps: usize) -> Result<Spaced> {
        let timesteps = self.timesteps(steps)?;
        let sigmas = self.sigmas_at(&timesteps);
        Ok(self.converted(timesteps, sigmas, steps))
    }

    /// The run with its sigmas spaced as the configuration wants them between the first and the last
    /// of `sigmas`, and with the timesteps of the new ones.
    pub fn converted(&self, timesteps: Vec<f64>, sigmas: Vec<f64>, steps: usize) -> Spaced {
        let Some(conversion) = self.conversion else {
            return Spaced { timesteps, sigmas };
        };
        let sigmas = conversion.convert(&sigmas, steps);
        Spaced {
            timesteps: sigmas.iter().map(|&sigma| self.training.timestep(sigma)).collect(),
            sigmas,
        }
    }

    /// Given timesteps, noisiest first, as the run gets them.
    ///
    /// # Errors
    /// `InvalidArgument` for none, or where the configuration spaces sigmas itself.
    pub fn custom_timesteps(&self, timesteps: &[i64]) -> Result<Vec<f64>> {
        if timesteps.is_empty() {
            return Err(Error::invalid_argument("gen_args: timesteps: is empty"));
        }
        if self.conversion.is_some() {
            return Err(Error::invalid_argument(
                "gen_args: timesteps: not taken by a scheduler whose configuration sets use_karras_sigmas, use_exponential_sigmas or use_beta_sigmas",
            ));
        }
        // numpy holds them in float32.
        Ok(timesteps.iter().map(|&t| f64::from(t as f32)).collect())
    }

    /// The sigmas of timesteps, those of fractions by linear interpolation.
    pub fn sigmas_at(&self, timesteps: &[f64]) -> Vec<f64> {
        let at = |&timestep: &f64| self.training.at(timestep);
        timesteps.iter().map(at).collect()
    }

    /// The timesteps of a run of so many steps, noisiest first: numbers of float32.
    ///
    /// # Errors
    /// `InvalidArgument` for more steps than training timesteps, or none.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<f64>> {
        let train = self.num_train_timesteps;
        check_steps(steps, train)?;
        let timesteps: Vec<f32> = match self.timestep_spacing {
            TimestepSpacing::Linspace => linspace(0.0, (train - 1) as f64, steps)
                .into_iter()
                .rev()
                .map(|timestep| timestep as f32)
                .collect(),
            TimestepSpacing::Leading => {
                let ratio = train / steps as i64;
                let offset = self.steps_offset as f32;
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

impl Spaced {
    /// The sigmas in float32, with the one after the last step.
    pub fn sigmas_to(&self, last: f32) -> Vec<f32> {
        let sigmas = self.sigmas.iter().map(|&sigma| sigma as f32);
        sigmas.chain([last]).collect()
    }

    /// The timesteps rounded to float32.
    pub fn float32_timesteps(&self) -> Vec<f64> {
        let rounded = |&timestep: &f64| f64::from(timestep as f32);
        self.timesteps.iter().map(rounded).collect()
    }
}

/// The numbers with each but the first twice, for the samplers that call the network twice a step.
pub fn pairs<T: Copy>(numbers: &[T]) -> Vec<T> {
    let first = numbers.iter().take(1).copied();
    let rest = numbers.iter().skip(1).flat_map(|&number| [number, number]);
    first.chain(rest).collect()
}
