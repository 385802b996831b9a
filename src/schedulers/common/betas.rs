//! The noise that training added at each timestep.
//!
//! Source: the constructors of diffusers' schedulers, and `rescale_zero_terminal_snr` and `betas_for_alpha_bar` in
//! `schedulers/scheduling_ddim.py`. The operations are libtorch's in diffusers' order, because other sums round
//! differently.

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::config::BetaSchedule;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// Largest accepted number of training timesteps. All known models have 1000.
const MAX_TRAIN_TIMESTEPS: i64 = 100_000;

/// The keys of the betas, with diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct BetasConfig {
    /// Training timesteps.
    pub num_train_timesteps: i64,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// The shape of the betas between the ends.
    pub beta_schedule: BetaSchedule,
    /// One beta per training timestep, instead of a schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// Scales the betas to leave no signal at the last timestep (Lin et al., 2023, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// Whether the class has `beta_schedule` `exp`.
    #[serde(skip)]
    pub allow_exp: bool,
}

impl Default for BetasConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            allow_exp: false,
        }
    }
}

impl BetasConfig {
    /// Computes ᾱ of every training timestep.
    ///
    /// # Errors
    /// `InvalidArgument` for betas that make no schedule; `Unsupported` for a schedule that the class does not have.
    pub fn alphas_cumprod(&self) -> Result<Vec<f32>> {
        if self.trained_betas.is_none() && self.beta_schedule == BetaSchedule::Exp && !self.allow_exp {
            return Err(Error::unsupported(
                "scheduler_config.json: beta_schedule exp is supported by HeunDiscreteScheduler alone",
            ));
        }
        let steps = self.num_train_timesteps;
        if !(1..=MAX_TRAIN_TIMESTEPS).contains(&steps) {
            return Err(Error::invalid_argument(format!(
                "scheduler_config.json: num_train_timesteps must be 1 to {MAX_TRAIN_TIMESTEPS}"
            )));
        }
        let mut betas = self.betas()?;
        if betas.size() != [steps] {
            return Err(Error::invalid_argument(
                "scheduler_config.json: trained_betas must have num_train_timesteps entries",
            ));
        }
        if self.rescale_betas_zero_snr {
            betas = rescale_zero_terminal_snr(&betas)?;
        }
        to_vec(&one_minus(&betas)?.f_cumprod(0, None::<Kind>)?)
    }

    /// Computes ᾱ of every training timestep for a class that counts in sigmas: with `rescale_betas_zero_snr` the last
    /// ᾱ is close to 0 but not 0, and its sigma is finite.
    ///
    /// # Errors
    /// As [`BetasConfig::alphas_cumprod`].
    pub fn alphas_cumprod_with_finite_sigmas(&self) -> Result<Vec<f32>> {
        let mut alphas_cumprod = self.alphas_cumprod()?;
        if self.rescale_betas_zero_snr
            && let Some(last) = alphas_cumprod.last_mut()
        {
            *last = 2f32.powi(-24);
        }
        Ok(alphas_cumprod)
    }

    fn betas(&self) -> Result<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        let steps = self.num_train_timesteps;
        if let Some(betas) = &self.trained_betas {
            return Ok(Tensor::f_from_slice(betas)?.f_to_kind(Kind::Float)?);
        }
        match self.beta_schedule {
            BetaSchedule::Linear => Ok(Tensor::f_linspace(self.beta_start, self.beta_end, steps, options)?),
            BetaSchedule::ScaledLinear => {
                let roots = Tensor::f_linspace(self.beta_start.sqrt(), self.beta_end.sqrt(), steps, options)?;
                Ok(roots.pow_number(2)?)
            }
            BetaSchedule::SquaredcosCapV2 => {
                self.betas_for_alpha_bar(|t| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2))
            }
            BetaSchedule::Exp => self.betas_for_alpha_bar(|t| (t * -12.0).exp()),
        }
    }

    /// Computes the betas of an ᾱ that is a function of the time from 0 to 1.
    fn betas_for_alpha_bar(&self, alpha_bar: impl Fn(f64) -> f64) -> Result<Tensor> {
        let n = self.num_train_timesteps as f64;
        let betas: Vec<f64> = (0..self.num_train_timesteps)
            .map(|i| (1.0 - alpha_bar((i + 1) as f64 / n) / alpha_bar(i as f64 / n)).min(0.999))
            .collect();
        Ok(Tensor::f_from_slice(&betas)?.f_to_kind(Kind::Float)?)
    }
}

fn one_minus(tensor: &Tensor) -> Result<Tensor> {
    tensor.f_neg()?.add_number(1.0)
}

fn rescale_zero_terminal_snr(betas: &Tensor) -> Result<Tensor> {
    let roots = one_minus(betas)?.f_cumprod(0, None::<Kind>)?.f_sqrt()?;
    let (first, last) = (roots.f_get(0)?, roots.f_get(-1)?);
    let scale = first.f_div(&first.f_sub(&last)?)?;
    let alphas_bar = roots.f_sub(&last)?.f_mul(&scale)?.pow_number(2)?;
    let rest = alphas_bar.size1()? - 1;
    let ratios = alphas_bar
        .f_narrow(0, 1, rest)?
        .f_div(&alphas_bar.f_narrow(0, 0, rest)?)?;
    one_minus(&Tensor::f_cat(&[alphas_bar.f_narrow(0, 0, 1)?, ratios], 0)?)
}

/// Copies the numbers out of a float32 tensor `[n]`.
///
/// # Errors
/// `Internal` for another dtype or shape.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(tensor)?)
}
