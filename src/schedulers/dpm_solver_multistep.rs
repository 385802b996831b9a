//! Lu et al., "DPM-Solver" and "DPM-Solver++" (2022).
//!
//! Source: diffusers `schedulers/scheduling_dpmsolver_multistep.py`.

use tch::{Kind, Tensor};

use super::config::{PredictionType, RawConfig, TimestepSpacing};
use super::dpm_solver_config::{AlgorithmType, FinalSigmas, Keys, SolverType};
use super::noise_schedule::to_vec;
use super::scalar::{exp, log, pow, root, sqrt};
use super::spacing::{descending_to_zero, linspace, rounded};
use super::{Family, Plan, Scheduler, check_steps, past_the_end, to_floats};
use crate::error::{Error, Result};
use crate::libtorch::Generator;

/// `DPMSolverMultistepScheduler`.
#[derive(Clone, Debug)]
pub struct DpmSolverMultistepConfig {
    keys: Keys,
    alphas_cumprod: Vec<f32>,
    /// √((1−ᾱ)/ᾱ) of every training timestep.
    sigmas: Vec<f32>,
}

impl DpmSolverMultistepConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let keys = Keys::read(raw)?;
        let mut alphas_cumprod = to_vec(&keys.betas.alphas_cumprod()?)?;
        if keys.betas.rescale_betas_zero_snr
            && let Some(last) = alphas_cumprod.last_mut()
        {
            // Close to 0 without being 0, so that the first sigma is finite.
            *last = 2f32.powi(-24);
        }
        // `(..) ** 0.5` over all of them at once, as the scheduler's constructor does.
        let quotients: Vec<f32> = alphas_cumprod
            .iter()
            .map(|alpha| (1.0 - alpha) / alpha)
            .collect();
        let sigmas = to_vec(&Tensor::f_from_slice(&quotients)?.f_pow_tensor_scalar(0.5)?)?;
        Ok(Self {
            keys,
            alphas_cumprod,
            sigmas,
        })
    }

    fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let train = self.keys.betas.num_train_timesteps;
        check_steps(steps, train)?;
        let last = train - self.clipped()?;
        if last < 1 {
            return Err(Error::invalid_argument(
                "scheduler_config.json: lambda_min_clipped leaves no timestep",
            ));
        }
        Ok(match self.keys.timestep_spacing {
            TimestepSpacing::Linspace => {
                let ascending = rounded(&linspace(0.0, (last - 1) as f64, steps + 1));
                ascending.into_iter().skip(1).rev().collect()
            }
            TimestepSpacing::Leading => {
                let ratio = last / (steps as i64 + 1);
                (1..=steps as i64)
                    .rev()
                    .map(|i| i * ratio + self.keys.steps_offset)
                    .collect()
            }
            TimestepSpacing::Trailing => {
                let noisy = descending_to_zero(last as f64, train as f64 / steps as f64);
                rounded(&noisy).into_iter().map(|t| t - 1).collect()
            }
        })
    }

    /// How many of the noisiest timesteps lie below `lambda_min_clipped`.
    fn clipped(&self) -> Result<i64> {
        let mut clipped = 0;
        for &alpha in &self.alphas_cumprod {
            let lambda = log(alpha.sqrt())? - log((1.0 - alpha).sqrt())?;
            if f64::from(lambda) < self.keys.lambda_min_clipped {
                clipped += 1;
            }
        }
        Ok(clipped)
    }
}

impl Family for DpmSolverMultistepConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let timesteps = match &plan.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => self.timesteps(plan.num_inference_steps)?,
        };
        let all = &self.sigmas;
        let last = all.len().saturating_sub(1);
        // `np.interp` over whole numbers: the sigma at that place, or at the nearest end.
        let mut sigmas: Vec<f32> = timesteps
            .iter()
            .filter_map(|&t| all.get(usize::try_from(t).unwrap_or(0).min(last)).copied())
            .collect();
        sigmas.push(match self.keys.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => {
                let first = self.alphas_cumprod.first().copied().unwrap_or(1.0);
                root((1.0 - first) / first)?
            }
        });
        Ok(Box::new(DpmSolverMultistep {
            index: first_index(&timesteps),
            begin: 0,
            keys: self.keys.clone(),
            floats: to_floats(&timesteps),
            sigmas,
            outputs: Vec::new(),
            lower_order_nums: 0,
            calls: 0,
        }))
    }
}

/// Where the first step begins: at the second of two equal timesteps, so that a run that starts in
/// the middle does not skip a sigma (`index_for_timestep`).
fn first_index(timesteps: &[i64]) -> usize {
    usize::from(timesteps.len() > 1 && timesteps.first() == timesteps.get(1))
}

/// One noise level, in the terms of the papers.
struct Level {
    alpha: f32,
    sigma: f32,
    lambda: f32,
}

impl Level {
    fn new(sigma: f32) -> Result<Self> {
        let alpha = 1.0 / root(pow(sigma, 2.0)? + 1.0)?;
        let sigma = sigma * alpha;
        Ok(Self {
            alpha,
            sigma,
            lambda: log(alpha)? - log(sigma)?,
        })
    }
}

struct DpmSolverMultistep {
    keys: Keys,
    /// The timesteps.
    floats: Vec<f64>,
    begin: usize,
    /// One more than timesteps.
    sigmas: Vec<f32>,
    /// The last outputs of the network, converted, oldest first; at most `solver_order`.
    outputs: Vec<Tensor>,
    lower_order_nums: usize,
    index: usize,
    calls: usize,
}

/// `a·x`.
fn times(x: &Tensor, a: f32) -> Result<Tensor> {
    Ok(x.f_mul_scalar(f64::from(a))?)
}

impl Scheduler for DpmSolverMultistep {
    fn timesteps(&self) -> &[f64] {
        self.floats.get(self.begin..).unwrap_or_default()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.begin = begin_index;
        self.index = begin_index;
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let Level { alpha, sigma, .. } = self.level(1)?;
        Ok(times(original, alpha)?.f_add(&times(noise, sigma)?)?)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        sample: &Tensor,
        generator: &mut Generator,
    ) -> Result<Tensor> {
        if self.calls >= self.timesteps().len() {
            return Err(past_the_end());
        }
        self.calls += 1;
        let steps = self.floats.len();
        let keys = &self.keys;
        let few = keys.lower_order_final && steps < 15;
        let lower_order_final = self.index + 1 == steps
            && (keys.euler_at_final || few || keys.final_sigmas_type == FinalSigmas::Zero);
        let lower_order_second = self.index + 2 == steps && few;

        let output = self.convert(model_output, sample)?;
        let kind = output.kind();
        if self.outputs.len() == keys.solver_order {
            drop(self.outputs.remove(0));
        }
        self.outputs.push(output);

        let sample = sample.f_to_kind(Kind::Float)?;
        let stochastic = matches!(
            keys.algorithm_type,
            AlgorithmType::SdeDpmSolver | AlgorithmType::SdeDpmSolverPlusPlus
        );
        let noise = stochastic
            .then(|| -> Result<Tensor> {
                let noise = generator.randn(&sample.size(), Kind::Float)?;
                Ok(noise.f_to_device(sample.device())?)
            })
            .transpose()?;

        let order = if keys.solver_order == 1 || self.lower_order_nums < 1 || lower_order_final {
            1
        } else if keys.solver_order == 2 || self.lower_order_nums < 2 || lower_order_second {
            2
        } else {
            3
        };
        let next = self.update(order, &sample, noise.as_ref())?;
        self.lower_order_nums = (self.lower_order_nums + 1).min(keys.solver_order);
        self.index += 1;
        Ok(next.f_to_kind(kind)?)
    }
}

impl DpmSolverMultistep {
    fn level(&self, back: usize) -> Result<Level> {
        let index = (self.index + 1)
            .checked_sub(back)
            .ok_or_else(past_the_end)?;
        Level::new(*self.sigmas.get(index).ok_or_else(past_the_end)?)
    }

    /// What the solver integrates: the predicted sample (++), or the predicted noise.
    fn convert(&self, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let Level { alpha, sigma, .. } = self.level(1)?;
        let over = |x: Tensor, a: f32| x.f_div_scalar(f64::from(a));
        let thresholding = &self.keys.thresholding;
        match self.keys.algorithm_type {
            AlgorithmType::DpmSolverPlusPlus | AlgorithmType::SdeDpmSolverPlusPlus => {
                let x0 = match self.keys.prediction_type {
                    PredictionType::Epsilon => over(sample.f_sub(&times(output, sigma)?)?, alpha)?,
                    PredictionType::Sample => output.shallow_clone(),
                    PredictionType::VPrediction => {
                        times(sample, alpha)?.f_sub(&times(output, sigma)?)?
                    }
                };
                if thresholding.thresholding {
                    thresholding.apply(&x0)
                } else {
                    Ok(x0)
                }
            }
            AlgorithmType::DpmSolver | AlgorithmType::SdeDpmSolver => {
                let epsilon = match self.keys.prediction_type {
                    PredictionType::Epsilon => output.shallow_clone(),
                    PredictionType::Sample => over(sample.f_sub(&times(output, alpha)?)?, sigma)?,
                    PredictionType::VPrediction => {
                        times(output, alpha)?.f_add(&times(sample, sigma)?)?
                    }
                };
                if !thresholding.thresholding {
                    return Ok(epsilon);
                }
                let x0 = over(sample.f_sub(&times(&epsilon, sigma)?)?, alpha)?;
                let x0 = thresholding.apply(&x0)?;
                Ok(over(sample.f_sub(&times(&x0, alpha)?)?, sigma)?)
            }
        }
    }

    /// The output `back` calls ago.
    fn output(&self, back: usize) -> Result<&Tensor> {
        self.outputs
            .len()
            .checked_sub(back + 1)
            .and_then(|i| self.outputs.get(i))
            .ok_or_else(past_the_end)
    }

    /// The update of the given order: a sum of the sample, the differences of the outputs up to that
    /// order, and noise, each with its factor.
    fn update(&self, order: usize, sample: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (t, s0) = (self.level(0)?, self.level(1)?);
        let h = t.lambda - s0.lambda;
        let d0 = self.output(0)?;
        // The differences D1 and D2 of the papers.
        let (d1, d2) = match order {
            1 => (None, None),
            2 => {
                let h0 = s0.lambda - self.level(2)?.lambda;
                let r0 = h0 / h;
                (Some(times(&d0.f_sub(self.output(1)?)?, 1.0 / r0)?), None)
            }
            _ => {
                let (s1, s2) = (self.level(2)?, self.level(3)?);
                let (r0, r1) = ((s0.lambda - s1.lambda) / h, (s1.lambda - s2.lambda) / h);
                let (m1, m2) = (self.output(1)?, self.output(2)?);
                let d1_0 = times(&d0.f_sub(m1)?, 1.0 / r0)?;
                let d1_1 = times(&m1.f_sub(m2)?, 1.0 / r1)?;
                let difference = d1_0.f_sub(&d1_1)?;
                let d1 = d1_0.f_add(&times(&difference, r0 / (r0 + r1))?)?;
                (Some(d1), Some(times(&difference, 1.0 / (r0 + r1))?))
            }
        };
        let terms = self.factors(&t, &s0, h, order)?;
        let mut next = times(sample, terms.sample)?.f_add(&times(d0, terms.d0)?)?;
        for (difference, factor) in [(&d1, terms.d1), (&d2, terms.d2)] {
            if let Some(difference) = difference {
                next = next.f_add(&times(difference, factor)?)?;
            }
        }
        if let Some(noise) = noise {
            next = next.f_add(&times(noise, terms.noise)?)?;
        }
        Ok(next)
    }

    /// The factors of an update. A factor that diffusers subtracts is negated here, which is exact.
    fn factors(&self, t: &Level, s0: &Level, h: f32, order: usize) -> Result<Factors> {
        let heun = self.keys.solver_type == SolverType::Heun || order == 3;
        let factors = match self.keys.algorithm_type {
            AlgorithmType::DpmSolverPlusPlus => {
                let e = exp(-h)? - 1.0;
                Factors {
                    sample: t.sigma / s0.sigma,
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
                Factors {
                    sample: t.alpha / s0.alpha,
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
                Factors {
                    sample: t.sigma / s0.sigma * exp(-h)?,
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
                Factors {
                    sample: t.alpha / s0.alpha,
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
        };
        Ok(factors)
    }
}

struct Factors {
    sample: f32,
    d0: f32,
    d1: f32,
    d2: f32,
    noise: f32,
}
