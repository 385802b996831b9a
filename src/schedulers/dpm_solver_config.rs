//! The configuration of `DPMSolverMultistepScheduler`.

use serde::Deserialize;
use serde_json::json;

use super::config::{PredictionType, RawConfig, TimestepSpacing};
use super::noise_schedule::BetasConfig;
use super::threshold::Thresholding;
use crate::error::{Error, Result};

/// What the solver integrates, and whether it adds noise.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum AlgorithmType {
    /// The predicted noise.
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// The predicted sample. `deis` is what a DEIS scheduler's configuration says; diffusers takes it as this one.
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmSolverPlusPlus,
    /// The predicted noise, with noise added.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
    /// The predicted sample, with noise added.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
}

/// The variant of the second-order solver.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// With the midpoint method. The other names are those of other schedulers' solvers; diffusers takes them as this one.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// With Heun's method.
    Heun,
}

/// The sigma after the last step.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// No noise is left.
    Zero,
    /// That of the cleanest training timestep.
    SigmaMin,
}

/// The keys that the class reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// The noise that training added.
    #[serde(flatten)]
    pub betas: BetasConfig,
    /// Dynamic thresholding of the predicted sample.
    #[serde(flatten)]
    pub thresholding: Thresholding,
    /// Outputs of the network that a step looks at: 1 to 3.
    pub solver_order: usize,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// What is integrated.
    pub algorithm_type: AlgorithmType,
    /// How, at second order.
    pub solver_type: SolverType,
    /// Lower orders for the last steps of a run of fewer than 15.
    pub lower_order_final: bool,
    /// First order for the last step.
    pub euler_at_final: bool,
    /// The sigma after the last step.
    pub final_sigmas_type: FinalSigmas,
    /// Timesteps with a lower half log-SNR than this are left out.
    pub lambda_min_clipped: f64,
    /// How timesteps are spaced.
    pub timestep_spacing: TimestepSpacing,
    /// Added to timesteps with `leading` spacing.
    pub steps_offset: i64,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            betas: BetasConfig::default(),
            thresholding: Thresholding::default(),
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            algorithm_type: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            final_sigmas_type: FinalSigmas::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
        }
    }
}

impl Keys {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        raw.require_off(&[
            ("use_karras_sigmas", json!(false)),
            ("use_exponential_sigmas", json!(false)),
            ("use_beta_sigmas", json!(false)),
            ("use_lu_lambdas", json!(false)),
            ("use_flow_sigmas", json!(false)),
            ("use_dynamic_shifting", json!(false)),
            ("variance_type", json!("fixed_small")),
        ])?;
        let keys: Keys = raw.read()?;
        if !(1..=3).contains(&keys.solver_order) {
            return Err(Error::invalid_argument(
                "scheduler_config.json: solver_order must be 1, 2 or 3",
            ));
        }
        let noise_prediction = matches!(
            keys.algorithm_type,
            AlgorithmType::DpmSolver | AlgorithmType::SdeDpmSolver
        );
        if noise_prediction && keys.final_sigmas_type == FinalSigmas::Zero {
            return Err(Error::invalid_argument(
                "scheduler_config.json: final_sigmas_type zero does not go with this algorithm_type; sigma_min does",
            ));
        }
        if keys.algorithm_type == AlgorithmType::SdeDpmSolver && keys.solver_order == 3 {
            return Err(Error::unsupported(
                "scheduler_config.json: solver_order 3 is not supported with algorithm_type sde-dpmsolver",
            ));
        }
        Ok(keys)
    }
}
