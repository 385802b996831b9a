//! Lu et al., "DPM-Solver" and "DPM-Solver++" (2022), with the calls of one step spread over as many
//! timesteps.
//!
//! Source: diffusers `schedulers/scheduling_dpmsolver_singlestep.py`.

use serde_json::json;
use tch::Tensor;

use super::common::config::RawConfig;
use super::common::dpm_solver_config::{AlgorithmType, DpmSolverKeys, SolverType};
use super::common::dpm_solver_update::{Terms, convert, update};
use super::common::prediction::{over, times};
use super::common::sigmas::FinalSigmas;
use super::common::solver_run::{History, Run};
use super::{Family, Plan, Scheduler, past_the_end};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// `DPMSolverSinglestepScheduler`.
#[derive(Clone, Debug)]
pub struct DpmSolverSinglestepConfig {
    keys: DpmSolverKeys,
}

impl DpmSolverSinglestepConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let known = raw.without(&[
            "timestep_spacing",
            "steps_offset",
            "rescale_betas_zero_snr",
            "euler_at_final",
            "use_lu_lambdas",
        ]);
        let keys = DpmSolverKeys::read(&known.with_defaults(&[("lower_order_final", json!(false))]))?;
        if keys.algorithm_type == AlgorithmType::SdeDpmSolver {
            return Err(Error::unsupported(
                "scheduler_config.json: algorithm_type sde-dpmsolver is not supported by DPMSolverSinglestepScheduler",
            ));
        }
        // diffusers looks a level up by a timestep that it does not have.
        if keys.solver.thresholding.thresholding && !keys.algorithm_type.integrates_samples() {
            return Err(Error::unsupported(
                "scheduler_config.json: thresholding is not supported with algorithm_type dpmsolver by DPMSolverSinglestepScheduler",
            ));
        }
        Ok(Self { keys })
    }

    /// The order of the update after each call: how many calls of the present step there were
    /// (`get_order_list`).
    fn orders(&self, steps: usize) -> Vec<usize> {
        let order = self.keys.solver.solver_order;
        let mut orders: Vec<usize> = (0..steps).map(|call| call % order + 1).collect();
        let zero = self.keys.final_sigmas_type == FinalSigmas::Zero;
        let whole = self.keys.solver.lower_order_final && steps.is_multiple_of(order);
        if let [.., last] = orders.as_mut_slice()
            && (zero || whole)
        {
            *last = 1;
        }
        orders
    }
}

impl Family for DpmSolverSinglestepConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let solver = &self.keys.solver;
        let last = solver.training.last(self.keys.final_sigmas_type);
        let run = solver.ladder(plan)?.run_to(f64::from(last));
        Ok(Box::new(DpmSolverSinglestep {
            orders: self.orders(run.steps()),
            run,
            outputs: History::new(solver.solver_order),
            sample: None,
            keys: self.keys.clone(),
        }))
    }
}

struct DpmSolverSinglestep {
    keys: DpmSolverKeys,
    run: Run,
    /// Of the update after each call.
    orders: Vec<usize>,
    outputs: History,
    /// Where the present step starts.
    sample: Option<Tensor>,
}

impl DpmSolverSinglestep {
    /// D0, D1 and D2 of the papers.
    fn terms(&self, order: usize) -> Result<Terms<'_>> {
        let m0 = self.outputs.back(0)?;
        let mut terms = Terms {
            d0: m0,
            d1: None,
            d2: None,
            noise: None,
        };
        if order == 1 {
            return Ok(terms);
        }
        let (t, s0) = (self.run.level(0)?, self.run.level(1)?);
        let from = self.run.level(order)?;
        let (h, h0) = (t.lambda - from.lambda, s0.lambda - from.lambda);
        let r0 = h0 / h;
        terms.d0 = self.outputs.back(order - 1)?;
        let slope = times(&m0.f_sub(terms.d0)?, 1.0 / r0)?;
        if order == 2 || self.keys.solver_type == SolverType::Midpoint {
            terms.d1 = Some(slope);
            return Ok(terms);
        }
        let h1 = self.run.level(2)?.lambda - from.lambda;
        let r1 = h1 / h;
        let inner = times(&self.outputs.back(1)?.f_sub(terms.d0)?, 1.0 / r1)?;
        let d1 = times(&inner, r0)?.f_sub(&times(&slope, r1)?)?;
        let d2 = slope.f_sub(&inner)?.f_mul_scalar(2.0)?;
        terms.d1 = Some(over(&d1, r0 - r1)?);
        terms.d2 = Some(over(&d2, r0 - r1)?);
        Ok(terms)
    }
}

impl Scheduler for DpmSolverSinglestep {
    fn timesteps(&self) -> &[f64] {
        self.run.taken()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.run.begin_at(begin_index);
    }

    fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor> {
        self.run.check()?;
        Ok(sample.shallow_clone())
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.run.add_noise(original, noise)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, generator: &mut Generator) -> Result<Tensor> {
        self.run.check()?;
        let output = convert(&self.keys, self.run.level(1)?, model_output, sample)?;
        let noise = if self.keys.algorithm_type.is_stochastic() {
            let noise = generator.randn(&output.size(), output.kind())?;
            Some(noise.f_to_device(output.device())?)
        } else {
            None
        };
        self.outputs.push(output);

        let order = *self.orders.get(self.run.index()).ok_or_else(past_the_end)?;
        // A run that starts in the middle of a step has not all of its outputs.
        let order = order.min(self.outputs.len());
        if order == 1 {
            self.sample = Some(sample.shallow_clone());
        }
        let start = self.sample.as_ref().unwrap_or(sample);
        let mut terms = self.terms(order)?;
        terms.noise = noise.as_ref();
        let (from, to) = (self.run.level(order)?, self.run.level(0)?);
        let next = update(&self.keys, order, from, to, start, terms)?;
        self.run.advance();
        Ok(next)
    }
}
