//! Euler's method, algorithm 2 of Karras et al., "Elucidating the Design Space of Diffusion-Based
//! Generative Models" (2022), without its second-order correction and without churn.
//!
//! Source: diffusers `schedulers/scheduling_euler_discrete.py`.

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::common::config::{PredictionType, RawConfig};
use super::common::noise_schedule::to_vec;
use super::common::sigma_run::{Run, along, derivative, pred_original_sample, scale};
use super::common::sigma_space::{Keys, SigmaSpace};
use super::common::sigmas::FinalSigmas;
use super::numerics::torch_scalar::log;
use super::{Family, Plan, Scheduler};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// What lies between the first sigma and the last.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum InterpolationType {
    /// The sigmas of the timesteps, those of fractions by linear interpolation.
    Linear,
    /// Even steps of the logarithm, whatever the timesteps are.
    LogLinear,
}

/// What the network is told of the noise.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum TimestepType {
    /// A training timestep.
    Discrete,
    /// A quarter of the logarithm of the sigma; with `v_prediction` alone.
    Continuous,
}

/// The keys of this class alone.
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

/// `EulerDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct EulerConfig {
    keys: OwnKeys,
    space: SigmaSpace,
}

impl EulerConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            keys: raw.read()?,
            space: SigmaSpace::new(&raw.read::<Keys>()?)?,
        })
    }

    fn continuous(&self) -> bool {
        self.keys.timestep_type == TimestepType::Continuous && self.space.prediction_type == PredictionType::VPrediction
    }

    /// The timesteps and the sigmas of the run, with the one after its last step.
    fn schedule(&self, plan: &Plan) -> Result<(Vec<f64>, Vec<f32>)> {
        let space = &self.space;
        let (timesteps, steps) = match (&plan.timesteps, &plan.sigmas) {
            (None, None) => {
                let steps = plan.num_inference_steps;
                (space.timesteps(steps)?, steps)
            }
            (Some(_), None) if self.continuous() => {
                return Err(Error::invalid_argument(
                    "gen_args: timesteps: not taken by a scheduler whose configuration sets timestep_type continuous",
                ));
            }
            (Some(timesteps), None) => (space.custom_timesteps(timesteps)?, timesteps.len()),
            (None, Some(sigmas)) => return self.custom(sigmas),
            (Some(_), Some(_)) => {
                return Err(Error::invalid_argument(
                    "gen_args: timesteps and sigmas: only one of them may be given",
                ));
            }
        };
        let sigmas = match self.keys.interpolation_type {
            InterpolationType::Linear => space.sigmas_at(&timesteps),
            InterpolationType::LogLinear => self.log_linear(steps)?,
        };
        let spaced = space.converted(timesteps, sigmas, steps);
        let last = space.training.last(self.keys.final_sigmas_type);
        Ok((spaced.float32_timesteps(), spaced.sigmas_to(last)))
    }

    /// One more sigma than steps, between the ends of training.
    fn log_linear(&self, steps: usize) -> Result<Vec<f64>> {
        let logs = self.space.training.log_sigmas();
        let end = |log: Option<&f32>| f64::from(log.copied().unwrap_or_default());
        let sigmas = Tensor::f_linspace(
            end(logs.last()),
            end(logs.first()),
            steps as i64 + 1,
            (Kind::Float, Device::Cpu),
        )?;
        let sigmas = to_vec(&sigmas.f_exp()?)?;
        Ok(sigmas.into_iter().map(f64::from).collect())
    }

    /// A run of given sigmas, the last of which is the one after the last step.
    fn custom(&self, sigmas: &[f64]) -> Result<(Vec<f64>, Vec<f32>)> {
        // numpy holds them in float32.
        let sigmas: Vec<f32> = sigmas.iter().map(|&sigma| sigma as f32).collect();
        let (last, noisy) = match sigmas.split_last() {
            Some((last, noisy)) if !noisy.is_empty() => (*last, noisy),
            _ => {
                return Err(Error::invalid_argument(
                    "gen_args: sigmas: needs at least two, the second of which is left at the end",
                ));
            }
        };
        if !noisy.iter().all(|sigma| sigma.is_normal() && *sigma > 0.0) || !last.is_finite() || last < 0.0 {
            return Err(Error::invalid_argument(
                "gen_args: sigmas: all must be above 0, except for the last, which may be 0",
            ));
        }
        let timestep = |&sigma: &f32| self.space.training.timestep(f64::from(sigma)) as f32;
        let timesteps = noisy.iter().map(timestep).map(f64::from).collect();
        Ok((timesteps, sigmas))
    }
}

impl Family for EulerConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let (mut timesteps, sigmas) = self.schedule(plan)?;
        if self.continuous() {
            timesteps = sigmas
                .iter()
                .take(sigmas.len().saturating_sub(1))
                .map(|&sigma| Ok(f64::from(0.25 * log(sigma)?)))
                .collect::<Result<_>>()?;
        }
        Ok(Box::new(Euler {
            prediction_type: self.space.prediction_type,
            run: Run::new(timesteps, sigmas, self.space.timestep_spacing)?,
        }))
    }
}

struct Euler {
    prediction_type: PredictionType,
    run: Run,
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        self.run.timesteps()
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.run.set_begin_index(begin_index);
    }

    fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor> {
        scale(sample, self.run.sigma(self.run.index()?)?)
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.run.add_noise(original, noise)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let index = self.run.index()?;
        let (sigma, next) = (self.run.sigma(index)?, self.run.sigma(index + 1)?);
        let sample = sample.f_to_kind(Kind::Float)?;
        let clean = pred_original_sample(self.prediction_type, model_output, &sample, sigma)?;
        let derivative = derivative(&sample, &clean, sigma)?;
        self.run.advance();
        Ok(along(&sample, &derivative, next - sigma)?.f_to_kind(model_output.kind())?)
    }
}
