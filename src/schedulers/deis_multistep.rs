//! Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2022): the variant
//! that interpolates the network's outputs as polynomials in log ρ, ρ the noise over the signal.
//!
//! Source: diffusers `schedulers/scheduling_deis_multistep.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::config::RawConfig;
use super::common::prediction::{over, times};
use super::common::sigmas::FinalSigmas;
use super::common::solver_config::SolverConfig;
use super::common::solver_run::{History, Level, Run};
use super::numerics::numpy_log::log;
use super::numerics::torch_scalar::{exp, pow};
use super::{Family, Plan, Scheduler};
use crate::torch::Generator;
use diffusion_core::Result;

/// A run of fewer steps ends with lower orders, where `lower_order_final` is set.
const FEW_STEPS: usize = 15;

/// The integrator. The other names are those of other schedulers' algorithms; diffusers takes them as
/// this one.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum AlgorithmType {
    #[default]
    #[serde(rename = "deis", alias = "dpmsolver", alias = "dpmsolver++")]
    Deis,
}

/// The interpolation. The same holds for the other names.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SolverType {
    #[default]
    #[serde(alias = "midpoint", alias = "heun", alias = "bh1", alias = "bh2")]
    Logrho,
}

/// What is read only to refuse other values.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "algorithm_type")]
    _algorithm_type: AlgorithmType,
    #[serde(rename = "solver_type")]
    _solver_type: SolverType,
}

/// `DEISMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct DeisMultistepConfig {
    solver: SolverConfig,
}

impl DeisMultistepConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let _: Keys = raw.read()?;
        let known = raw.without(&["rescale_betas_zero_snr", "lambda_min_clipped"]);
        Ok(Self {
            solver: SolverConfig::read(&known, 1..=3)?,
        })
    }
}

impl Family for DeisMultistepConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let ladder = self.solver.ladder(plan)?;
        ladder.check_distances(self.solver.solver_order)?;
        // Sigmas that are spaced by themselves end where the last step starts, others at the cleanest
        // timestep.
        let last = match (self.solver.conversion, ladder.sigmas.last()) {
            (Some(_), Some(&sigma)) => sigma,
            _ => f64::from(self.solver.training.last(FinalSigmas::SigmaMin)),
        };
        Ok(Box::new(DeisMultistep {
            run: ladder.run_to(last),
            outputs: History::new(self.solver.solver_order),
            solver: self.solver.clone(),
        }))
    }
}

struct DeisMultistep {
    solver: SolverConfig,
    run: Run,
    outputs: History,
}

impl DeisMultistep {
    /// The predicted noise, which is integrated; by way of the predicted sample, whatever the network
    /// predicts.
    fn convert(&self, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let shares = self.run.level(1)?.shares();
        let mut clean = shares.clean(self.solver.prediction_type, output, sample)?;
        if self.solver.thresholding.thresholding {
            clean = self.solver.thresholding.apply(&clean)?;
        }
        shares.without_signal(&clean, sample)
    }

    /// The order of the next step, whose output is already among the outputs.
    fn order(&self) -> usize {
        let few = self.solver.lower_order_final && self.run.steps() < FEW_STEPS;
        let most = match self.run.left() {
            1 if few => 1,
            2 if few => 2,
            _ => self.solver.solver_order,
        };
        most.min(self.solver.solver_order).min(self.outputs.len())
    }

    /// The integrals of the interpolating polynomials, one for each of the last outputs.
    fn coefficients(&self, order: usize) -> Result<Vec<f32>> {
        let rho = |level: Level| level.sigma / level.alpha;
        let t = rho(self.run.level(0)?);
        let s = (1..=order)
            .map(|back| Ok(rho(self.run.level(back)?)))
            .collect::<Result<Vec<f32>>>()?;
        match s[..] {
            [s0, s1] => {
                let integral = |b, c| integral_of_line(t, b, c) - integral_of_line(s0, b, c);
                Ok(vec![integral(s0, s1), integral(s1, s0)])
            }
            [s0, s1, s2] => {
                let integral = |b, c, d| -> Result<f32> {
                    Ok(integral_of_parabola(t, b, c, d)? - integral_of_parabola(s0, b, c, d)?)
                };
                Ok(vec![
                    integral(s0, s1, s2)?,
                    integral(s1, s2, s0)?,
                    integral(s2, s0, s1)?,
                ])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn update(&self, order: usize, sample: &Tensor) -> Result<Tensor> {
        let (t, s) = (self.run.level(0)?, self.run.level(1)?);
        if order == 1 {
            let growth = exp(t.lambda - s.lambda)? - 1.0;
            let signal = times(sample, t.alpha / s.alpha)?;
            return Ok(signal.f_sub(&times(self.outputs.back(0)?, t.sigma * growth)?)?);
        }
        let mut sum = over(sample, s.alpha)?;
        for (back, &coefficient) in self.coefficients(order)?.iter().enumerate() {
            sum = sum.f_add(&times(self.outputs.back(back)?, coefficient)?)?;
        }
        times(&sum, t.alpha)
    }
}

/// ∫ (log t − log c) / (log b − log c) dt.
fn integral_of_line(t: f32, b: f32, c: f32) -> f32 {
    t * (-log(c) + log(t) - 1.0) / (log(b) - log(c))
}

/// ∫ (log t − log c)(log t − log d) / ((log b − log c)(log b − log d)) dt.
fn integral_of_parabola(t: f32, b: f32, c: f32, d: f32) -> Result<f32> {
    let (t_log, b, c, d) = (log(t), log(b), log(c), log(d));
    let numerator = t * (c * (d - t_log + 1.0) - d * t_log + d + pow(t_log, 2.0)? - 2.0 * t_log + 2.0);
    Ok(numerator / ((b - c) * (b - d)))
}

impl Scheduler for DeisMultistep {
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

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        self.run.check()?;
        self.outputs.push(self.convert(model_output, sample)?);
        let next = self.update(self.order(), sample)?;
        self.run.advance();
        Ok(next)
    }
}
