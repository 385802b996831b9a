//! Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (2023).
//!
//! Source: diffusers `schedulers/scheduling_unipc_multistep.py`.

use serde::Deserialize;
use serde_json::json;
use tch::{Device, Tensor};

use super::common::config::RawConfig;
use super::common::lambda_schedule::{LambdaSchedule, LambdaStep, NoiseLevel};
use super::common::lambda_schedule_config::LambdaScheduleConfig;
use super::common::model_outputs::ModelOutputs;
use super::common::prediction::{div_scalar, mul_scalar};
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::sigmas::FinalSigmas;
use super::common::step_cursor::StepCursor;
use super::numerics::torch_scalar::expm1;
use crate::torch::Generator;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// Largest accepted `solver_order`. The paper goes up to 6.
const MAX_ORDER: usize = 9;

/// The function B(h) of the paper.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum SolverType {
    /// h.
    Bh1,
    /// e^h − 1. diffusers takes the names of other schedulers' solvers for this one.
    #[serde(alias = "midpoint", alias = "heun", alias = "logrho")]
    Bh2,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    /// Whether the predicted sample is integrated, rather than the predicted noise.
    predict_x0: bool,
    solver_type: SolverType,
    /// Indices of the steps without a correction.
    disable_corrector: Vec<i64>,
    final_sigmas_type: FinalSigmas,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            predict_x0: true,
            solver_type: SolverType::Bh2,
            disable_corrector: Vec::new(),
            final_sigmas_type: FinalSigmas::Zero,
        }
    }
}

/// The configuration of `UniPCMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct UniPcMultistepConfig {
    keys: Keys,
    solver: LambdaScheduleConfig,
}

impl SchedulerBuilder for UniPcMultistepConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        raw.require_off(&[("solver_p", json!(null))])?;
        let keys: Keys = raw.read()?;
        let solver = LambdaScheduleConfig::read(&raw.without(&["lambda_min_clipped"]), 1..=MAX_ORDER)?;
        if keys.final_sigmas_type == FinalSigmas::Zero {
            // The last step is infinitely long in λ. With these keys the sample becomes NaN.
            let not_finite = [
                (!keys.predict_x0, "predict_x0 false"),
                (keys.solver_type == SolverType::Bh1, "solver_type bh1"),
                (
                    !solver.keys.lower_order_final && solver.keys.solver_order > 1,
                    "lower_order_final false",
                ),
            ];
            if let Some((_, key)) = not_finite.into_iter().find(|(on, _)| *on) {
                return Err(Error::invalid_argument(format!(
                    "scheduler_config.json: {key} requires final_sigmas_type sigma_min, got zero"
                )));
            }
        }
        // The last step has zero length then, and its system of equations no solution.
        if keys.final_sigmas_type == FinalSigmas::SigmaMin
            && solver.conversion.is_some()
            && !solver.keys.lower_order_final
            && solver.keys.solver_order > 2
        {
            return Err(Error::invalid_argument(
                "scheduler_config.json: final_sigmas_type sigma_min with spaced sigmas gives the last step zero length; it requires lower_order_final or a solver_order below 3",
            ));
        }
        Ok(Self { keys, solver })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let schedule = self.solver.schedule(options)?;
        schedule.check_distances(self.solver.keys.solver_order)?;
        let last = match (self.keys.final_sigmas_type, self.solver.conversion) {
            // Spaced sigmas end where the last step starts.
            (FinalSigmas::SigmaMin, Some(_)) => schedule.sigmas.last().copied().unwrap_or_default() as f32,
            (final_sigmas_type, _) => self.solver.training.last(final_sigmas_type),
        };
        let noise = LambdaSchedule::new(schedule.sigmas_to(last));
        let rule = UniPcMultistep {
            keys: self.keys.clone(),
            solver: self.solver.clone(),
            model_outputs: ModelOutputs::new(self.solver.keys.solver_order),
            this_order: 0,
            last_sample: None,
        };
        Ok(Run::boxed(StepCursor::new(schedule.timesteps), noise, rule))
    }
}

struct UniPcMultistep {
    keys: Keys,
    solver: LambdaScheduleConfig,
    model_outputs: ModelOutputs,
    /// The order of the last prediction.
    this_order: usize,
    /// The sample that the last prediction started from.
    last_sample: Option<Tensor>,
}

/// An update between two noise levels, of one order, before the system of equations is solved.
struct UniPcUpdate {
    /// The sample after an update of order 1: `x_t_` of diffusers.
    x_t: Tensor,
    /// The factor of the higher-order terms.
    factor: f32,
    /// (mᵢ − m₀) / rᵢ of the outputs before the newest, `[batch, order - 1, ..]`.
    d1s: Option<Tensor>,
    /// The matrix R `[order, order]` of the paper.
    r: Tensor,
    /// The right side b `[order]` of the paper.
    b: Tensor,
}

impl UniPcMultistep {
    /// Returns what the solver integrates: the predicted sample or the predicted noise.
    fn convert_model_output(&self, level: NoiseLevel, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        if self.keys.predict_x0 {
            return self.solver.pred_original_sample(level, model_output, sample);
        }
        level
            .alpha_sigma()
            .pred_epsilon(self.solver.keys.prediction_type, model_output, sample)
    }

    /// Returns whether the network's output corrects the sample that the last step predicted.
    fn use_corrector(&self, at: &LambdaStep) -> bool {
        let last_step = at.cursor.index().checked_sub(1);
        last_step
            .and_then(|step| i64::try_from(step).ok())
            .is_some_and(|step| !self.keys.disable_corrector.contains(&step))
    }

    /// Prepares the update from the noise level `back` to the one after it, starting from `sample`, with the outputs up
    /// to that level.
    fn prepare(&self, at: &LambdaStep, order: usize, back: usize, sample: &Tensor) -> Result<UniPcUpdate> {
        let (t, s0) = (at.level(back - 1)?, at.level(back)?);
        let h = t.lambda - s0.lambda;
        let m0 = self.model_outputs.get(0)?;
        let (mut rks, mut d1s) = (Vec::new(), Vec::new());
        for i in 1..order {
            let rk = (at.level(back + i)?.lambda - s0.lambda) / h;
            rks.push(rk);
            d1s.push(div_scalar(&self.model_outputs.get(i)?.f_sub(m0)?, rk)?);
        }
        rks.push(1.0);

        let hh = if self.keys.predict_x0 { -h } else { h };
        let h_phi_1 = expm1(hh)?;
        let b_h = match self.keys.solver_type {
            SolverType::Bh1 => hh,
            SolverType::Bh2 => h_phi_1,
        };
        let (ratio, weight) = if self.keys.predict_x0 {
            (t.sigma / s0.sigma, t.alpha)
        } else {
            (t.alpha / s0.alpha, t.sigma)
        };
        let (r, b) = system(&rks, hh, h_phi_1, b_h)?;
        Ok(UniPcUpdate {
            x_t: mul_scalar(sample, ratio)?.f_sub(&mul_scalar(m0, weight * h_phi_1)?)?,
            factor: weight * b_h,
            d1s: match d1s.as_slice() {
                [] => None,
                d1s => Some(Tensor::f_stack(d1s, 1)?),
            },
            r,
            b,
        })
    }

    /// Returns the sample after the next step: the predictor UniP (`multistep_uni_p_bh_update`).
    fn predict(&self, at: &LambdaStep, sample: &Tensor) -> Result<Tensor> {
        let order = self.this_order;
        let UniPcUpdate { x_t, factor, d1s, r, b } = self.prepare(at, order, 1, sample)?;
        let Some(d1s) = &d1s else {
            return Ok(x_t);
        };
        let rhos_p = if order == 2 {
            // diffusers does not solve the system of this order.
            half()?
        } else {
            let rank = order as i64 - 1;
            let r = r.f_narrow(0, 0, rank)?.f_narrow(1, 0, rank)?;
            let b = b.f_narrow(0, 0, rank)?;
            Tensor::f_linalg_solve(&r, &b, true)?
        };
        let rhos_p = rhos_p.f_to_kind(sample.kind())?;
        let pred_res = weighted_sum(&rhos_p, d1s)?;
        Ok(x_t.f_sub(&mul_scalar(&pred_res, factor)?)?)
    }

    /// Repeats the last step with the network's output for the sample that it predicted: the corrector UniC
    /// (`multistep_uni_c_bh_update`).
    fn correct(&self, at: &LambdaStep, model_output: &Tensor, last_sample: &Tensor) -> Result<Tensor> {
        let order = self.this_order;
        let UniPcUpdate { x_t, factor, d1s, r, b } = self.prepare(at, order, 2, last_sample)?;
        let rhos_c = if order == 1 {
            half()?
        } else {
            Tensor::f_linalg_solve(&r, &b, true)?
        };
        let rhos_c = rhos_c.f_to_kind(last_sample.kind())?;
        let d1_t = model_output.f_sub(self.model_outputs.get(0)?)?;
        let mut corr_res = d1_t.f_mul(&rhos_c.f_get(-1)?)?;
        if let Some(d1s) = &d1s {
            let older = rhos_c.f_narrow(0, 0, order as i64 - 1)?;
            corr_res = weighted_sum(&older, d1s)?.f_add(&corr_res)?;
        }
        Ok(x_t.f_sub(&mul_scalar(&corr_res, factor)?)?)
    }
}

/// Returns the weight of a system that is not solved: 0.5 `[1]`.
fn half() -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[0.5f32])?)
}

/// Returns the sum of `d1s` `[batch, k, ..]` with the weights `rhos` `[k]`, which are on the CPU.
fn weighted_sum(rhos: &Tensor, d1s: &Tensor) -> Result<Tensor> {
    if d1s.device() == Device::Cpu {
        return Ok(Tensor::f_einsum("k,bkc...->bc...", &[rhos, d1s], None::<&[i64]>)?);
    }
    // A weight of the CPU is an argument of a kernel. A vector would have to be copied.
    let mut sum: Option<Tensor> = None;
    for (k, d1) in (0..).zip(d1s.f_unbind(1)?) {
        let term = d1.f_mul(&rhos.f_get(k)?)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&term)?,
            None => term,
        });
    }
    sum.ok_or_else(|| Error::internal("a sum without terms"))
}

/// Computes R `[order, order]` and b `[order]` of the paper's theorem 3.1 in float32 on the CPU, which solves systems of
/// this size faster than a GPU.
fn system(rks: &[f32], hh: f32, h_phi_1: f32, b_h: f32) -> Result<(Tensor, Tensor)> {
    let row = Tensor::f_from_slice(rks)?;
    let (mut r, mut b) = (Vec::new(), Vec::new());
    let (mut h_phi_k, mut factorial) = (h_phi_1 / hh - 1.0, 1.0f64);
    for i in 0..rks.len() {
        r.push(row.pow_number(i as i64)?);
        b.push(h_phi_k * factorial as f32 / b_h);
        factorial *= (i + 2) as f64;
        h_phi_k = h_phi_k / hh - (1.0 / factorial) as f32;
    }
    Ok((Tensor::f_stack(&r, 0)?, Tensor::f_from_slice(&b)?))
}

impl UpdateRule for UniPcMultistep {
    type Noise = LambdaSchedule;

    fn step(&mut self, at: &LambdaStep, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let model_output = self.convert_model_output(at.level(1)?, model_output, sample)?;
        let sample = match &self.last_sample {
            Some(last_sample) if self.use_corrector(at) => self.correct(at, &model_output, last_sample)?,
            _ => sample.shallow_clone(),
        };
        self.model_outputs.push(model_output);
        let mut max_order = self.solver.keys.solver_order;
        if self.solver.keys.lower_order_final {
            max_order = max_order.min(at.cursor.remaining());
        }
        self.this_order = max_order.min(self.model_outputs.len());
        let prev_sample = self.predict(at, &sample)?;
        self.last_sample = Some(sample);
        Ok(prev_sample)
    }
}
