//! Euler's method with ancestral sampling: each step goes further down than the next sigma and adds
//! noise up to it, as DDPM does (Song et al., "Score-Based Generative Modeling", 2021, appendix F).
//!
//! Source: diffusers `schedulers/scheduling_euler_ancestral_discrete.py`.

use tch::{Kind, Tensor};

use super::common::config::{PredictionType, RawConfig};
use super::common::sigma_run::{Run, along, derivative, pred_original_sample, scale, times, too_steep};
use super::common::sigma_space::{Keys, SigmaSpace};
use super::common::sigmas::SigmaKeys;
use super::numerics::torch_scalar::{pow, root};
use super::{Family, Plan, Scheduler, past_the_end};
use crate::torch::Generator;
use diffusion_core::Result;

/// `EulerAncestralDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct EulerAncestralConfig {
    space: SigmaSpace,
}

impl EulerAncestralConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for a network that predicts the sample.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let mut keys: Keys = raw.read()?;
        keys.refuse_sample_prediction()?;
        // The class has no such switches; another class's keys do not carry over.
        keys.sigmas = SigmaKeys::default();
        Ok(Self {
            space: SigmaSpace::new(&keys)?,
        })
    }
}

impl Family for EulerAncestralConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let spaced = self.space.spaced(plan.num_inference_steps)?;
        let sigmas = spaced.sigmas_to(0.0);
        let steps = sigmas
            .iter()
            .zip(sigmas.iter().skip(1))
            .map(|(&from, &to)| Step::new(from, to))
            .collect::<Result<_>>()?;
        Ok(Box::new(EulerAncestral {
            steps,
            prediction_type: self.space.prediction_type,
            run: Run::new(spaced.timesteps, sigmas, self.space.timestep_spacing)?,
        }))
    }
}

/// The sigma at which a step arrives before noise is added, and that of the noise.
#[derive(Clone, Copy)]
struct Step {
    down: f32,
    up: f32,
}

impl Step {
    fn new(from: f32, to: f32) -> Result<Self> {
        let (from, to) = (pow(from, 2.0)?, pow(to, 2.0)?);
        let up = root(to * (from - to) / from)?;
        let down = root(to - pow(up, 2.0)?)?;
        if down.is_nan() {
            return Err(too_steep());
        }
        Ok(Self { down, up })
    }
}

struct EulerAncestral {
    steps: Vec<Step>,
    prediction_type: PredictionType,
    run: Run,
}

impl Scheduler for EulerAncestral {
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

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, generator: &mut Generator) -> Result<Tensor> {
        let index = self.run.index()?;
        let sigma = self.run.sigma(index)?;
        let Step { down, up } = *self.steps.get(index).ok_or_else(past_the_end)?;
        let sample = sample.f_to_kind(Kind::Float)?;
        let clean = pred_original_sample(self.prediction_type, model_output, &sample, sigma)?;
        let derivative = derivative(&sample, &clean, sigma)?;
        let below = along(&sample, &derivative, down - sigma)?;
        let noise = generator
            .randn(&model_output.size(), model_output.kind())?
            .f_to_device(model_output.device())?;
        self.run.advance();
        Ok(below.f_add(&times(&noise, up)?)?.f_to_kind(model_output.kind())?)
    }
}
