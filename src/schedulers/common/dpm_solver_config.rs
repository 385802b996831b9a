//! The keys of the two DPM-Solver classes.

use serde::Deserialize;

use super::config::RawConfig;
use super::sigmas::FinalSigmas;
use super::solver_config::SolverConfig;
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
    /// What a DEIS scheduler's configuration says. Only read, never kept: diffusers replaces it by
    /// `DpmSolverPlusPlus`.
    #[serde(rename = "deis")]
    Deis,
}

impl AlgorithmType {
    /// Noise is added.
    pub fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }

    /// The predicted sample is what is integrated.
    pub fn integrates_samples(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }
}

/// The variant of the solvers of second and third order.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// With the midpoint method. The other names are those of other schedulers' solvers; diffusers takes
    /// them as this one.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// With Heun's method.
    Heun,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    algorithm_type: AlgorithmType,
    solver_type: SolverType,
    euler_at_final: bool,
    final_sigmas_type: FinalSigmas,
    use_lu_lambdas: Option<bool>,
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

/// What both classes read.
#[derive(Clone, Debug)]
pub struct DpmSolverKeys {
    /// What all solvers have.
    pub solver: SolverConfig,
    /// What is integrated.
    pub algorithm_type: AlgorithmType,
    /// How, above the first order.
    pub solver_type: SolverType,
    /// First order for the last step.
    pub euler_at_final: bool,
    /// The sigma after the last step.
    pub final_sigmas_type: FinalSigmas,
    /// Sigmas whose logarithms lie evenly.
    pub use_lu_lambdas: bool,
}

impl DpmSolverKeys {
    /// Reads the keys of both classes.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches that are not done.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        raw.refuse("variance_type", &["learned", "learned_range"])?;
        let keys: Keys = raw.read()?;
        if !keys.algorithm_type.integrates_samples() && keys.final_sigmas_type == FinalSigmas::Zero {
            return Err(Error::invalid_argument(
                "scheduler_config.json: final_sigmas_type zero does not go with this algorithm_type; sigma_min does",
            ));
        }
        Ok(Self {
            solver: SolverConfig::read(raw, 1..=3)?,
            algorithm_type: match keys.algorithm_type {
                AlgorithmType::Deis => AlgorithmType::DpmSolverPlusPlus,
                other => other,
            },
            solver_type: keys.solver_type,
            euler_at_final: keys.euler_at_final,
            final_sigmas_type: keys.final_sigmas_type,
            use_lu_lambdas: keys.use_lu_lambdas == Some(true),
        })
    }
}
