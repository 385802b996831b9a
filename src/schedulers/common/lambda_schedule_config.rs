//! The configuration of the solvers in half log-SNR, and the timesteps and sigmas of their runs.

use serde::Deserialize;
use serde_json::json;
use tch::Tensor;

use super::betas::BetasConfig;
use super::config::{BetaSchedule, PredictionType, RawConfig, TimestepSpacing};
use super::lambda_schedule::NoiseLevel;
use super::noise_schedule::{NoiseSchedule, equal_noise_levels_error};
use super::scheduler::SamplingOptions;
use super::sigmas::{SigmaConversion, SigmaKeys, SigmaSpacing, TrainingSigmas};
use super::spacing::{check_num_inference_steps, descending_without_cleanest};
use super::thresholding::Thresholding;
use crate::schedulers::numerics::torch_scalar::log;
use diffusion_core::{Error, Result};

/// The keys of these classes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    /// Dynamic thresholding of the predicted sample.
    #[serde(flatten)]
    pub thresholding: Thresholding,
    #[serde(flatten)]
    sigmas: SigmaKeys,
    /// Number of network outputs that a step uses.
    pub solver_order: usize,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Whether the last steps are of lower order.
    pub lower_order_final: bool,
    timestep_spacing: TimestepSpacing,
    steps_offset: i64,
    /// Null for `-Infinity`, which `serde_json::Value` cannot hold.
    lambda_min_clipped: Option<f64>,
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
            lambda_min_clipped: None,
        }
    }
}

/// The configuration of one class.
#[derive(Clone, Debug)]
pub struct LambdaScheduleConfig {
    /// The keys of the class.
    pub keys: Keys,
    /// Number of the noisiest training timesteps that runs leave out.
    clipped: i64,
    /// The spacing of sigmas, unless they are those of the timesteps.
    pub conversion: Option<SigmaConversion>,
    /// The sigmas of training.
    pub training: TrainingSigmas,
}

impl LambdaScheduleConfig {
    /// Reads the keys. A class without `rescale_betas_zero_snr` or `lambda_min_clipped` removes them first.
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
        let alphas_cumprod = keys.betas.alphas_cumprod_with_finite_sigmas()?;
        let clipped = clipped(&alphas_cumprod, keys.lambda_min_clipped)?;
        if clipped >= keys.betas.num_train_timesteps {
            return Err(Error::invalid_argument(
                "scheduler_config.json: lambda_min_clipped excludes every timestep",
            ));
        }
        Ok(Self {
            clipped,
            conversion: keys.sigmas.conversion()?,
            training: TrainingSigmas::new(&alphas_cumprod)?,
            keys,
        })
    }

    /// Returns whether the schedule of betas is a squared cosine.
    pub fn is_cosine(&self) -> bool {
        self.keys.betas.beta_schedule == BetaSchedule::SquaredcosCapV2
    }

    /// Returns the sigmas of training, largest first.
    pub fn training_sigmas(&self) -> Vec<f64> {
        let sigmas = self.training.sigmas().iter().rev();
        sigmas.map(|&sigma| f64::from(sigma)).collect()
    }

    /// Returns the schedule of a run: custom timesteps or the configured spacing of timesteps, with the sigmas of
    /// training; or the configured spacing of sigmas, with their timesteps. diffusers rounds the timesteps of Karras's
    /// spacing and truncates those of the others.
    ///
    /// # Errors
    /// `InvalidArgument` for options that the configuration does not allow, naming the argument.
    pub fn schedule(&self, options: &SamplingOptions) -> Result<NoiseSchedule> {
        let Some(conversion) = self.conversion else {
            return self.schedule_of_timesteps(options);
        };
        self.check_spaced_sigmas(options)?;
        let sigmas = conversion.convert(&self.training_sigmas(), options.num_inference_steps);
        Ok(self.schedule_of_sigmas(sigmas, conversion.spacing == SigmaSpacing::Karras))
    }

    /// Refuses options that do not go with a spacing of sigmas.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the argument.
    pub fn check_spaced_sigmas(&self, options: &SamplingOptions) -> Result<()> {
        if options.timesteps.is_some() {
            return Err(Error::invalid_argument(
                "gen_args: timesteps: not supported by a scheduler that spaces sigmas (use_karras_sigmas and the like)",
            ));
        }
        check_num_inference_steps(options.num_inference_steps, self.keys.betas.num_train_timesteps)
    }

    /// Returns the schedule of spaced sigmas. Their timesteps are rounded or truncated to whole numbers.
    pub fn schedule_of_sigmas(&self, sigmas: Vec<f64>, round: bool) -> NoiseSchedule {
        let timestep = |&sigma: &f64| {
            let timestep = self.training.timestep(sigma);
            if round {
                timestep.round_ties_even()
            } else {
                timestep.trunc()
            }
        };
        NoiseSchedule {
            timesteps: sigmas.iter().map(timestep).collect(),
            sigmas,
        }
    }

    fn schedule_of_timesteps(&self, options: &SamplingOptions) -> Result<NoiseSchedule> {
        let timesteps = match &options.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => self.timesteps(options.num_inference_steps)?,
        };
        let timesteps: Vec<f64> = timesteps.into_iter().map(|timestep| timestep as f64).collect();
        let sigmas = timesteps.iter().map(|&timestep| self.training.at(timestep)).collect();
        Ok(NoiseSchedule { timesteps, sigmas })
    }

    fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let train = self.keys.betas.num_train_timesteps;
        check_num_inference_steps(steps, train)?;
        let last = train - self.clipped;
        let timesteps =
            descending_without_cleanest(self.keys.timestep_spacing, train, last, steps, self.keys.steps_offset);
        if self.keys.solver_order > 1 && timesteps.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(equal_noise_levels_error());
        }
        Ok(timesteps)
    }

    /// Returns the clean sample that `model_output` predicts, within the bound of dynamic thresholding if that is on.
    pub fn pred_original_sample(&self, level: NoiseLevel, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let x0_pred = level
            .alpha_sigma()
            .pred_original_sample(self.keys.prediction_type, model_output, sample)?;
        self.keys.thresholding.apply(x0_pred)
    }
}

/// Counts the timesteps whose half log-SNR is below `lambda_min`, which are the noisiest.
fn clipped(alphas_cumprod: &[f32], lambda_min: Option<f64>) -> Result<i64> {
    let Some(lambda_min) = lambda_min else {
        return Ok(0);
    };
    let mut clipped = 0;
    for &alpha in alphas_cumprod {
        let lambda = log(alpha.sqrt())? - log((1.0 - alpha).sqrt())?;
        if f64::from(lambda) < lambda_min {
            clipped += 1;
        }
    }
    Ok(clipped)
}
