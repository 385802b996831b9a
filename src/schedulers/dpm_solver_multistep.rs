//! Lu et al., "DPM-Solver" and "DPM-Solver++" (2022), over the outputs of several steps.
//!
//! Source: diffusers `schedulers/scheduling_dpmsolver_multistep.py`.

use tch::{Kind, Tensor};

use super::common::config::RawConfig;
use super::common::dpm_solver_config::{AlgorithmType, DpmSolverKeys, SolverType};
use super::common::dpm_solver_update::{Terms, convert, update};
use super::common::prediction::times;
use super::common::sigmas::{FinalSigmas, SigmaSpacing};
use super::common::solver_config::Ladder;
use super::common::solver_run::{History, Run};
use super::common::spacing::linspace;
use super::{Family, Plan, Scheduler};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// A run of fewer steps ends with lower orders, where `lower_order_final` is set.
const FEW_STEPS: usize = 15;

/// `DPMSolverMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct DpmSolverMultistepConfig {
    keys: DpmSolverKeys,
}

impl DpmSolverMultistepConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let keys = DpmSolverKeys::read(raw)?;
        if keys.algorithm_type == AlgorithmType::SdeDpmSolver && keys.solver.solver_order == 3 {
            return Err(Error::unsupported(
                "scheduler_config.json: solver_order 3 is not supported with algorithm_type sde-dpmsolver",
            ));
        }
        Ok(Self { keys })
    }

    fn ladder(&self, plan: &Plan) -> Result<Ladder> {
        let solver = &self.keys.solver;
        let karras = solver
            .conversion
            .filter(|conversion| conversion.spacing == SigmaSpacing::Karras);
        let steps = plan.num_inference_steps;
        let sigmas = match karras {
            Some(conversion) => {
                solver.check_spaced(plan)?;
                conversion.convert(&solver.training_sigmas(), steps)
            }
            None if self.keys.use_lu_lambdas => {
                solver.check_spaced(plan)?;
                self.lu_sigmas(steps)
            }
            None => return solver.ladder(plan),
        };
        Ok(solver.by_sigmas(sigmas, !solver.is_cosine()))
    }

    /// Sigmas whose logarithms lie evenly (`_convert_to_lu`).
    fn lu_sigmas(&self, steps: usize) -> Vec<f64> {
        let logs = self.keys.solver.training.log_sigmas();
        let end = |log: Option<&f32>| f64::from(log.copied().unwrap_or_default());
        let (min, max) = (end(logs.first()), end(logs.last()));
        linspace(0.0, 1.0, steps)
            .into_iter()
            .map(|ramp| (max + ramp * (min - max)).exp())
            .collect()
    }
}

impl Family for DpmSolverMultistepConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let solver = &self.keys.solver;
        let last = solver.training.last(self.keys.final_sigmas_type);
        let run = self.ladder(plan)?.run_to(f64::from(last));
        // A last step of no length is divided by its length in all but the simplest updates.
        let order = self.keys.order(1, run.steps(), run.steps());
        let divides = order == 3 || order == 2 && self.keys.solver_type == SolverType::Heun;
        if divides && run.ends_where_it_is() {
            return Err(Error::invalid_argument(
                "scheduler_config.json: final_sigmas_type sigma_min, where the last step starts at that sigma, needs euler_at_final, or lower_order_final and fewer than 15 steps",
            ));
        }
        Ok(Box::new(DpmSolverMultistep {
            run,
            outputs: History::new(solver.solver_order),
            keys: self.keys.clone(),
        }))
    }
}

impl DpmSolverKeys {
    /// The order of a step of a run of `steps`, with so many steps left and so many outputs at hand.
    fn order(&self, left: usize, steps: usize, outputs: usize) -> usize {
        let few = self.solver.lower_order_final && steps < FEW_STEPS;
        let zero = self.final_sigmas_type == FinalSigmas::Zero;
        let most = match left {
            1 if self.euler_at_final || few || zero => 1,
            2 if few => 2,
            _ => self.solver.solver_order,
        };
        most.min(self.solver.solver_order).min(outputs)
    }
}

struct DpmSolverMultistep {
    keys: DpmSolverKeys,
    run: Run,
    outputs: History,
}

impl DpmSolverMultistep {
    /// The differences D1 and D2 of the papers.
    fn differences(&self, order: usize) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (t, s0) = (self.run.level(0)?, self.run.level(1)?);
        let h = t.lambda - s0.lambda;
        let m0 = self.outputs.back(0)?;
        if order == 1 {
            return Ok((None, None));
        }
        let s1 = self.run.level(2)?;
        let (r0, m1) = ((s0.lambda - s1.lambda) / h, self.outputs.back(1)?);
        let d1_0 = times(&m0.f_sub(m1)?, 1.0 / r0)?;
        if order == 2 {
            return Ok((Some(d1_0), None));
        }
        let s2 = self.run.level(3)?;
        let (r1, m2) = ((s1.lambda - s2.lambda) / h, self.outputs.back(2)?);
        let d1_1 = times(&m1.f_sub(m2)?, 1.0 / r1)?;
        let difference = d1_0.f_sub(&d1_1)?;
        let d1 = d1_0.f_add(&times(&difference, r0 / (r0 + r1))?)?;
        Ok((Some(d1), Some(times(&difference, 1.0 / (r0 + r1))?)))
    }
}

impl Scheduler for DpmSolverMultistep {
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
        let kind = output.kind();
        self.outputs.push(output);

        let sample = sample.f_to_kind(Kind::Float)?;
        let noise = if self.keys.algorithm_type.is_stochastic() {
            let noise = generator.randn(&sample.size(), Kind::Float)?;
            Some(noise.f_to_device(sample.device())?)
        } else {
            None
        };
        let order = self.keys.order(self.run.left(), self.run.steps(), self.outputs.len());
        let (d1, d2) = self.differences(order)?;
        let terms = Terms {
            d0: self.outputs.back(0)?,
            d1,
            d2,
            noise: noise.as_ref(),
        };
        let (from, to) = (self.run.level(1)?, self.run.level(0)?);
        let next = update(&self.keys, order, from, to, &sample, terms)?;
        self.run.advance();
        Ok(next.f_to_kind(kind)?)
    }
}
