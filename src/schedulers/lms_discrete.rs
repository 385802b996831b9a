//! A linear multistep method in sigma: the Adams-Bashforth method for uneven steps (the k-diffusion
//! sampler that Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
//! 2022, is implemented beside).
//!
//! Source: diffusers `schedulers/scheduling_lms_discrete.py`.

use std::collections::VecDeque;

use tch::Tensor;

use super::common::config::{PredictionType, RawConfig};
use super::common::sigma_run::{Run, derivative, pred_original_sample, scale};
use super::common::sigma_space::{Keys, SigmaSpace};
use super::common::sigmas::SigmaSpacing;
use super::numerics::quadrature::integrate;
use super::{Family, Plan, Scheduler};
use crate::torch::Generator;
use diffusion_core::Result;

/// Outputs of the network that a step looks at.
const ORDER: usize = 4;

/// `LMSDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct LmsConfig {
    space: SigmaSpace,
}

impl LmsConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let mut keys: Keys = raw.read()?;
        // The class has no such switch; another class's key does not carry over.
        keys.betas.rescale_betas_zero_snr = false;
        let mut space = SigmaSpace::new(&keys)?;
        if let Some(conversion) = &mut space.conversion
            && conversion.spacing == SigmaSpacing::Karras
        {
            // diffusers' own way for this class, with this one spacing, looks at no such key.
            (conversion.sigma_min, conversion.sigma_max) = (None, None);
        }
        Ok(Self { space })
    }
}

impl Family for LmsConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let spaced = self.space.spaced(plan.num_inference_steps)?;
        Ok(Box::new(Lms {
            prediction_type: self.space.prediction_type,
            run: Run::new(
                spaced.float32_timesteps(),
                spaced.sigmas_to(0.0),
                self.space.timestep_spacing,
            )?,
            derivatives: VecDeque::new(),
        }))
    }
}

struct Lms {
    prediction_type: PredictionType,
    run: Run,
    /// Newest first, at most [`ORDER`].
    derivatives: VecDeque<Tensor>,
}

impl Lms {
    /// The weight of the derivative `back` calls ago in a step of `order`: the integral of its
    /// Lagrange polynomial over the step.
    fn coefficient(&self, order: usize, index: usize, back: usize) -> Result<f64> {
        let nodes = (0..order)
            .map(|k| self.run.sigma(index - k))
            .collect::<Result<Vec<f32>>>()?;
        let own = self.run.sigma(index - back)?;
        let polynomial = |tau: f64| {
            // diffusers' polynomial is one of float32 tensors.
            let mut product = 1.0f32;
            for (k, &node) in nodes.iter().enumerate() {
                if k != back {
                    product *= (tau as f32 - node) / (own - node);
                }
            }
            f64::from(product)
        };
        let (from, to) = (self.run.sigma(index)?, self.run.sigma(index + 1)?);
        Ok(integrate(polynomial, f64::from(from), f64::from(to)))
    }
}

impl Scheduler for Lms {
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
        let sigma = self.run.sigma(index)?;
        let clean = pred_original_sample(self.prediction_type, model_output, sample, sigma)?;
        self.derivatives.push_front(derivative(sample, &clean, sigma)?);
        self.derivatives.truncate(ORDER);
        // A run that begins in the middle has the weights of one that did not, but fewer derivatives.
        let order = ORDER.min(index + 1);
        let mut change: Option<Tensor> = None;
        for (back, derivative) in self.derivatives.iter().enumerate().take(order) {
            let term = derivative.f_mul_scalar(self.coefficient(order, index, back)?)?;
            change = Some(match change {
                Some(sum) => sum.f_add(&term)?,
                // Python's sum starts from the number 0.
                None => term.f_add_scalar(0)?,
            });
        }
        self.run.advance();
        match change {
            Some(change) => Ok(sample.f_add(&change)?),
            None => Ok(sample.shallow_clone()),
        }
    }
}
