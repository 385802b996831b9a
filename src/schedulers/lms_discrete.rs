//! A linear multistep method in sigma: the Adams-Bashforth method for uneven steps, of the k-diffusion samplers (Karras
//! et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022).
//!
//! Source: diffusers `schedulers/scheduling_lms_discrete.py`.

use tch::Tensor;

use super::common::config::{PredictionType, RawConfig};
use super::common::model_outputs::ModelOutputs;
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigma_schedule::{SigmaSchedule, SigmaStep, derivative, pred_original_sample};
use super::common::sigma_schedule_config::{Keys, SigmaScheduleConfig};
use super::common::sigmas::SigmaSpacing;
use super::common::step_cursor::StepCursor;
use super::numerics::quadrature::integrate;
use crate::torch::Generator;
use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

/// Number of derivatives that a step uses.
const ORDER: usize = 4;

/// The configuration of `LMSDiscreteScheduler`.
#[derive(Clone, Debug)]
pub struct LmsConfig {
    schedule: SigmaScheduleConfig,
}

impl SchedulerBuilder for LmsConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let mut keys: Keys = raw.read()?;
        // The class has no such switch. That of another class does not carry over.
        keys.betas.rescale_betas_zero_snr = false;
        let mut schedule = SigmaScheduleConfig::new(keys)?;
        if let Some(conversion) = &mut schedule.conversion
            && conversion.spacing == SigmaSpacing::Karras
        {
            // In diffusers this class ignores the ends in Karras's spacing, and only there.
            (conversion.sigma_min, conversion.sigma_max) = (None, None);
        }
        Ok(Self { schedule })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let schedule = self.schedule.schedule(options.num_inference_steps)?;
        let rule = Lms {
            prediction_type: self.schedule.keys.prediction_type,
            derivatives: ModelOutputs::new(ORDER),
        };
        let noise = SigmaSchedule::new(schedule.sigmas_to(0.0), self.schedule.keys.timestep_spacing)?;
        Ok(Run::boxed(StepCursor::new(schedule.float32_timesteps()), noise, rule))
    }
}

struct Lms {
    prediction_type: PredictionType,
    derivatives: ModelOutputs,
}

/// Returns the weight of the derivative of `current_order` calls ago in a step of `order`: the integral of its Lagrange
/// polynomial over the step (`get_lms_coefficient`).
fn lms_coefficient(at: &SigmaStep, order: usize, current_order: usize) -> Result<f64> {
    let index = at.cursor.index();
    let sigmas = (0..order)
        .map(|back| at.noise.sigma(index - back))
        .collect::<Result<Vec<f32>>>()?;
    let current = at.noise.sigma(index - current_order)?;
    let lms_derivative = |tau: f64| {
        // diffusers computes it with float32 tensors.
        let mut prod = 1.0f32;
        for (k, &sigma) in sigmas.iter().enumerate() {
            if k != current_order {
                prod *= (tau as f32 - sigma) / (current - sigma);
            }
        }
        f64::from(prod)
    };
    let (from, to) = (at.sigma()?, at.sigma_next()?);
    Ok(integrate(lms_derivative, f64::from(from), f64::from(to)))
}

impl UpdateRule for Lms {
    type Noise = SigmaSchedule;

    fn step(&mut self, at: &SigmaStep, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let sigma = at.sigma()?;
        let pred_original_sample = pred_original_sample(self.prediction_type, model_output, sample, sigma)?;
        self.derivatives.push(derivative(sample, &pred_original_sample, sigma)?);
        // A run that begins in the middle has the weights of a whole run, but fewer derivatives.
        let order = ORDER.min(at.cursor.index() + 1);
        let mut change: Option<Tensor> = None;
        for (current_order, derivative) in self.derivatives.as_slice().iter().enumerate().take(order) {
            let term = derivative.mul_number(lms_coefficient(at, order, current_order)?)?;
            change = Some(match change {
                Some(sum) => sum.f_add(&term)?,
                // Python's `sum` starts from the number 0.
                None => term.add_number(0)?,
            });
        }
        match change {
            Some(change) => Ok(sample.f_add(&change)?),
            None => Ok(sample.shallow_clone()),
        }
    }
}
