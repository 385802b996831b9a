//! Heun's method, algorithm 2 of Karras et al., "Elucidating the Design Space of Diffusion-Based
//! Generative Models" (2022), without churn: two calls of the network for each step but the last.
//!
//! Source: diffusers `schedulers/scheduling_heun_discrete.py`.

use serde::Deserialize;
use serde_json::json;
use tch::Tensor;

use super::common::config::{PredictionType, RawConfig};
use super::common::sigma_run::{Run, along, derivative, pred_original_sample, scale};
use super::common::sigma_space::{Keys, SigmaSpace, pairs};
use super::{Family, Plan, Scheduler};
use crate::torch::Generator;
use diffusion_core::Result;

/// The keys of this class alone.
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

/// `HeunDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct HeunConfig {
    space: SigmaSpace,
    /// The predicted clean sample is kept within this distance of 0.
    clip: Option<f64>,
}

impl HeunConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let raw = raw.with_defaults(&[("beta_start", json!(0.00085)), ("beta_end", json!(0.012))]);
        let mut keys: Keys = raw.read()?;
        // The class has no such switch; another class's key does not carry over.
        keys.betas.rescale_betas_zero_snr = false;
        let own: OwnKeys = raw.read()?;
        Ok(Self {
            space: SigmaSpace::of_any_schedule(&keys)?,
            clip: (own.clip_sample == Some(true)).then_some(own.clip_sample_range),
        })
    }
}

impl Family for HeunConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let space = &self.space;
        let spaced = match &plan.timesteps {
            Some(timesteps) => {
                let timesteps = space.custom_timesteps(timesteps)?;
                let sigmas = space.sigmas_at(&timesteps);
                space.converted(timesteps, sigmas, 0)
            }
            None => space.spaced(plan.num_inference_steps)?,
        };
        let mut sigmas = pairs(&spaced.sigmas_to(0.0));
        // The last step, to no noise, is one of a single call.
        sigmas.truncate(sigmas.len().saturating_sub(1));
        Ok(Box::new(Heun {
            prediction_type: space.prediction_type,
            clip: self.clip,
            run: Run::new(pairs(&spaced.float32_timesteps()), sigmas, space.timestep_spacing)?,
            first: None,
        }))
    }
}

/// What the first call of a step leaves for the second.
struct FirstCall {
    sample: Tensor,
    derivative: Tensor,
    dt: f32,
}

struct Heun {
    prediction_type: PredictionType,
    clip: Option<f64>,
    run: Run,
    first: Option<FirstCall>,
}

impl Scheduler for Heun {
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
        scale(sample, self.run.sigma(self.run.index()?)?)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let index = self.run.index()?;
        // Of both calls: the sigma that the network has seen.
        let sigma = self.run.sigma(index)?;
        let mut clean = pred_original_sample(self.prediction_type, model_output, sample, sigma)?;
        if let Some(range) = self.clip {
            clean = clean.f_clamp(-range, range)?;
        }
        let derivative = derivative(sample, &clean, sigma)?;
        let next = if let Some(first) = self.first.take() {
            let mean = first.derivative.f_add(&derivative)?.f_div_scalar(2.0)?;
            along(&first.sample, &mean, first.dt)?
        } else {
            let dt = self.run.sigma(index + 1)? - sigma;
            let next = along(sample, &derivative, dt)?;
            self.first = Some(FirstCall {
                sample: sample.shallow_clone(),
                derivative,
                dt,
            });
            next
        };
        self.run.advance();
        Ok(next)
    }
}
