//! Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2022): the variant that interpolates
//! the network's outputs by polynomials in log ρ, where ρ is noise over signal.
//!
//! Source: diffusers `schedulers/scheduling_deis_multistep.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::config::RawConfig;
use super::common::lambda_schedule::{LambdaSchedule, LambdaStep, NoiseLevel};
use super::common::lambda_schedule_config::LambdaScheduleConfig;
use super::common::model_outputs::ModelOutputs;
use super::common::prediction::{div_scalar, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigmas::FinalSigmas;
use super::common::step_cursor::StepCursor;
use super::numerics::numpy_log::log;
use super::numerics::torch_scalar::{exp, pow};
use crate::torch::Generator;
use diffusion_core::Result;

/// With `lower_order_final` a run of fewer steps ends with lower orders.
const FEW_STEPS: usize = 15;

/// The integrator. diffusers takes the names of other schedulers' algorithms for this one.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum AlgorithmType {
    #[default]
    #[serde(rename = "deis", alias = "dpmsolver", alias = "dpmsolver++")]
    Deis,
}

/// The interpolation. diffusers takes the names of other schedulers' solvers for this one.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SolverType {
    #[default]
    #[serde(alias = "midpoint", alias = "heun", alias = "bh1", alias = "bh2")]
    Logrho,
}

/// Keys that are read only to refuse other values.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "algorithm_type")]
    _algorithm_type: AlgorithmType,
    #[serde(rename = "solver_type")]
    _solver_type: SolverType,
}

/// The configuration of `DEISMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct DeisMultistepConfig {
    solver: LambdaScheduleConfig,
}

impl SchedulerBuilder for DeisMultistepConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let _: Keys = raw.read()?;
        let known = raw.without(&["rescale_betas_zero_snr", "lambda_min_clipped"]);
        Ok(Self {
            solver: LambdaScheduleConfig::read(&known, 1..=3)?,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let schedule = self.solver.schedule(options)?;
        schedule.check_distances(self.solver.keys.solver_order)?;
        // Spaced sigmas end where the last step starts, the sigmas of timesteps at the cleanest timestep.
        let last = match (self.solver.conversion, schedule.sigmas.last()) {
            (Some(_), Some(&sigma)) => sigma as f32,
            _ => self.solver.training.last(FinalSigmas::SigmaMin),
        };
        let noise = LambdaSchedule::new(schedule.sigmas_to(last));
        let rule = DeisMultistep {
            model_outputs: ModelOutputs::new(self.solver.keys.solver_order),
            solver: self.solver.clone(),
        };
        Ok(Run::boxed(StepCursor::new(schedule.timesteps), noise, rule))
    }
}

struct DeisMultistep {
    solver: LambdaScheduleConfig,
    model_outputs: ModelOutputs,
}

impl DeisMultistep {
    /// Returns the predicted noise, which the solver integrates. For every prediction type the noise is computed from
    /// the predicted sample.
    fn convert_model_output(&self, level: NoiseLevel, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let x0_pred = self.solver.pred_original_sample(level, model_output, sample)?;
        level.alpha_sigma().remove_signal(&x0_pred, sample)
    }

    /// Returns the order of the current step, whose output is already in the list.
    fn order(&self, at: &LambdaStep) -> usize {
        let few = self.solver.keys.lower_order_final && at.cursor.len() < FEW_STEPS;
        let max = match at.cursor.remaining() {
            1 if few => 1,
            2 if few => 2,
            _ => self.solver.keys.solver_order,
        };
        max.min(self.solver.keys.solver_order).min(self.model_outputs.len())
    }

    fn update(&self, at: &LambdaStep, order: usize, sample: &Tensor) -> Result<Tensor> {
        let (t, s) = (at.level(0)?, at.level(1)?);
        if order == 1 {
            let growth = exp(t.lambda - s.lambda)? - 1.0;
            let signal = mul_scalar(sample, t.alpha / s.alpha)?;
            return Ok(signal.f_sub(&mul_scalar(self.model_outputs.get(0)?, t.sigma * growth)?)?);
        }
        let mut sum = div_scalar(sample, s.alpha)?;
        for (back, &coefficient) in coefficients(at, order)?.iter().enumerate() {
            sum = sum.f_add(&mul_scalar(self.model_outputs.get(back)?, coefficient)?)?;
        }
        mul_scalar(&sum, t.alpha)
    }
}

/// Returns the integrals of the interpolating polynomials, one for each of the latest outputs.
fn coefficients(at: &LambdaStep, order: usize) -> Result<Vec<f32>> {
    let rho = |back| -> Result<f32> {
        let level = at.level(back)?;
        Ok(level.sigma / level.alpha)
    };
    let rho_t = rho(0)?;
    match (1..=order).map(rho).collect::<Result<Vec<f32>>>()?[..] {
        [rho_s0, rho_s1] => {
            let integral = |b, c| integral_of_line(rho_t, b, c) - integral_of_line(rho_s0, b, c);
            Ok(vec![integral(rho_s0, rho_s1), integral(rho_s1, rho_s0)])
        }
        [rho_s0, rho_s1, rho_s2] => {
            let integral = |b, c, d| -> Result<f32> {
                Ok(integral_of_parabola(rho_t, b, c, d)? - integral_of_parabola(rho_s0, b, c, d)?)
            };
            Ok(vec![
                integral(rho_s0, rho_s1, rho_s2)?,
                integral(rho_s1, rho_s2, rho_s0)?,
                integral(rho_s2, rho_s0, rho_s1)?,
            ])
        }
        _ => Ok(Vec::new()),
    }
}

/// Computes ∫ (log t − log c) / (log b − log c) dt.
fn integral_of_line(t: f32, b: f32, c: f32) -> f32 {
    t * (-log(c) + log(t) - 1.0) / (log(b) - log(c))
}

/// Computes ∫ (log t − log c)(log t − log d) / ((log b − log c)(log b − log d)) dt.
fn integral_of_parabola(t: f32, b: f32, c: f32, d: f32) -> Result<f32> {
    let (t_log, b, c, d) = (log(t), log(b), log(c), log(d));
    let numerator = t * (c * (d - t_log + 1.0) - d * t_log + d + pow(t_log, 2.0)? - 2.0 * t_log + 2.0);
    Ok(numerator / ((b - c) * (b - d)))
}

impl UpdateRule for DeisMultistep {
    type Noise = LambdaSchedule;

    fn step(&mut self, at: &LambdaStep, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let model_output = self.convert_model_output(at.level(1)?, model_output, sample)?;
        self.model_outputs.push(model_output);
        self.update(at, self.order(at), sample)
    }
}
