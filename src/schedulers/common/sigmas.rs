//! The sigmas of training, and the spacings of a run's sigmas between two ends.
//!
//! A sample of noise level σ is the clean sample plus σ times standard normal noise. A training timestep with ᾱ has
//! σ = √((1−ᾱ)/ᾱ).
//!
//! Source: `_convert_to_karras`, `_convert_to_exponential`, `_convert_to_beta` and `_sigma_to_t` of
//! diffusers `schedulers/scheduling_euler_discrete.py`, in numpy's dtypes and rounding.

use serde::Deserialize;
use tch::Tensor;

use super::betas::to_vec;
use super::spacing::linspace;
use crate::schedulers::numerics::beta_distribution::quantile;
use crate::schedulers::numerics::numpy_log::log;
use crate::schedulers::numerics::torch_scalar::pow_half;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// The exponent ρ of Karras's schedule.
const RHO: f64 = 7.0;

/// The sigma after the last step.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// 0: no noise is left.
    Zero,
    /// The sigma of the cleanest training timestep.
    SigmaMin,
}

/// The spacing of a run's sigmas between the largest and the smallest, unless they are those of its timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaSpacing {
    /// Evenly in the seventh root (Karras et al., "Elucidating the Design Space of Diffusion-Based
    /// Generative Models", 2022, equation 5).
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// At quantiles of a beta distribution (Lee et al., "Beta Sampling is All You Need", 2024).
    Beta,
}

/// The keys of the spacing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SigmaKeys {
    /// Karras's spacing.
    pub use_karras_sigmas: Option<bool>,
    /// Even spacing of logarithms.
    pub use_exponential_sigmas: Option<bool>,
    /// Spacing by a beta distribution.
    pub use_beta_sigmas: Option<bool>,
    /// Replaces the smallest sigma.
    pub sigma_min: Option<f64>,
    /// Replaces the largest sigma.
    pub sigma_max: Option<f64>,
}

impl SigmaKeys {
    /// Returns the configured spacing, if any.
    ///
    /// # Errors
    /// `InvalidArgument` for more than one spacing, or for ends that are not above 0.
    pub fn conversion(&self) -> Result<Option<SigmaConversion>> {
        let spacings = [
            (self.use_karras_sigmas, SigmaSpacing::Karras),
            (self.use_exponential_sigmas, SigmaSpacing::Exponential),
            (self.use_beta_sigmas, SigmaSpacing::Beta),
        ];
        let mut wanted = spacings
            .into_iter()
            .filter(|(on, _)| *on == Some(true))
            .map(|(_, spacing)| spacing);
        let Some(spacing) = wanted.next() else {
            return Ok(None);
        };
        if wanted.next().is_some() {
            return Err(Error::invalid_argument(
                "scheduler_config.json: only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas may be set",
            ));
        }
        for (key, sigma) in [("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)] {
            if sigma.is_some_and(|sigma| !sigma.is_normal() || sigma < 0.0) {
                return Err(Error::invalid_argument(format!(
                    "scheduler_config.json: {key} must be above 0"
                )));
            }
        }
        Ok(Some(SigmaConversion {
            spacing,
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
        }))
    }
}

/// A configured spacing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SigmaConversion {
    /// The spacing between the ends.
    pub spacing: SigmaSpacing,
    /// Replaces the smallest sigma of the run.
    pub sigma_min: Option<f64>,
    /// Replaces the largest sigma of the run.
    pub sigma_max: Option<f64>,
}

impl SigmaConversion {
    /// Returns `steps` sigmas, largest first, between the configured ends. The first and the last of `in_sigmas` are the
    /// default ends.
    pub fn convert(&self, in_sigmas: &[f64], steps: usize) -> Vec<f64> {
        let end = |sigma: Option<&f64>| sigma.copied().unwrap_or_default();
        let min = self.sigma_min.unwrap_or_else(|| end(in_sigmas.last()));
        let max = self.sigma_max.unwrap_or_else(|| end(in_sigmas.first()));
        match self.spacing {
            SigmaSpacing::Karras => {
                let (min, max) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
                linspace(0.0, 1.0, steps)
                    .into_iter()
                    .map(|ramp| (max + ramp * (min - max)).powf(RHO))
                    .collect()
            }
            SigmaSpacing::Exponential => linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect(),
            SigmaSpacing::Beta => linspace(0.0, 1.0, steps)
                .into_iter()
                .map(|ramp| min + quantile(1.0 - ramp) * (max - min))
                .collect(),
        }
    }
}

/// The sigma of every training timestep. Converts timesteps to sigmas and back.
#[derive(Clone, Debug)]
pub struct TrainingSigmas {
    /// Cleanest first.
    sigmas: Vec<f32>,
    logs: Vec<f32>,
    /// The first sigma, computed by itself as diffusers does, which rounds differently.
    cleanest: f32,
}

impl TrainingSigmas {
    /// Computes the sigmas from ᾱ of every training timestep.
    ///
    /// # Errors
    /// `InvalidArgument` for fewer than two timesteps, or for ᾱ outside of (0, 1).
    pub fn new(alphas_cumprod: &[f32]) -> Result<Self> {
        // One `** 0.5` over all quotients, as in diffusers.
        let quotients: Vec<f32> = alphas_cumprod.iter().map(|alpha| (1.0 - alpha) / alpha).collect();
        let sigmas = to_vec(&Tensor::f_from_slice(&quotients)?.pow_number(0.5)?)?;
        if sigmas.len() < 2 || !sigmas.iter().all(|sigma| sigma.is_normal()) {
            return Err(Error::invalid_argument(
                "scheduler_config.json: the betas must make at least two timesteps, each with a finite sigma above 0",
            ));
        }
        Ok(Self {
            cleanest: pow_half(quotients.first().copied().unwrap_or_default())?,
            logs: sigmas.iter().map(|&sigma| log(sigma)).collect(),
            sigmas,
        })
    }

    /// Returns the sigma of every training timestep, cleanest first.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns the logarithms of the largest and the smallest sigma, as numpy computes them.
    pub fn log_sigma_ends(&self) -> (f64, f64) {
        let end = |log: Option<&f32>| f64::from(log.copied().unwrap_or_default());
        (end(self.logs.last()), end(self.logs.first()))
    }

    /// Returns the sigma at a timestep, interpolated between its neighbors, or at the nearest end:
    /// `np.interp(timestep, np.arange(0, len(sigmas)), sigmas)`.
    pub fn at(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let sigma = |index: usize| f64::from(self.sigmas[index]);
        if timestep.is_nan() || timestep <= 0.0 {
            return sigma(0);
        }
        let low = timestep as usize;
        if low >= last {
            return sigma(last);
        }
        let distance = timestep - low as f64;
        if distance == 0.0 {
            return sigma(low);
        }
        (sigma(low + 1) - sigma(low)) * distance + sigma(low)
    }

    /// Returns the timestep of a sigma by interpolation of logarithms: `_sigma_to_t` with numpy's arguments.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let (low, weight) = self.low_index_and_weight(sigma);
        f64::from(1.0 - weight) * low as f64 + f64::from(weight) * (low + 1) as f64
    }

    /// Returns the timestep of a sigma: `_sigma_to_t` with torch's arguments, which computes in float32.
    pub fn timestep_in_float32(&self, sigma: f32) -> f32 {
        let (low, weight) = self.low_index_and_weight(f64::from(sigma));
        (1.0 - weight) * low as f32 + weight * (low + 1) as f32
    }

    /// Returns the training timestep below a sigma, and the weight of the next timestep from 0 to 1.
    fn low_index_and_weight(&self, sigma: f64) -> (usize, f32) {
        // numpy does not widen a float32 array for a float64 scalar.
        let log = sigma.max(1e-10).ln() as f32;
        let at_or_below = self.logs.iter().rposition(|&other| log - other >= 0.0);
        let low = at_or_below.unwrap_or(0).min(self.logs.len() - 2);
        let (below, above) = (self.logs[low], self.logs[low + 1]);
        (low, ((below - log) / (below - above)).clamp(0.0, 1.0))
    }

    /// Returns the sigma after the last step.
    pub fn last(&self, final_sigmas: FinalSigmas) -> f32 {
        match final_sigmas {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => self.cleanest,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::betas::BetasConfig;
    use super::*;

    fn training() -> TrainingSigmas {
        TrainingSigmas::new(&BetasConfig::default().alphas_cumprod().unwrap()).unwrap()
    }

    fn keys(text: &str) -> SigmaKeys {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn timestep_of_sigma_of_timestep_is_the_timestep() {
        let training = training();
        for timestep in [0.0, 1.0, 17.25, 500.0, 998.5, 999.0] {
            let back = training.timestep(training.at(timestep));
            assert!((back - timestep).abs() < 0.02, "{timestep}: {back}");
            let in_float32 = training.timestep_in_float32(training.at(timestep) as f32);
            assert!((f64::from(in_float32) - timestep).abs() < 0.02);
        }
        assert_eq!(training.at(-3.0), training.at(0.0));
        assert_eq!(training.at(5e9), training.at(999.0));
        assert_eq!(training.timestep(0.0), 0.0);
        assert_eq!(training.timestep(1e9), 999.0);
    }

    #[test]
    fn convert_descends_between_its_ends() {
        for key in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"] {
            let on = keys(&format!(r#"{{"{key}": true}}"#));
            let conversion = on.conversion().unwrap().unwrap();
            for steps in 1..60 {
                let sigmas = conversion.convert(&[80.0, 3.0, 0.002], steps);
                assert_eq!(sigmas.len(), steps);
                assert!((sigmas[0] - 80.0).abs() < 1e-10, "{key}: {sigmas:?}");
                let last = sigmas[steps - 1];
                assert!(steps == 1 || (last - 0.002).abs() < 1e-10);
                assert!(sigmas.windows(2).all(|pair| pair[0] > pair[1]));
            }
            let ends = keys(&format!(r#"{{"{key}": true, "sigma_min": 0.5, "sigma_max": 9}}"#));
            let sigmas = ends.conversion().unwrap().unwrap().convert(&[80.0, 0.1], 7);
            assert!((sigmas[0] - 9.0).abs() < 1e-10 && (sigmas[6] - 0.5).abs() < 1e-10);
        }
    }

    #[test]
    fn conversion_of_bad_keys_is_refused() {
        assert_eq!(SigmaKeys::default().conversion().unwrap(), None);
        let null = keys(r#"{"use_karras_sigmas": null, "use_beta_sigmas": false}"#);
        assert_eq!(null.conversion().unwrap(), None);
        let two = keys(r#"{"use_karras_sigmas": true, "use_beta_sigmas": true}"#);
        assert!(two.conversion().unwrap_err().to_string().contains("only one of"));
        let zero = keys(r#"{"use_karras_sigmas": true, "sigma_min": 0}"#);
        assert!(zero.conversion().unwrap_err().to_string().contains("sigma_min"));
    }

    #[test]
    fn training_sigmas_of_bad_alphas_are_refused() {
        for alphas in [&[0.9][..], &[1.0, 0.5], &[0.5, 0.0], &[0.5, -0.5]] {
            assert!(TrainingSigmas::new(alphas).is_err(), "{alphas:?}");
        }
    }
}
