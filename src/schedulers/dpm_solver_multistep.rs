//! Lu et al., "DPM-Solver" and "DPM-Solver++" (2022), over the outputs of several steps.
//!
//! Source: diffusers `schedulers/scheduling_dpmsolver_multistep.py`.

use tch::{Kind, Tensor};

use super::common::config::RawConfig;
use super::common::dpm_solver_config::{AlgorithmType, DpmSolverConfig, SolverType};
use super::common::dpm_solver_update::{Terms, convert_model_output, update};
use super::common::lambda_schedule::{LambdaSchedule, LambdaStep};
use super::common::model_outputs::ModelOutputs;
use super::common::noise_schedule::NoiseSchedule;
use super::common::prediction::mul_scalar;
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigmas::{FinalSigmas, SigmaSpacing};
use super::common::spacing::linspace;
use super::common::step_cursor::StepCursor;
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// With `lower_order_final` a run of fewer steps ends with lower orders.
const FEW_STEPS: usize = 15;

/// The configuration of `DPMSolverMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct DpmSolverMultistepConfig {
    config: DpmSolverConfig,
}

impl DpmSolverMultistepConfig {
    fn schedule(&self, options: &SamplingOptions) -> Result<NoiseSchedule> {
        let solver = &self.config.solver;
        let karras = solver
            .conversion
            .filter(|conversion| conversion.spacing == SigmaSpacing::Karras);
        if karras.is_none() && self.config.keys.use_lu_lambdas != Some(true) {
            return solver.schedule(options);
        }
        solver.check_spaced_sigmas(options)?;
        let steps = options.num_inference_steps;
        let sigmas = match karras {
            Some(conversion) => conversion.convert(&solver.training_sigmas(), steps),
            None => self.convert_to_lu(steps),
        };
        Ok(solver.schedule_of_sigmas(sigmas, !solver.is_cosine()))
    }

    /// Returns sigmas with evenly spaced logarithms (`_convert_to_lu`).
    fn convert_to_lu(&self, steps: usize) -> Vec<f64> {
        let (max, min) = self.config.solver.training.log_sigma_ends();
        linspace(0.0, 1.0, steps)
            .into_iter()
            .map(|ramp| (max + ramp * (min - max)).exp())
            .collect()
    }
}

impl SchedulerBuilder for DpmSolverMultistepConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let config = DpmSolverConfig::read(raw)?;
        if config.keys.algorithm_type == AlgorithmType::SdeDpmSolver && config.solver.keys.solver_order == 3 {
            return Err(Error::unsupported(
                "scheduler_config.json: solver_order 3 is not supported with algorithm_type sde-dpmsolver",
            ));
        }
        Ok(Self { config })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let solver = &self.config.solver;
        let schedule = self.schedule(options)?;
        let noise = LambdaSchedule::new(schedule.sigmas_to(solver.training.last(self.config.keys.final_sigmas_type)));
        let rule = DpmSolverMultistep {
            config: self.config.clone(),
            model_outputs: ModelOutputs::new(solver.keys.solver_order),
        };
        // All updates but the simplest divide by the length of the last step.
        let steps = schedule.timesteps.len();
        let order = rule.order(1, steps, steps);
        let divides = order == 3 || order == 2 && self.config.keys.solver_type == SolverType::Heun;
        if divides && noise.last_step_is_zero_length() {
            return Err(Error::invalid_argument(
                "scheduler_config.json: final_sigmas_type sigma_min gives the last step zero length; it requires euler_at_final, or lower_order_final and fewer than 15 steps",
            ));
        }
        Ok(Run::boxed(StepCursor::new(schedule.timesteps), noise, rule))
    }
}

struct DpmSolverMultistep {
    config: DpmSolverConfig,
    model_outputs: ModelOutputs,
}

impl DpmSolverMultistep {
    /// Returns the order of a step with `remaining` of `steps` steps, the current one included, and `outputs` outputs.
    fn order(&self, remaining: usize, steps: usize, outputs: usize) -> usize {
        let solver = &self.config.solver;
        let few = solver.keys.lower_order_final && steps < FEW_STEPS;
        let zero = self.config.keys.final_sigmas_type == FinalSigmas::Zero;
        let max = match remaining {
            1 if self.config.keys.euler_at_final || few || zero => 1,
            2 if few => 2,
            _ => solver.keys.solver_order,
        };
        max.min(solver.keys.solver_order).min(outputs)
    }

    /// Returns the papers' D1 and D2.
    fn differences(&self, at: &LambdaStep, order: usize) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if order == 1 {
            return Ok((None, None));
        }
        let (t, s0, s1) = (at.level(0)?, at.level(1)?, at.level(2)?);
        let (m0, m1) = (self.model_outputs.get(0)?, self.model_outputs.get(1)?);
        let h = t.lambda - s0.lambda;
        let r0 = (s0.lambda - s1.lambda) / h;
        let d1_0 = mul_scalar(&m0.f_sub(m1)?, 1.0 / r0)?;
        if order == 2 {
            return Ok((Some(d1_0), None));
        }
        let (s2, m2) = (at.level(3)?, self.model_outputs.get(2)?);
        let r1 = (s1.lambda - s2.lambda) / h;
        let d1_1 = mul_scalar(&m1.f_sub(m2)?, 1.0 / r1)?;
        let difference = d1_0.f_sub(&d1_1)?;
        let d1 = d1_0.f_add(&mul_scalar(&difference, r0 / (r0 + r1))?)?;
        let d2 = mul_scalar(&difference, 1.0 / (r0 + r1))?;
        Ok((Some(d1), Some(d2)))
    }
}

impl UpdateRule for DpmSolverMultistep {
    type Noise = LambdaSchedule;

    fn step(&mut self, at: &LambdaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let (from, to) = (at.level(1)?, at.level(0)?);
        let model_output = convert_model_output(&self.config, from, model_output, sample)?;
        let kind = model_output.kind();
        self.model_outputs.push(model_output);

        let sample = sample.f_to_kind(Kind::Float)?;
        let noise = if self.config.keys.algorithm_type.is_stochastic() {
            Some(rng.randn_like(&sample, Kind::Float)?)
        } else {
            None
        };
        let order = self.order(at.cursor.remaining(), at.cursor.len(), self.model_outputs.len());
        let (d1, d2) = self.differences(at, order)?;
        let terms = Terms {
            d0: self.model_outputs.get(0)?,
            d1,
            d2,
            noise: noise.as_ref(),
        };
        let prev_sample = update(&self.config, order, from, to, &sample, terms)?;
        Ok(prev_sample.f_to_kind(kind)?)
    }
}
