//! The samplers, named as diffusers names them.
//!
//! A [`SchedulerConfig`] is read once when a model is loaded and never changes; each job builds its
//! own [`Scheduler`] from it, which holds the state of one run. The arithmetic follows diffusers
//! operation by operation, in its dtypes, so that the samples are equal to the byte.

mod config;
mod ddim;
mod dpm_solver_config;
mod dpm_solver_multistep;
mod noise_schedule;
mod pndm;
mod scalar;
mod spacing;
mod threshold;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::libtorch::Generator;

pub use config::{PredictionType, RawConfig, TimestepSpacing};

use ddim::DdimConfig;
use dpm_solver_multistep::DpmSolverMultistepConfig;
use pndm::PndmConfig;

/// The state of one run of a sampler.
pub trait Scheduler: Send {
    /// The timesteps of the run, one for each UNet call, descending.
    fn timesteps(&self) -> &[i64];

    /// Standard deviation of the starting noise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// One step: from the network's output and the sample that it saw to the next sample, all of one
    /// shape. Called once for each timestep, in order. Noise, where the sampler adds any, is drawn
    /// from `generator`.
    ///
    /// # Errors
    /// Out of memory, or more steps than timesteps.
    fn step(
        &mut self,
        model_output: &Tensor,
        sample: &Tensor,
        generator: &mut Generator,
    ) -> Result<Tensor>;
}

/// Which steps a run takes, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Steps, where no timesteps are given.
    pub num_inference_steps: usize,
    /// Custom timesteps, descending.
    pub timesteps: Option<Vec<i64>>,
    /// Custom sigmas, descending.
    pub sigmas: Option<Vec<f64>>,
    /// η of DDIM: 0 deterministic, 1 as noisy as DDPM.
    pub eta: f64,
}

/// A scheduler's class with the configuration that it was loaded with.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    raw: RawConfig,
    class: Class,
}

#[derive(Clone, Debug)]
enum Class {
    Ddim(DdimConfig),
    Pndm(PndmConfig),
    DpmSolverMultistep(DpmSolverMultistepConfig),
}

/// Every class that can be asked for.
pub const NAMES: [&str; 3] = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
];

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`, as the class that it names.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that cannot be read as that class; `Unsupported` for a class or a
    /// switch that we do not do, by name.
    pub fn parse(text: &str) -> Result<Self> {
        let raw = RawConfig::parse(text)?;
        let name = raw.class_name().unwrap_or("(no _class_name)").to_owned();
        Ok(Self {
            class: Class::read(&name, &raw)?,
            raw,
        })
    }

    /// Reads a `scheduler_config.json` as `class`, whatever class it names.
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn parse_as(text: &str, class: &str) -> Result<Self> {
        let mut raw = RawConfig::parse(text)?;
        if raw.class_name() != Some(class) {
            raw = raw.for_another_class();
        }
        Ok(Self {
            class: Class::read(class, &raw)?,
            raw,
        })
    }

    /// The same model's configuration read as another class (diffusers' `from_config`).
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn with_class(&self, name: &str) -> Result<Self> {
        if name == self.class_name() {
            return Ok(self.clone());
        }
        let raw = self.raw.for_another_class();
        Ok(Self {
            class: Class::read(name, &raw)?,
            raw,
        })
    }

    /// The class, as diffusers names it.
    pub fn class_name(&self) -> &'static str {
        match self.class {
            Class::Ddim(_) => "DDIMScheduler",
            Class::Pndm(_) => "PNDMScheduler",
            Class::DpmSolverMultistep(_) => "DPMSolverMultistepScheduler",
        }
    }

    /// The state at the start of a run.
    ///
    /// # Errors
    /// `InvalidArgument` for a plan that the class cannot follow, naming the argument.
    pub fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let name = self.class_name();
        if plan.sigmas.is_some() {
            return Err(Error::invalid_argument(format!(
                "gen_args: sigmas: not taken by {name}"
            )));
        }
        if plan.timesteps.is_some() && !matches!(self.class, Class::DpmSolverMultistep(_)) {
            return Err(Error::invalid_argument(format!(
                "gen_args: timesteps: not taken by {name}"
            )));
        }
        if plan.eta != 0.0 && !matches!(self.class, Class::Ddim(_)) {
            return Err(Error::invalid_argument(format!(
                "gen_args: eta: has no effect with {name}; only DDIMScheduler takes it"
            )));
        }
        match &self.class {
            Class::Ddim(config) => config.build(plan),
            Class::Pndm(config) => config.build(plan),
            Class::DpmSolverMultistep(config) => config.build(plan),
        }
    }
}

impl Class {
    fn read(name: &str, raw: &RawConfig) -> Result<Self> {
        match name {
            "DDIMScheduler" => Ok(Self::Ddim(DdimConfig::read(raw)?)),
            "PNDMScheduler" => Ok(Self::Pndm(PndmConfig::read(raw)?)),
            "DPMSolverMultistepScheduler" => Ok(Self::DpmSolverMultistep(
                DpmSolverMultistepConfig::read(raw)?,
            )),
            _ => Err(Error::unsupported(format!(
                "scheduler_config.json: this scheduler class is not supported; supported are {}",
                NAMES.join(", ")
            ))),
        }
    }
}

/// ᾱ at a timestep of the run.
fn at(alphas_cumprod: &[f32], timestep: i64) -> Result<f32> {
    usize::try_from(timestep)
        .ok()
        .and_then(|index| alphas_cumprod.get(index).copied())
        .ok_or_else(|| {
            Error::invalid_argument(format!(
                "gen_args: num_inference_steps: gives timestep {timestep}, beyond the {} that the model was trained with",
                alphas_cumprod.len()
            ))
        })
}

/// Refuses more steps than training timesteps.
fn check_steps(steps: usize, train: i64) -> Result<()> {
    if steps == 0 || i64::try_from(steps).is_ok_and(|steps| steps > train) {
        return Err(Error::invalid_argument(format!(
            "gen_args: num_inference_steps: must be 1 to {train}, the timesteps that the model was trained with"
        )));
    }
    Ok(())
}

/// The error for a run that went past its end, which no caller of ours does.
fn past_the_end() -> Error {
    Error::internal("a scheduler was stepped past its last timestep")
}
