//! DPM-Solver-2 in the terms of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (2022), with or without ancestral sampling: two calls of the network for each step but the last, the second halfway
//! in the logarithm of sigma.
//!
//! Source: diffusers `schedulers/scheduling_k_dpm_2_discrete.py` and
//! `schedulers/scheduling_k_dpm_2_ancestral_discrete.py`.

use serde_json::json;
use tch::Tensor;

use super::common::betas::to_vec;
use super::common::config::{PredictionType, RawConfig};
use super::common::noise_schedule::repeat_interior;
use super::common::prediction::mul_scalar;
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigma_schedule::{
    SigmaSchedule, SigmaStep, derivative, euler_step, pred_original_sample, scale_model_input, step_too_large_error,
};
use super::common::sigma_schedule_config::{Keys, SigmaScheduleConfig};
use super::common::sigmas::SigmaSpacing;
use super::common::step_cursor::{StepCursor, end_of_schedule_error};
use crate::torch::Generator;
use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

/// The configuration of `KDPM2DiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct Kdpm2Config {
    schedule: SigmaScheduleConfig,
    ancestral: bool,
}

/// The configuration of `KDPM2AncestralDiscreteScheduler`, with the same keys.
#[derive(Clone, Debug)]
pub struct Kdpm2AncestralConfig(Kdpm2Config);

impl SchedulerBuilder for Kdpm2AncestralConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        Ok(Self(Kdpm2Config {
            ancestral: true,
            ..Kdpm2Config::read(raw)?
        }))
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        self.0.build(options)
    }
}

impl SchedulerBuilder for Kdpm2Config {
    fn read(raw: &RawConfig) -> Result<Self> {
        let raw = raw.with_defaults(&[("beta_start", json!(0.00085)), ("beta_end", json!(0.012))]);
        let mut keys: Keys = raw.read()?;
        keys.refuse_sample_prediction()?;
        // The class has no such switch. That of another class does not carry over.
        keys.betas.rescale_betas_zero_snr = false;
        Ok(Self {
            schedule: SigmaScheduleConfig::new(keys)?,
            ancestral: false,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let config = &self.schedule;
        let mut schedule = config.schedule(options.num_inference_steps)?;
        if config
            .conversion
            .is_some_and(|conversion| conversion.spacing == SigmaSpacing::Karras)
        {
            for timestep in &mut schedule.timesteps {
                *timestep = timestep.round_ties_even();
            }
        }
        let sigmas = schedule.sigmas_to(0.0);
        let steps = StepSigmas::new(&sigmas, self.ancestral)?;
        let mut timesteps: Vec<f64> = schedule.timesteps.iter().take(1).copied().collect();
        for (&sigma, &timestep) in steps.sigmas_interpol.iter().zip(schedule.timesteps.iter().skip(1)) {
            let timestep_interpol = config.training.timestep_in_float32(sigma);
            timesteps.extend([f64::from(timestep_interpol), timestep]);
        }
        let rule = Kdpm2 {
            prediction_type: config.keys.prediction_type,
            steps,
            ancestral: self.ancestral,
            first_sample: None,
        };
        let noise = SigmaSchedule::new(repeat_interior(&sigmas), config.keys.timestep_spacing)?;
        Ok(Run::boxed(StepCursor::new(timesteps), noise, rule))
    }
}

/// The sigmas of each step in addition to those that it leads from and to.
struct StepSigmas {
    /// The sigma of the second call.
    sigmas_interpol: Vec<f32>,
    /// The sigma that the step reaches before it adds noise.
    sigmas_down: Vec<f32>,
    /// The sigma of the added noise.
    sigmas_up: Vec<f32>,
}

impl StepSigmas {
    fn new(sigmas: &[f32], ancestral: bool) -> Result<Self> {
        let from = Tensor::f_from_slice(sigmas.get(..sigmas.len() - 1).unwrap_or_default())?;
        let to = Tensor::f_from_slice(sigmas.get(1..).unwrap_or_default())?;
        let square = |tensor: &Tensor| tensor.pow_number(2);
        let (sigmas_down, sigmas_up) = if ancestral {
            let (from, to) = (square(&from)?, square(&to)?);
            let up = to.f_mul(&from.f_sub(&to)?)?.f_div(&from)?.pow_number(0.5)?;
            (to.f_sub(&square(&up)?)?.pow_number(0.5)?, up)
        } else {
            (to.shallow_clone(), to.f_zeros_like()?)
        };
        // The two classes interpolate from different ends, which rounds differently.
        let sigmas_interpol = if ancestral {
            from.f_log()?.f_lerp(&sigmas_down.f_log()?, 0.5)?
        } else {
            to.f_log()?.f_lerp(&from.f_log()?, 0.5)?
        };
        let mut sigmas_interpol = to_vec(&sigmas_interpol.f_exp()?)?;
        // The last step, to sigma 0, has a single call.
        sigmas_interpol.truncate(sigmas_interpol.len().saturating_sub(1));
        if !sigmas_interpol.iter().all(|sigma| sigma.is_normal()) {
            return Err(step_too_large_error());
        }
        sigmas_interpol.push(0.0);
        Ok(Self {
            sigmas_interpol,
            sigmas_down: to_vec(&sigmas_down)?,
            sigmas_up: to_vec(&sigmas_up)?,
        })
    }
}

struct Kdpm2 {
    prediction_type: PredictionType,
    steps: StepSigmas,
    ancestral: bool,
    /// The sample of a step's first call, until the second call.
    first_sample: Option<Tensor>,
}

impl Kdpm2 {
    /// Returns the index of the current step, and the sigma that the step leads from.
    fn step_and_sigma(&self, at: &SigmaStep) -> Result<(usize, f32)> {
        let start = at.cursor.index() - usize::from(self.first_sample.is_some());
        Ok((start / 2, at.noise.sigma(start)?))
    }

    /// Returns the sigma of the network's input in the current call.
    fn input_sigma(&self, at: &SigmaStep) -> Result<f32> {
        let (step, sigma) = self.step_and_sigma(at)?;
        if self.first_sample.is_none() {
            return Ok(sigma);
        }
        get(&self.steps.sigmas_interpol, step)
    }
}

fn get(sigmas: &[f32], step: usize) -> Result<f32> {
    sigmas.get(step).copied().ok_or_else(end_of_schedule_error)
}

impl UpdateRule for Kdpm2 {
    type Noise = SigmaSchedule;
    const ORDER: usize = 2;

    fn scale_model_input(&self, at: &SigmaStep, sample: &Tensor) -> Result<Tensor> {
        scale_model_input(sample, self.input_sigma(at)?)
    }

    fn step(&mut self, at: &SigmaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let (step, sigma) = self.step_and_sigma(at)?;
        let input_sigma = self.input_sigma(at)?;
        let pred_original_sample = pred_original_sample(self.prediction_type, model_output, sample, input_sigma)?;
        let derivative = derivative(sample, &pred_original_sample, input_sigma)?;
        let Some(first_sample) = self.first_sample.take() else {
            self.first_sample = Some(sample.shallow_clone());
            let dt = get(&self.steps.sigmas_interpol, step)? - sigma;
            return euler_step(sample, &derivative, dt);
        };
        let dt = get(&self.steps.sigmas_down, step)? - sigma;
        let prev_sample = euler_step(&first_sample, &derivative, dt)?;
        if !self.ancestral {
            return Ok(prev_sample);
        }
        let noise = rng.randn_like(model_output, model_output.kind())?;
        Ok(prev_sample.f_add(&mul_scalar(&noise, get(&self.steps.sigmas_up, step)?)?)?)
    }
}
