//! The keys that the solvers in half log-SNR share, and the timesteps and sigmas that they make.

use serde::Deserialize;
use serde_json::json;

use super::config::{BetaSchedule, PredictionType, RawConfig, TimestepSpacing};
use super::noise_schedule::{BetasConfig, to_vec};
use super::sigmas::{SigmaConversion, SigmaKeys, SigmaSpacing, TrainingSigmas};
use super::solver_run::Run;
use super::spacing::without_the_clean_end;
use super::threshold::Thresholding;
use crate::schedulers::numerics::torch_scalar::log;
use crate::schedulers::{Plan, check_steps};
use diffusion_core::{Error, Result};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    #[serde(flatten)]
    thresholding: Thresholding,
    #[serde(flatten)]
    sigmas: SigmaKeys,
    solver_order: usize,
    prediction_type: PredictionType,
    lower_order_final: bool,
    timestep_spacing: TimestepSpacing,
    steps_offset: i64,
    lambda_min_clipped: f64,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            betas: BetasConfig::default(),
            thresholding: Thresholding::default(),
            sigmas: SigmaKeys::default(),
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            lower_order_final: true,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            lambda_min_clipped: f64::NEG_INFINITY,
        }
    }
}

/// Timesteps and the sigmas of each of them, noisiest first.
#[derive(Debug)]
pub struct Ladder {
    /// What the network is told.
    pub timesteps: Vec<i64>,
    /// Noise over signal.
    pub sigmas: Vec<f64>,
}

impl Ladder {
    /// Refuses a ladder with two steps at one sigma, for a solver of an `order` that divides by their
    /// distance.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the argument.
    pub fn check_distances(&self, order: usize) -> Result<()> {
        if order > 1 && self.sigmas.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(equal_steps());
        }
        Ok(())
    }

    /// A run down the ladder to `last`, the sigma after the last step.
    pub fn run_to(self, last: f64) -> Run {
        let mut sigmas: Vec<f32> = self.sigmas.iter().map(|&sigma| sigma as f32).collect();
        sigmas.push(last as f32);
        Run::new(self.timesteps, sigmas)
    }
}

/// What the solvers share.
#[derive(Clone, Debug)]
pub struct SolverConfig {
    betas: BetasConfig,
    timestep_spacing: TimestepSpacing,
    steps_offset: i64,
    /// How many of the noisiest training timesteps are left out.
    clipped: i64,
    /// How the sigmas are spaced, where they are not those of the timesteps.
    pub conversion: Option<SigmaConversion>,
    /// The sigmas of training.
    pub training: TrainingSigmas,
    /// Dynamic thresholding of the predicted sample.
    pub thresholding: Thresholding,
    /// Outputs of the network that a step looks at.
    pub solver_order: usize,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Lower orders for the last steps.
    pub lower_order_final: bool,
}

impl SolverConfig {
    /// Reads the keys. A class that does not know `rescale_betas_zero_snr` or `lambda_min_clipped` takes
    /// them off the configuration first.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for the switches of flow matching.
    pub fn read(raw: &RawConfig, orders: std::ops::RangeInclusive<usize>) -> Result<Self> {
        raw.require_off(&[
            ("use_flow_sigmas", json!(false)),
            ("use_dynamic_shifting", json!(false)),
        ])?;
        let keys: Keys = raw.read()?;
        if !orders.contains(&keys.solver_order) {
            return Err(Error::invalid_argument(format!(
                "scheduler_config.json: solver_order must be {} to {}",
                orders.start(),
                orders.end()
            )));
        }
        let mut alphas_cumprod = to_vec(&keys.betas.alphas_cumprod()?)?;
        if keys.betas.rescale_betas_zero_snr
            && let Some(last) = alphas_cumprod.last_mut()
        {
            // Close to 0 without being 0, so that the first sigma is finite.
            *last = 2f32.powi(-24);
        }
        let clipped = clipped(&alphas_cumprod, keys.lambda_min_clipped)?;
        if clipped >= keys.betas.num_train_timesteps {
            return Err(Error::invalid_argument(
                "scheduler_config.json: lambda_min_clipped leaves no timestep",
            ));
        }
        Ok(Self {
            timestep_spacing: keys.timestep_spacing,
            steps_offset: keys.steps_offset,
            clipped,
            conversion: keys.sigmas.conversion()?,
            training: TrainingSigmas::new(&alphas_cumprod)?,
            thresholding: keys.thresholding,
            solver_order: keys.solver_order,
            prediction_type: keys.prediction_type,
            lower_order_final: keys.lower_order_final,
            betas: keys.betas,
        })
    }

    /// The schedule of betas is a squared cosine.
    pub fn is_cosine(&self) -> bool {
        self.betas.beta_schedule == BetaSchedule::SquaredcosCapV2
    }

    /// The sigmas of training, largest first.
    pub fn training_sigmas(&self) -> Vec<f64> {
        let sigmas = self.training.sigmas().iter().rev();
        sigmas.map(|&sigma| f64::from(sigma)).collect()
    }

    /// The ladder of a plan: its own timesteps, or as many as it wants, with the sigmas of training; or
    /// sigmas that are spaced by themselves, with the timesteps that have them. The timesteps of
    /// Karras's spacing are whole by rounding, the others' by leaving out what is behind the point.
    ///
    /// # Errors
    /// `InvalidArgument` for a plan that the configuration does not allow, naming the argument.
    pub fn ladder(&self, plan: &Plan) -> Result<Ladder> {
        let Some(conversion) = self.conversion else {
            return self.by_timesteps(plan);
        };
        self.check_spaced(plan)?;
        let sigmas = conversion.convert(&self.training_sigmas(), plan.num_inference_steps);
        Ok(self.by_sigmas(sigmas, conversion.spacing == SigmaSpacing::Karras))
    }

    /// Refuses a plan that does not go with sigmas that are spaced by themselves.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the argument.
    pub fn check_spaced(&self, plan: &Plan) -> Result<()> {
        if plan.timesteps.is_some() {
            return Err(Error::invalid_argument(
                "gen_args: timesteps: not taken by a scheduler that spaces sigmas (use_karras_sigmas and the like)",
            ));
        }
        check_steps(plan.num_inference_steps, self.betas.num_train_timesteps)
    }

    /// The ladder of sigmas that are spaced by themselves, with the timesteps that have them, rounded or
    /// cut off.
    pub fn by_sigmas(&self, sigmas: Vec<f64>, round: bool) -> Ladder {
        let timestep = |&sigma: &f64| {
            let timestep = self.training.timestep(sigma);
            if round {
                timestep.round_ties_even() as i64
            } else {
                timestep as i64
            }
        };
        Ladder {
            timesteps: sigmas.iter().map(timestep).collect(),
            sigmas,
        }
    }

    fn by_timesteps(&self, plan: &Plan) -> Result<Ladder> {
        let timesteps = match &plan.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => self.timesteps(plan.num_inference_steps)?,
        };
        Ok(Ladder {
            sigmas: timesteps
                .iter()
                .map(|&timestep| self.training.at(timestep as f64))
                .collect(),
            timesteps,
        })
    }

    fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let train = self.betas.num_train_timesteps;
        check_steps(steps, train)?;
        let timesteps = without_the_clean_end(
            self.timestep_spacing,
            train,
            train - self.clipped,
            steps,
            self.steps_offset,
        );
        // Two of one noise level leave a solver nothing to take a difference over.
        if self.solver_order > 1 && timesteps.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(equal_steps());
        }
        Ok(timesteps)
    }
}

fn equal_steps() -> Error {
    Error::invalid_argument("gen_args: num_inference_steps: too many for this scheduler: two steps have the same noise")
}

/// How many of the noisiest timesteps have a lower half log-SNR than `lambda_min`.
fn clipped(alphas_cumprod: &[f32], lambda_min: f64) -> Result<i64> {
    if lambda_min <= f64::MIN {
        return Ok(0);
    }
    let mut clipped = 0;
    for &alpha in alphas_cumprod {
        let lambda = log(alpha.sqrt())? - log((1.0 - alpha).sqrt())?;
        if f64::from(lambda) < lambda_min {
            clipped += 1;
        }
    }
    Ok(clipped)
}
