//! Euler's method, algorithm 2 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (2022), without its second-order correction and without churn.
//!
//! Source: diffusers `schedulers/scheduling_euler_discrete.py`.

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::common::betas::to_vec;
use super::common::config::{PredictionType, RawConfig};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigma_schedule::{SigmaSchedule, SigmaStep, derivative, euler_step, pred_original_sample};
use super::common::sigma_schedule_config::{Keys, SigmaScheduleConfig};
use super::common::sigmas::FinalSigmas;
use super::common::step_cursor::StepCursor;
use super::numerics::torch_scalar::log;
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// The sigmas between the first and the last.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum InterpolationType {
    /// The sigmas of the timesteps, interpolated linearly for fractions.
    Linear,
    /// Even steps of the logarithm, independent of the timesteps.
    LogLinear,
}

/// The network's input for the noise level.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum TimestepType {
    /// A training timestep.
    Discrete,
    /// A quarter of the logarithm of the sigma. Requires `v_prediction`.
    Continuous,
}

/// The keys that only this class has.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct OwnKeys {
    interpolation_type: InterpolationType,
    timestep_type: TimestepType,
    final_sigmas_type: FinalSigmas,
}

impl Default for OwnKeys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            interpolation_type: InterpolationType::Linear,
            timestep_type: TimestepType::Discrete,
            final_sigmas_type: FinalSigmas::Zero,
        }
    }
}

/// The configuration of `EulerDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct EulerConfig {
    keys: OwnKeys,
    schedule: SigmaScheduleConfig,
}

impl EulerConfig {
    fn continuous(&self) -> bool {
        self.keys.timestep_type == TimestepType::Continuous
            && self.schedule.keys.prediction_type == PredictionType::VPrediction
    }

    /// Returns the timesteps and the sigmas of a run, with the sigma after its last step.
    fn timesteps_and_sigmas(&self, options: &SamplingOptions) -> Result<(Vec<f64>, Vec<f32>)> {
        let config = &self.schedule;
        let (timesteps, steps) = match (&options.timesteps, &options.sigmas) {
            (None, None) => {
                let steps = options.num_inference_steps;
                (config.timesteps(steps)?, steps)
            }
            (Some(_), None) if self.continuous() => {
                return Err(Error::invalid_argument(
                    "gen_args: timesteps: not supported by a scheduler whose configuration sets timestep_type continuous",
                ));
            }
            (Some(timesteps), None) => (config.custom_timesteps(timesteps)?, timesteps.len()),
            (None, Some(sigmas)) => return self.custom_sigmas(sigmas),
            (Some(_), Some(_)) => {
                return Err(Error::invalid_argument(
                    "gen_args: timesteps and sigmas: only one of them may be given",
                ));
            }
        };
        let sigmas = match self.keys.interpolation_type {
            InterpolationType::Linear => config.sigmas_at(&timesteps),
            InterpolationType::LogLinear => self.log_linear(steps)?,
        };
        let schedule = config.converted(timesteps, sigmas, steps);
        let last = config.training.last(self.keys.final_sigmas_type);
        Ok((schedule.float32_timesteps(), schedule.sigmas_to(last)))
    }

    /// Returns `steps + 1` sigmas between the ends of training.
    fn log_linear(&self, steps: usize) -> Result<Vec<f64>> {
        let (max, min) = self.schedule.training.log_sigma_ends();
        let sigmas = Tensor::f_linspace(max, min, steps as i64 + 1, (Kind::Float, Device::Cpu))?;
        let sigmas = to_vec(&sigmas.f_exp()?)?;
        Ok(sigmas.into_iter().map(f64::from).collect())
    }

    /// Returns the timesteps of custom sigmas, the last of which follows the last step.
    fn custom_sigmas(&self, sigmas: &[f64]) -> Result<(Vec<f64>, Vec<f32>)> {
        // numpy holds them in float32.
        let sigmas: Vec<f32> = sigmas.iter().map(|&sigma| sigma as f32).collect();
        let (last, noisy) = match sigmas.split_last() {
            Some((last, noisy)) if !noisy.is_empty() => (*last, noisy),
            _ => {
                return Err(Error::invalid_argument(
                    "gen_args: sigmas: expected at least two; the last is the noise level of the result",
                ));
            }
        };
        if !noisy.iter().all(|sigma| sigma.is_normal() && *sigma > 0.0) || !last.is_finite() || last < 0.0 {
            return Err(Error::invalid_argument(
                "gen_args: sigmas: must be above 0, except for the last, which may be 0",
            ));
        }
        let timestep = |&sigma: &f32| self.schedule.training.timestep(f64::from(sigma)) as f32;
        let timesteps = noisy.iter().map(timestep).map(f64::from).collect();
        Ok((timesteps, sigmas))
    }
}

impl SchedulerBuilder for EulerConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            keys: raw.read()?,
            schedule: SigmaScheduleConfig::new(raw.read::<Keys>()?)?,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let (mut timesteps, sigmas) = self.timesteps_and_sigmas(options)?;
        if self.continuous() {
            timesteps = sigmas
                .iter()
                .take(sigmas.len().saturating_sub(1))
                .map(|&sigma| Ok(f64::from(0.25 * log(sigma)?)))
                .collect::<Result<_>>()?;
        }
        let keys = &self.schedule.keys;
        let rule = Euler {
            prediction_type: keys.prediction_type,
        };
        let noise = SigmaSchedule::new(sigmas, keys.timestep_spacing)?;
        Ok(Run::boxed(StepCursor::new(timesteps), noise, rule))
    }
}

struct Euler {
    prediction_type: PredictionType,
}

impl UpdateRule for Euler {
    type Noise = SigmaSchedule;

    fn step(&mut self, at: &SigmaStep, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let sigma = at.sigma()?;
        let sample = sample.f_to_kind(Kind::Float)?;
        let pred_original_sample = pred_original_sample(self.prediction_type, model_output, &sample, sigma)?;
        let derivative = derivative(&sample, &pred_original_sample, sigma)?;
        let dt = at.sigma_next()? - sigma;
        Ok(euler_step(&sample, &derivative, dt)?.f_to_kind(model_output.kind())?)
    }
}
