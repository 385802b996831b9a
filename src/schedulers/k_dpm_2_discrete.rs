//! DPM-Solver-2 in the terms of Karras et al., "Elucidating the Design Space of Diffusion-Based
//! Generative Models" (2022): two calls of the network for each step but the last, the second halfway
//! in the logarithm of sigma. With ancestral sampling or without.
//!
//! Source: diffusers `schedulers/scheduling_k_dpm_2_discrete.py` and
//! `schedulers/scheduling_k_dpm_2_ancestral_discrete.py`.

use serde_json::json;
use tch::Tensor;

use super::common::config::{PredictionType, RawConfig};
use super::common::noise_schedule::to_vec;
use super::common::sigma_run::{Run, along, derivative, pred_original_sample, scale, times, too_steep};
use super::common::sigma_space::{Keys, SigmaSpace, pairs};
use super::common::sigmas::SigmaSpacing;
use super::{Family, Plan, Scheduler, past_the_end};
use crate::torch::Generator;
use diffusion_core::Result;

/// `KDPM2DiscreteScheduler` or `KDPM2AncestralDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct Kdpm2Config {
    space: SigmaSpace,
    ancestral: bool,
}

impl Kdpm2Config {
    /// Reads the keys of `KDPM2DiscreteScheduler`.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for a network that predicts the sample.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let raw = raw.with_defaults(&[("beta_start", json!(0.00085)), ("beta_end", json!(0.012))]);
        let mut keys: Keys = raw.read()?;
        keys.refuse_sample_prediction()?;
        // The class has no such switch; another class's key does not carry over.
        keys.betas.rescale_betas_zero_snr = false;
        Ok(Self {
            space: SigmaSpace::new(&keys)?,
            ancestral: false,
        })
    }

    /// Reads the keys of `KDPM2AncestralDiscreteScheduler`, which are the same.
    ///
    /// # Errors
    /// As [`Kdpm2Config::read`].
    pub fn read_ancestral(raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            ancestral: true,
            ..Self::read(raw)?
        })
    }
}

impl Family for Kdpm2Config {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let space = &self.space;
        let mut spaced = space.spaced(plan.num_inference_steps)?;
        if let Some(conversion) = space.conversion
            && conversion.spacing == SigmaSpacing::Karras
        {
            for timestep in &mut spaced.timesteps {
                *timestep = timestep.round_ties_even();
            }
        }
        let sigmas = spaced.sigmas_to(0.0);
        let steps = Steps::new(&sigmas, self.ancestral)?;
        let mut timesteps: Vec<f64> = spaced.timesteps.iter().take(1).copied().collect();
        for (&between, &timestep) in steps.between.iter().zip(spaced.timesteps.iter().skip(1)) {
            let halfway = space.training.timestep_in_float32(between);
            timesteps.extend([f64::from(halfway), timestep]);
        }
        Ok(Box::new(Kdpm2 {
            prediction_type: space.prediction_type,
            run: Run::new(timesteps, pairs(&sigmas), space.timestep_spacing)?,
            steps,
            ancestral: self.ancestral,
            first: None,
        }))
    }
}

/// The sigmas of each step beside those that it goes from and to.
struct Steps {
    /// That of the second call.
    between: Vec<f32>,
    /// That at which the step arrives before noise is added.
    down: Vec<f32>,
    /// That of the added noise.
    up: Vec<f32>,
}

impl Steps {
    fn new(sigmas: &[f32], ancestral: bool) -> Result<Self> {
        let from = Tensor::f_from_slice(sigmas.get(..sigmas.len() - 1).unwrap_or_default())?;
        let to = Tensor::f_from_slice(sigmas.get(1..).unwrap_or_default())?;
        let square = |tensor: &Tensor| tensor.f_pow_tensor_scalar(2);
        let (down, up) = if ancestral {
            let (from, to) = (square(&from)?, square(&to)?);
            let up = to.f_mul(&from.f_sub(&to)?)?.f_div(&from)?.f_pow_tensor_scalar(0.5)?;
            (to.f_sub(&square(&up)?)?.f_pow_tensor_scalar(0.5)?, up)
        } else {
            (to.shallow_clone(), to.f_zeros_like()?)
        };
        // The two classes' interpolations begin at different ends, which rounds differently.
        let between = if ancestral {
            from.f_log()?.f_lerp(&down.f_log()?, 0.5)?
        } else {
            to.f_log()?.f_lerp(&from.f_log()?, 0.5)?
        };
        let mut between = to_vec(&between.f_exp()?)?;
        // The step to no noise has one call alone.
        between.truncate(between.len().saturating_sub(1));
        if !between.iter().all(|sigma| sigma.is_normal()) {
            return Err(too_steep());
        }
        between.push(0.0);
        Ok(Self {
            between,
            down: to_vec(&down)?,
            up: to_vec(&up)?,
        })
    }
}

struct Kdpm2 {
    prediction_type: PredictionType,
    run: Run,
    steps: Steps,
    ancestral: bool,
    /// The sample that the first call of a step saw, until the second.
    first: Option<Tensor>,
}

impl Kdpm2 {
    /// The number of the present step, and the sigma that it goes from.
    fn from(&self) -> Result<(usize, f32)> {
        let index = self.run.index()?;
        let start = index - usize::from(self.first.is_some());
        Ok((start / 2, self.run.sigma(start)?))
    }

    /// The sigma of the present call.
    fn sigma(&self) -> Result<f32> {
        let (step, from) = self.from()?;
        if self.first.is_none() {
            return Ok(from);
        }
        at(&self.steps.between, step)
    }
}

fn at(sigmas: &[f32], step: usize) -> Result<f32> {
    sigmas.get(step).copied().ok_or_else(past_the_end)
}

impl Scheduler for Kdpm2 {
    fn order(&self) -> usize {
        2
    }

    fn timesteps(&self) -> &[f64] {
        self.run.timesteps()
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.run.set_begin_index(begin_index);
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.run.add_noise(original, noise)
    }

    fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor> {
        scale(sample, self.sigma()?)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, generator: &mut Generator) -> Result<Tensor> {
        let (step, from) = self.from()?;
        let sigma = self.sigma()?;
        let clean = pred_original_sample(self.prediction_type, model_output, sample, sigma)?;
        let derivative = derivative(sample, &clean, sigma)?;
        let next = if let Some(first) = self.first.take() {
            let below = along(&first, &derivative, at(&self.steps.down, step)? - from)?;
            if self.ancestral {
                let noise = generator
                    .randn(&model_output.size(), model_output.kind())?
                    .f_to_device(model_output.device())?;
                below.f_add(&times(&noise, at(&self.steps.up, step)?)?)?
            } else {
                below
            }
        } else {
            self.first = Some(sample.shallow_clone());
            along(sample, &derivative, at(&self.steps.between, step)? - from)?
        };
        self.run.advance();
        Ok(next)
    }
}
