//! The arithmetic of DPM-Solver and DPM-Solver++ (Lu et al., 2022), the same for one step of several
//! calls and for several steps of one call.
//!
//! Source: diffusers `schedulers/scheduling_dpmsolver_multistep.py` and
//! `scheduling_dpmsolver_singlestep.py`.

use tch::Tensor;

use super::dpm_solver_config::{AlgorithmType, DpmSolverKeys, SolverType};
use super::prediction::times;
use super::solver_run::Level;
use crate::schedulers::numerics::torch_scalar::{exp, pow, sqrt};
use diffusion_core::Result;

/// What the solver integrates: the predicted sample (++), or the predicted noise.
///
/// # Errors
/// Out of memory.
pub fn convert(keys: &DpmSolverKeys, level: Level, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
    let (shares, predicts) = (level.shares(), keys.solver.prediction_type);
    let thresholding = &keys.solver.thresholding;
    if keys.algorithm_type.integrates_samples() {
        let clean = shares.clean(predicts, output, sample)?;
        if thresholding.thresholding {
            return thresholding.apply(&clean);
        }
        return Ok(clean);
    }
    let noise = shares.noise(predicts, output, sample)?;
    if !thresholding.thresholding {
        return Ok(noise);
    }
    let clean = thresholding.apply(&shares.without_noise(&noise, sample)?)?;
    shares.without_signal(&clean, sample)
}

/// What an update sums up, beside the sample that it starts from: the papers' D0, D1 and D2, and noise.
#[derive(Debug)]
pub struct Terms<'a> {
    /// What is integrated, where the update starts.
    pub d0: &'a Tensor,
    /// Its slope, from the second order on.
    pub d1: Option<Tensor>,
    /// Its curvature, at the third order.
    pub d2: Option<Tensor>,
    /// What is added, where noise is.
    pub noise: Option<&'a Tensor>,
}

/// The update of `order` from level `from` to level `to`.
///
/// # Errors
/// Out of memory.
pub fn update(
    keys: &DpmSolverKeys,
    order: usize,
    from: Level,
    to: Level,
    sample: &Tensor,
    terms: Terms<'_>,
) -> Result<Tensor> {
    let heun = keys.solver_type == SolverType::Heun || order == 3;
    let factors = Factors::new(keys.algorithm_type, heun, from, to)?;
    let mut next = times(sample, factors.sample)?.f_add(&times(terms.d0, factors.d0)?)?;
    let others = [
        (terms.d1.as_ref(), factors.d1),
        (terms.d2.as_ref(), factors.d2),
        (terms.noise, factors.noise),
    ];
    for (term, factor) in others {
        if let Some(term) = term {
            next = next.f_add(&times(term, factor)?)?;
        }
    }
    Ok(next)
}

/// The factors of the terms. One that diffusers subtracts is negated here, which is exact.
struct Factors {
    sample: f32,
    d0: f32,
    d1: f32,
    d2: f32,
    noise: f32,
}

impl Factors {
    fn new(algorithm: AlgorithmType, heun: bool, s: Level, t: Level) -> Result<Self> {
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
