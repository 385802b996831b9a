//! Euler's method with ancestral sampling: each step goes below the next sigma and adds noise up to it, as DDPM does
//! (Song et al., "Score-Based Generative Modeling", 2021, appendix F).
//!
//! Source: diffusers `schedulers/scheduling_euler_ancestral_discrete.py`.

use tch::{Kind, Tensor};

use super::common::config::{PredictionType, RawConfig};
use super::common::prediction::mul_scalar;
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigma_schedule::{
    SigmaSchedule, SigmaStep, derivative, euler_step, pred_original_sample, step_too_large_error,
};
use super::common::sigma_schedule_config::{Keys, SigmaScheduleConfig};
use super::common::sigmas::SigmaKeys;
use super::common::step_cursor::{StepCursor, end_of_schedule_error};
use super::numerics::torch_scalar::{pow, pow_half};
use crate::torch::Generator;
use diffusion_core::Result;

/// The configuration of `EulerAncestralDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct EulerAncestralConfig {
    schedule: SigmaScheduleConfig,
}

impl SchedulerBuilder for EulerAncestralConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let mut keys: Keys = raw.read()?;
        keys.refuse_sample_prediction()?;
        // The class has no such switches. Those of another class do not carry over.
        keys.sigmas = SigmaKeys::default();
        Ok(Self {
            schedule: SigmaScheduleConfig::new(keys)?,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let schedule = self.schedule.schedule(options.num_inference_steps)?;
        let sigmas = schedule.sigmas_to(0.0);
        let steps = sigmas
            .iter()
            .zip(sigmas.iter().skip(1))
            .map(|(&from, &to)| AncestralStep::new(from, to))
            .collect::<Result<_>>()?;
        let rule = EulerAncestral {
            prediction_type: self.schedule.keys.prediction_type,
            steps,
        };
        let noise = SigmaSchedule::new(sigmas, self.schedule.keys.timestep_spacing)?;
        Ok(Run::boxed(StepCursor::new(schedule.timesteps), noise, rule))
    }
}

/// The sigma that a step reaches before it adds noise, and the sigma of the noise.
#[derive(Clone, Copy)]
struct AncestralStep {
    sigma_down: f32,
    sigma_up: f32,
}

impl AncestralStep {
    fn new(sigma_from: f32, sigma_to: f32) -> Result<Self> {
        let (from_sq, to_sq) = (pow(sigma_from, 2.0)?, pow(sigma_to, 2.0)?);
        let sigma_up = pow_half(to_sq * (from_sq - to_sq) / from_sq)?;
        let sigma_down = pow_half(to_sq - pow(sigma_up, 2.0)?)?;
        if sigma_down.is_nan() {
            return Err(step_too_large_error());
        }
        Ok(Self { sigma_down, sigma_up })
    }
}

struct EulerAncestral {
    prediction_type: PredictionType,
    steps: Vec<AncestralStep>,
}

impl UpdateRule for EulerAncestral {
    type Noise = SigmaSchedule;

    fn step(&mut self, at: &SigmaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let sigma = at.sigma()?;
        let step = self.steps.get(at.cursor.index()).ok_or_else(end_of_schedule_error)?;
        let sample = sample.f_to_kind(Kind::Float)?;
        let pred_original_sample = pred_original_sample(self.prediction_type, model_output, &sample, sigma)?;
        let derivative = derivative(&sample, &pred_original_sample, sigma)?;
        let dt = step.sigma_down - sigma;
        let prev_sample = euler_step(&sample, &derivative, dt)?;
        let noise = rng.randn_like(model_output, model_output.kind())?;
        let prev_sample = prev_sample.f_add(&mul_scalar(&noise, step.sigma_up)?)?;
        Ok(prev_sample.f_to_kind(model_output.kind())?)
    }
}
