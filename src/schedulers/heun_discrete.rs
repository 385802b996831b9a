//! Heun's method, algorithm 2 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (2022), without churn: two calls of the network for each step but the last.
//!
//! Source: diffusers `schedulers/scheduling_heun_discrete.py`.

use serde::Deserialize;
use serde_json::json;
use tch::Tensor;

use super::common::config::{PredictionType, RawConfig};
use super::common::noise_schedule::repeat_interior;
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigma_schedule::{SigmaSchedule, SigmaStep, derivative, euler_step, pred_original_sample};
use super::common::sigma_schedule_config::{Keys, SigmaScheduleConfig};
use super::common::step_cursor::StepCursor;
use crate::torch::Generator;
use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

/// The keys that only this class has.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct OwnKeys {
    clip_sample: Option<bool>,
    clip_sample_range: f64,
}

impl Default for OwnKeys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            clip_sample: None,
            clip_sample_range: 1.0,
        }
    }
}

/// The configuration of `HeunDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct HeunConfig {
    schedule: SigmaScheduleConfig,
    /// The bound of the predicted clean sample, if it is clipped.
    clip_sample_range: Option<f64>,
}

impl SchedulerBuilder for HeunConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let raw = raw.with_defaults(&[("beta_start", json!(0.00085)), ("beta_end", json!(0.012))]);
        let mut keys: Keys = raw.read()?;
        keys.betas.allow_exp = true;
        // The class has no such switch. That of another class does not carry over.
        keys.betas.rescale_betas_zero_snr = false;
        let own: OwnKeys = raw.read()?;
        Ok(Self {
            schedule: SigmaScheduleConfig::new(keys)?,
            clip_sample_range: (own.clip_sample == Some(true)).then_some(own.clip_sample_range),
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let config = &self.schedule;
        let schedule = match &options.timesteps {
            Some(timesteps) => {
                let timesteps = config.custom_timesteps(timesteps)?;
                let sigmas = config.sigmas_at(&timesteps);
                config.converted(timesteps, sigmas, 0)
            }
            None => config.schedule(options.num_inference_steps)?,
        };
        let mut sigmas = repeat_interior(&schedule.sigmas_to(0.0));
        // The last step, to sigma 0, has a single call.
        sigmas.truncate(sigmas.len().saturating_sub(1));
        let rule = Heun {
            prediction_type: config.keys.prediction_type,
            clip_sample_range: self.clip_sample_range,
            first: None,
        };
        let timesteps = repeat_interior(&schedule.float32_timesteps());
        let noise = SigmaSchedule::new(sigmas, config.keys.timestep_spacing)?;
        Ok(Run::boxed(StepCursor::new(timesteps), noise, rule))
    }
}

/// What the second call of a step needs of the first.
struct FirstCall {
    sample: Tensor,
    derivative: Tensor,
    dt: f32,
}

struct Heun {
    prediction_type: PredictionType,
    clip_sample_range: Option<f64>,
    first: Option<FirstCall>,
}

impl UpdateRule for Heun {
    type Noise = SigmaSchedule;
    const ORDER: usize = 2;

    fn step(&mut self, at: &SigmaStep, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        // In both calls this is the sigma of the network's input.
        let sigma = at.sigma()?;
        let mut pred_original_sample = pred_original_sample(self.prediction_type, model_output, sample, sigma)?;
        if let Some(range) = self.clip_sample_range {
            pred_original_sample = pred_original_sample.clamp_numbers(-range, range)?;
        }
        let derivative = derivative(sample, &pred_original_sample, sigma)?;
        if let Some(first) = self.first.take() {
            let derivative = first.derivative.f_add(&derivative)?.div_number(2.0)?;
            return euler_step(&first.sample, &derivative, first.dt);
        }
        let dt = at.sigma_next()? - sigma;
        let prev_sample = euler_step(sample, &derivative, dt)?;
        self.first = Some(FirstCall {
            sample: sample.shallow_clone(),
            derivative,
            dt,
        });
        Ok(prev_sample)
    }
}
