//! Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"
//! (2023).
//!
//! Source: diffusers `schedulers/scheduling_unipc_multistep.py`.

use serde::Deserialize;
use serde_json::json;
use tch::Tensor;

use super::common::config::RawConfig;
use super::common::prediction::{over, times};
use super::common::sigmas::FinalSigmas;
use super::common::solver_config::SolverConfig;
use super::common::solver_run::{History, Level, Run};
use super::numerics::torch_scalar::expm1;
use super::{Family, Plan, Scheduler};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// The largest `solver_order`; the paper goes up to 6.
const MAX_ORDER: usize = 9;

/// The function B(h) of the paper.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum SolverType {
    /// h.
    Bh1,
    /// e^h − 1. The other names are those of other schedulers' solvers; diffusers takes them as this one.
    #[serde(alias = "midpoint", alias = "heun", alias = "logrho")]
    Bh2,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    /// The predicted sample is integrated, rather than the predicted noise.
    predict_x0: bool,
    solver_type: SolverType,
    /// Steps whose sample is not corrected.
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

/// `UniPCMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct UniPcMultistepConfig {
    keys: Keys,
    solver: SolverConfig,
}

impl UniPcMultistepConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        raw.require_off(&[("solver_p", json!(null))])?;
        let keys: Keys = raw.read()?;
        let solver = SolverConfig::read(&raw.without(&["lambda_min_clipped"]), 1..=MAX_ORDER)?;
        if keys.final_sigmas_type == FinalSigmas::Zero {
            // The last step is infinitely long in λ: what divides by its length, or multiplies with it,
            // ends in a sample that is not a number.
            let not_finite = [
                (!keys.predict_x0, "predict_x0 false"),
                (keys.solver_type == SolverType::Bh1, "solver_type bh1"),
                (
                    !solver.lower_order_final && solver.solver_order > 1,
                    "lower_order_final false",
                ),
            ];
            if let Some((_, with)) = not_finite.into_iter().find(|(on, _)| *on) {
                return Err(Error::invalid_argument(format!(
                    "scheduler_config.json: final_sigmas_type zero does not go with {with}; sigma_min does"
                )));
            }
        }
        // The last step then has no length, and its system of equations no solution.
        if keys.final_sigmas_type == FinalSigmas::SigmaMin
            && solver.conversion.is_some()
            && !solver.lower_order_final
            && solver.solver_order > 2
        {
            return Err(Error::invalid_argument(
                "scheduler_config.json: final_sigmas_type sigma_min, where the last step starts at that sigma, does not go with lower_order_final false and this solver_order",
            ));
        }
        Ok(Self { keys, solver })
    }
}

impl Family for UniPcMultistepConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let ladder = self.solver.ladder(plan)?;
        ladder.check_distances(self.solver.solver_order)?;
        let last = match (self.keys.final_sigmas_type, self.solver.conversion) {
            // Sigmas that are spaced by themselves end where the last step starts.
            (FinalSigmas::SigmaMin, Some(_)) => ladder.sigmas.last().copied().unwrap_or_default(),
            (end, _) => f64::from(self.solver.training.last(end)),
        };
        Ok(Box::new(UniPcMultistep {
            run: ladder.run_to(last),
            outputs: History::new(self.solver.solver_order),
            order: 0,
            last_sample: None,
            keys: self.keys.clone(),
            solver: self.solver.clone(),
        }))
    }
}

struct UniPcMultistep {
    keys: Keys,
    solver: SolverConfig,
    run: Run,
    outputs: History,
    /// That of the last prediction.
    order: usize,
    /// What the last prediction started from.
    last_sample: Option<Tensor>,
}

/// What a predictor or corrector of one order has between two levels.
struct Stretch {
    /// What order 1 makes of the sample.
    first: Tensor,
    /// The factor of what is added for higher orders.
    gain: f32,
    /// (mᵢ − m₀) / rᵢ of the outputs before the last, `[rows, order - 1, ..]`.
    differences: Option<Tensor>,
    /// The matrix R of the paper and its right side b.
    system: (Tensor, Tensor),
}

impl UniPcMultistep {
    /// Whether the sample that the last prediction made is corrected by the output for it.
    fn corrects(&self) -> bool {
        let last = self.run.index().checked_sub(1);
        last.and_then(|step| i64::try_from(step).ok())
            .is_some_and(|step| !self.keys.disable_corrector.contains(&step))
    }

    /// From the level `back` levels ago to the one after it, starting at `sample`, with the outputs up
    /// to that level.
    fn stretch(&self, order: usize, back: usize, sample: &Tensor) -> Result<Stretch> {
        let (t, s0) = (self.run.level(back - 1)?, self.run.level(back)?);
        let h = t.lambda - s0.lambda;
        let m0 = self.outputs.back(0)?;
        let (mut ratios, mut differences) = (Vec::new(), Vec::new());
        for i in 1..order {
            let ratio = (self.run.level(back + i)?.lambda - s0.lambda) / h;
            ratios.push(ratio);
            differences.push(over(&self.outputs.back(i)?.f_sub(m0)?, ratio)?);
        }
        ratios.push(1.0);

        let hh = if self.keys.predict_x0 { -h } else { h };
        let h_phi_1 = expm1(hh)?;
        let b_h = match self.keys.solver_type {
            SolverType::Bh1 => hh,
            SolverType::Bh2 => h_phi_1,
        };
        let (kept, left, share) = self.shares(t, s0);
        let first = times(sample, kept / left)?.f_sub(&times(m0, share * h_phi_1)?)?;
        Ok(Stretch {
            first,
            gain: share * b_h,
            differences: match differences.as_slice() {
                [] => None,
                all => Some(Tensor::f_stack(all, 1)?),
            },
            system: system(&ratios, hh, h_phi_1, b_h, sample)?,
        })
    }

    /// The sample's share at the end and at the start of a stretch, and that of what is integrated.
    fn shares(&self, t: Level, s0: Level) -> (f32, f32, f32) {
        if self.keys.predict_x0 {
            (t.sigma, s0.sigma, t.alpha)
        } else {
            (t.alpha, s0.alpha, t.sigma)
        }
    }

    /// The predictor UniP: the sample after the next step.
    fn predict(&self, order: usize, sample: &Tensor) -> Result<Tensor> {
        let stretch = self.stretch(order, 1, sample)?;
        let Some(differences) = &stretch.differences else {
            return Ok(stretch.first);
        };
        let (matrix, right) = &stretch.system;
        let weights = if order == 2 {
            // The reference simplifies this one.
            half(sample)?
        } else {
            let rank = order as i64 - 1;
            let matrix = matrix.f_narrow(0, 0, rank)?.f_narrow(1, 0, rank)?;
            let right = right.f_narrow(0, 0, rank)?;
            Tensor::f_linalg_solve(&matrix, &right, true)?.f_to_kind(sample.kind())?
        };
        let higher = weighted(&weights, differences)?;
        Ok(stretch.first.f_sub(&times(&higher, stretch.gain)?)?)
    }

    /// The corrector UniC: the last step again, with the `output` for the sample that it had predicted.
    fn correct(&self, output: &Tensor, last_sample: &Tensor) -> Result<Tensor> {
        let order = self.order;
        let stretch = self.stretch(order, 2, last_sample)?;
        let (matrix, right) = &stretch.system;
        let weights = if order == 1 {
            half(last_sample)?
        } else {
            Tensor::f_linalg_solve(matrix, right, true)?.f_to_kind(last_sample.kind())?
        };
        let newest = output.f_sub(self.outputs.back(0)?)?;
        let mut higher = newest.f_mul(&weights.f_get(-1)?)?;
        if let Some(differences) = &stretch.differences {
            let older = weights.f_narrow(0, 0, order as i64 - 1)?;
            higher = weighted(&older, differences)?.f_add(&higher)?;
        }
        Ok(stretch.first.f_sub(&times(&higher, stretch.gain)?)?)
    }
}

/// The one weight of a simplified system, `[1]`, of the dtype of `like` and beside it.
fn half(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[0.5f32])?
        .f_to_kind(like.kind())?
        .f_to_device(like.device())?)
}

/// The sum of `differences` `[rows, k, ..]`, each times its weight, `[k]`.
fn weighted(weights: &Tensor, differences: &Tensor) -> Result<Tensor> {
    let operands = [weights, differences];
    Ok(Tensor::f_einsum("k,bkc...->bc...", &operands, None::<&[i64]>)?)
}

/// R `[order, order]` and b `[order]` of the paper's theorem 3.1 in float32, on the device of `beside`.
fn system(ratios: &[f32], hh: f32, h_phi_1: f32, b_h: f32, beside: &Tensor) -> Result<(Tensor, Tensor)> {
    let row = Tensor::f_from_slice(ratios)?.f_to_device(beside.device())?;
    let (mut rows, mut right) = (Vec::new(), Vec::new());
    let (mut h_phi_k, mut factorial) = (h_phi_1 / hh - 1.0, 1.0f64);
    for i in 0..ratios.len() {
        rows.push(row.f_pow_tensor_scalar(i as i64)?);
        right.push(h_phi_k * factorial as f32 / b_h);
        factorial *= (i + 2) as f64;
        h_phi_k = h_phi_k / hh - (1.0 / factorial) as f32;
    }
    Ok((
        Tensor::f_stack(&rows, 0)?,
        Tensor::f_from_slice(&right)?.f_to_device(beside.device())?,
    ))
}

impl Scheduler for UniPcMultistep {
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
        let shares = self.run.level(1)?.shares();
        let predicts = self.solver.prediction_type;
        let output = if self.keys.predict_x0 {
            let clean = shares.clean(predicts, model_output, sample)?;
            let thresholding = &self.solver.thresholding;
            if thresholding.thresholding {
                thresholding.apply(&clean)?
            } else {
                clean
            }
        } else {
            shares.noise(predicts, model_output, sample)?
        };
        let sample = match &self.last_sample {
            Some(last_sample) if self.corrects() => self.correct(&output, last_sample)?,
            _ => sample.shallow_clone(),
        };
        self.outputs.push(output);
        self.order = if self.solver.lower_order_final {
            self.solver.solver_order.min(self.run.left())
        } else {
            self.solver.solver_order
        }
        .min(self.outputs.len());
        let next = self.predict(self.order, &sample)?;
        self.last_sample = Some(sample);
        self.run.advance();
        Ok(next)
    }
}
