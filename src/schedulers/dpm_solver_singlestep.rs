//! Lu et al., "DPM-Solver" and "DPM-Solver++" (2022), where each call of the network for a step has its own timestep.
//!
//! Source: diffusers `schedulers/scheduling_dpmsolver_singlestep.py`.

use serde_json::json;
use tch::Tensor;

use super::common::config::RawConfig;
use super::common::dpm_solver_config::{AlgorithmType, DpmSolverConfig, SolverType};
use super::common::dpm_solver_update::{Terms, convert_model_output, update};
use super::common::lambda_schedule::{LambdaSchedule, LambdaStep};
use super::common::model_outputs::ModelOutputs;
use super::common::prediction::{div_scalar, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigmas::FinalSigmas;
use super::common::step_cursor::{StepCursor, end_of_schedule_error};
use crate::torch::Generator;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// The configuration of `DPMSolverSinglestepScheduler`.
#[derive(Clone, Debug)]
pub struct DpmSolverSinglestepConfig {
    config: DpmSolverConfig,
}

impl DpmSolverSinglestepConfig {
    /// Returns the order of the update after each call, the number of calls in the current step (`get_order_list`).
    fn order_list(&self, steps: usize) -> Vec<usize> {
        let order = self.config.solver.keys.solver_order;
        let mut orders: Vec<usize> = (0..steps).map(|call| call % order + 1).collect();
        let zero = self.config.keys.final_sigmas_type == FinalSigmas::Zero;
        let whole = self.config.solver.keys.lower_order_final && steps.is_multiple_of(order);
        if let [.., last] = orders.as_mut_slice()
            && (zero || whole)
        {
            *last = 1;
        }
        orders
    }
}

impl SchedulerBuilder for DpmSolverSinglestepConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let known = raw.without(&[
            "timestep_spacing",
            "steps_offset",
            "rescale_betas_zero_snr",
            "euler_at_final",
            "use_lu_lambdas",
        ]);
        let config = DpmSolverConfig::read(&known.with_defaults(&[("lower_order_final", json!(false))]))?;
        if config.keys.algorithm_type == AlgorithmType::SdeDpmSolver {
            return Err(Error::unsupported(
                "scheduler_config.json: algorithm_type sde-dpmsolver is not supported by DPMSolverSinglestepScheduler",
            ));
        }
        // diffusers looks up the noise level of a timestep that the run does not have, and fails.
        if config.solver.keys.thresholding.thresholding && !config.keys.algorithm_type.integrates_samples() {
            return Err(Error::unsupported(
                "scheduler_config.json: thresholding is not supported with algorithm_type dpmsolver by DPMSolverSinglestepScheduler",
            ));
        }
        Ok(Self { config })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let solver = &self.config.solver;
        let schedule = solver.schedule(options)?;
        let noise = LambdaSchedule::new(schedule.sigmas_to(solver.training.last(self.config.keys.final_sigmas_type)));
        let rule = DpmSolverSinglestep {
            order_list: self.order_list(schedule.timesteps.len()),
            model_outputs: ModelOutputs::new(solver.keys.solver_order),
            sample: None,
            config: self.config.clone(),
        };
        Ok(Run::boxed(StepCursor::new(schedule.timesteps), noise, rule))
    }
}

struct DpmSolverSinglestep {
    config: DpmSolverConfig,
    /// The order of the update after each call.
    order_list: Vec<usize>,
    model_outputs: ModelOutputs,
    /// The sample that the current step started from.
    sample: Option<Tensor>,
}

impl DpmSolverSinglestep {
    /// Returns the papers' D0, D1 and D2.
    fn terms(&self, at: &LambdaStep, order: usize) -> Result<Terms<'_>> {
        let newest = self.model_outputs.get(0)?;
        let mut terms = Terms {
            d0: newest,
            d1: None,
            d2: None,
            noise: None,
        };
        if order == 1 {
            return Ok(terms);
        }
        let (t, s0, from) = (at.level(0)?, at.level(1)?, at.level(order)?);
        let h = t.lambda - from.lambda;
        let r0 = (s0.lambda - from.lambda) / h;
        terms.d0 = self.model_outputs.get(order - 1)?;
        let d1_1 = mul_scalar(&newest.f_sub(terms.d0)?, 1.0 / r0)?;
        if order == 2 || self.config.keys.solver_type == SolverType::Midpoint {
            terms.d1 = Some(d1_1);
            return Ok(terms);
        }
        let r1 = (at.level(2)?.lambda - from.lambda) / h;
        let d1_0 = mul_scalar(&self.model_outputs.get(1)?.f_sub(terms.d0)?, 1.0 / r1)?;
        let d1 = mul_scalar(&d1_0, r0)?.f_sub(&mul_scalar(&d1_1, r1)?)?;
        let d2 = d1_1.f_sub(&d1_0)?.mul_number(2.0)?;
        terms.d1 = Some(div_scalar(&d1, r0 - r1)?);
        terms.d2 = Some(div_scalar(&d2, r0 - r1)?);
        Ok(terms)
    }
}

impl UpdateRule for DpmSolverSinglestep {
    type Noise = LambdaSchedule;

    fn step(&mut self, at: &LambdaStep, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        let model_output = convert_model_output(&self.config, at.level(1)?, model_output, sample)?;
        let noise = if self.config.keys.algorithm_type.is_stochastic() {
            Some(rng.randn_like(&model_output, model_output.kind())?)
        } else {
            None
        };
        self.model_outputs.push(model_output);

        let order = *self
            .order_list
            .get(at.cursor.index())
            .ok_or_else(end_of_schedule_error)?;
        // A run that begins in the middle of a step lacks the outputs before.
        let order = order.min(self.model_outputs.len());
        if order == 1 {
            self.sample = Some(sample.shallow_clone());
        }
        let sample = self.sample.as_ref().unwrap_or(sample);
        let mut terms = self.terms(at, order)?;
        terms.noise = noise.as_ref();
        update(&self.config, order, at.level(order)?, at.level(0)?, sample, terms)
    }
}
