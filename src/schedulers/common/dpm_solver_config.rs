//! The configuration of the two DPM-Solver classes.

use serde::Deserialize;

use super::config::RawConfig;
use super::lambda_schedule_config::LambdaScheduleConfig;
use super::sigmas::FinalSigmas;
use diffusion_core::{Error, Result};

/// What the solver integrates, and whether it adds noise.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum AlgorithmType {
    /// The predicted noise.
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// The predicted sample.
    #[serde(rename = "dpmsolver++")]
    DpmSolverPlusPlus,
    /// The predicted noise, with noise added.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
    /// The predicted sample, with noise added.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
    /// From the configuration of a DEIS scheduler. diffusers replaces it by `DpmSolverPlusPlus`, as does
    /// [`DpmSolverConfig::read`].
    #[serde(rename = "deis")]
    Deis,
}

impl AlgorithmType {
    /// Returns whether a step adds noise.
    pub fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }

    /// Returns whether the predicted sample is integrated, rather than the predicted noise.
    pub fn integrates_samples(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }
}

/// The variant of the solvers of second and third order.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The midpoint method. diffusers takes the names of other schedulers' solvers for this one.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// Heun's method.
    Heun,
}

/// The keys of both classes that other solvers do not have.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// What the solver integrates, and whether it adds noise.
    pub algorithm_type: AlgorithmType,
    /// The variant of the higher orders.
    pub solver_type: SolverType,
    /// Whether the last step is of first order.
    pub euler_at_final: bool,
    /// The sigma after the last step.
    pub final_sigmas_type: FinalSigmas,
    /// Whether the logarithms of sigmas are spaced evenly (Lu's spacing).
    pub use_lu_lambdas: Option<bool>,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            algorithm_type: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            euler_at_final: false,
            final_sigmas_type: FinalSigmas::Zero,
            use_lu_lambdas: None,
        }
    }
}

/// The configuration of both classes.
#[derive(Clone, Debug)]
pub struct DpmSolverConfig {
    /// The configuration that all solvers share.
    pub solver: LambdaScheduleConfig,
    /// The further keys.
    pub keys: Keys,
}

impl DpmSolverConfig {
    /// Reads the keys of both classes.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        raw.refuse("variance_type", &["learned", "learned_range"])?;
        let mut keys: Keys = raw.read()?;
        if !keys.algorithm_type.integrates_samples() && keys.final_sigmas_type == FinalSigmas::Zero {
            return Err(Error::invalid_argument(
                "scheduler_config.json: this algorithm_type requires final_sigmas_type sigma_min, got zero",
            ));
        }
        if keys.algorithm_type == AlgorithmType::Deis {
            keys.algorithm_type = AlgorithmType::DpmSolverPlusPlus;
        }
        let solver = LambdaScheduleConfig::read(raw, 1..=3)?;
        Ok(Self { solver, keys })
    }
}
