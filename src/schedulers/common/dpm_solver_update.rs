//! The arithmetic of DPM-Solver and DPM-Solver++ (Lu et al., 2022), which the multistep and the singlestep class share.
//!
//! Source: `convert_model_output` and the `*_update` functions of diffusers'
//! `schedulers/scheduling_dpmsolver_multistep.py` and `scheduling_dpmsolver_singlestep.py`.

use tch::Tensor;

use super::dpm_solver_config::{AlgorithmType, DpmSolverConfig, SolverType};
use super::lambda_schedule::NoiseLevel;
use super::prediction::mul_scalar;
use crate::schedulers::numerics::torch_scalar::{exp, pow, sqrt};
use diffusion_core::Result;

/// Returns what the solver integrates: the predicted sample (++) or the predicted noise.
pub fn convert_model_output(
    config: &DpmSolverConfig,
    level: NoiseLevel,
    model_output: &Tensor,
    sample: &Tensor,
) -> Result<Tensor> {
    let solver = &config.solver;
    if config.keys.algorithm_type.integrates_samples() {
        return solver.pred_original_sample(level, model_output, sample);
    }
    let alpha_sigma = level.alpha_sigma();
    let epsilon = alpha_sigma.pred_epsilon(solver.keys.prediction_type, model_output, sample)?;
    if !solver.keys.thresholding.thresholding {
        return Ok(epsilon);
    }
    let x0_pred = solver
        .keys
        .thresholding
        .apply(alpha_sigma.remove_noise(&epsilon, sample)?)?;
    alpha_sigma.remove_signal(&x0_pred, sample)
}

/// The summands of an update in addition to the sample: the papers' D0, D1 and D2, and noise.
#[derive(Debug)]
pub struct Terms<'a> {
    /// The integrand where the update starts.
    pub d0: &'a Tensor,
    /// The slope of the integrand, from the second order on.
    pub d1: Option<Tensor>,
    /// The curvature of the integrand, at the third order.
    pub d2: Option<Tensor>,
    /// Standard normal noise, for a stochastic algorithm.
    pub noise: Option<&'a Tensor>,
}

/// Returns the sample of level `to`, given the sample of level `from` and the terms of `order`.
pub fn update(
    config: &DpmSolverConfig,
    order: usize,
    from: NoiseLevel,
    to: NoiseLevel,
    sample: &Tensor,
    terms: Terms<'_>,
) -> Result<Tensor> {
    let heun = config.keys.solver_type == SolverType::Heun || order == 3;
    let factors = Factors::new(config.keys.algorithm_type, heun, from, to)?;
    let mut x_t = mul_scalar(sample, factors.sample)?.f_add(&mul_scalar(terms.d0, factors.d0)?)?;
    let others = [
        (terms.d1.as_ref(), factors.d1),
        (terms.d2.as_ref(), factors.d2),
        (terms.noise, factors.noise),
    ];
    for (term, factor) in others {
        if let Some(term) = term {
            x_t = x_t.f_add(&mul_scalar(term, factor)?)?;
        }
    }
    Ok(x_t)
}

/// The factors of the terms. Where diffusers subtracts a term the factor is negated, which is exact.
struct Factors {
    sample: f32,
    d0: f32,
    d1: f32,
    d2: f32,
    noise: f32,
}

impl Factors {
    fn new(algorithm: AlgorithmType, heun: bool, s: NoiseLevel, t: NoiseLevel) -> Result<Self> {
        let h = t.lambda - s.lambda;
        Ok(match algorithm {
            AlgorithmType::DpmSolverPlusPlus | AlgorithmType::Deis => {
                let e = exp(-h)? - 1.0;
                Self {
                    sample: t.sigma / s.sigma,
                    d0: -(t.alpha * e),
                    d1: if heun {
                        t.alpha * (e / h + 1.0)
                    } else {
                        -(0.5 * (t.alpha * e))
                    },
                    d2: -(t.alpha * ((e + h) / pow(h, 2.0)? - 0.5)),
                    noise: 0.0,
                }
            }
            AlgorithmType::DpmSolver => {
                let e = exp(h)? - 1.0;
                Self {
                    sample: t.alpha / s.alpha,
                    d0: -(t.sigma * e),
                    d1: if heun {
                        -(t.sigma * (e / h - 1.0))
                    } else {
                        -(0.5 * (t.sigma * e))
                    },
                    d2: -(t.sigma * ((e - h) / pow(h, 2.0)? - 0.5)),
                    noise: 0.0,
                }
            }
            AlgorithmType::SdeDpmSolverPlusPlus => {
                let e = 1.0 - exp(-2.0 * h)?;
                let d2 = (e - 2.0 * h) / pow(2.0 * h, 2.0)? - 0.5;
                Self {
                    sample: t.sigma / s.sigma * exp(-h)?,
                    d0: t.alpha * e,
                    d1: if heun {
                        t.alpha * (e / (-2.0 * h) + 1.0)
                    } else {
                        0.5 * (t.alpha * e)
                    },
                    d2: t.alpha * d2,
                    noise: t.sigma * sqrt(e)?,
                }
            }
            AlgorithmType::SdeDpmSolver => {
                let e = exp(h)? - 1.0;
                Self {
                    sample: t.alpha / s.alpha,
                    d0: -(2.0 * (t.sigma * e)),
                    d1: if heun {
                        -(2.0 * (t.sigma * (e / h - 1.0)))
                    } else {
                        -(t.sigma * e)
                    },
                    d2: 0.0,
                    noise: t.sigma * sqrt(exp(2.0 * h)? - 1.0)?,
                }
            }
        })
    }
}
