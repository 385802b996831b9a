//! The samplers, named as diffusers names them.
//!
//! A [`SchedulerConfig`] is read once when a model is loaded and never changes; each job builds its
//! own [`Scheduler`] from it, which holds the state of one run. The arithmetic follows diffusers
//! operation by operation, in its dtypes, so that the samples are equal to the byte.

mod common;
mod ddim;
mod ddpm;
mod deis_multistep;
mod dpm_solver_multistep;
mod dpm_solver_singlestep;
mod euler_ancestral_discrete;
mod euler_discrete;
mod heun_discrete;
mod k_dpm_2_discrete;
mod lcm;
mod lms_discrete;
mod low_res;
mod numerics;
mod pndm;
mod tcd;
mod unipc_multistep;

#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use tch::Tensor;

use crate::torch::Generator;
use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

pub use low_res::LowResScheduler;

pub use common::config::{PredictionType, RawConfig, TimestepSpacing};

use ddim::DdimConfig;
use ddpm::DdpmConfig;
use deis_multistep::DeisMultistepConfig;
use dpm_solver_multistep::DpmSolverMultistepConfig;
use dpm_solver_singlestep::DpmSolverSinglestepConfig;
use euler_ancestral_discrete::EulerAncestralConfig;
use euler_discrete::EulerConfig;
use heun_discrete::HeunConfig;
use k_dpm_2_discrete::Kdpm2Config;
use lcm::LcmConfig;
use lms_discrete::LmsConfig;
use pndm::PndmConfig;
use tcd::TcdConfig;
use unipc_multistep::UniPcMultistepConfig;

/// The state of one run of a sampler.
///
/// A run is as many calls of the network as there are timesteps: scale the sample for the network,
/// call it, [`step`](Scheduler::step).
pub trait Scheduler: Send {
    /// The timesteps of the run, one for each UNet call, from the begin index on. Whole numbers for
    /// most classes.
    fn timesteps(&self) -> &[f64];

    /// Standard deviation of the starting noise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// UNet calls that make one of `num_inference_steps`: 2 for the samplers of second order that call
    /// twice.
    fn order(&self) -> usize {
        1
    }

    /// Leaves out the first `begin_index` timesteps, for a run that starts from an image rather than
    /// from noise. Called at most once, before anything else; such a run calls it with 0 too.
    fn set_begin_index(&mut self, begin_index: usize);

    /// The sample as the network wants it at the present timestep, of the same shape.
    ///
    /// # Errors
    /// Out of memory, or a run that is at its end.
    fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor> {
        Ok(sample.shallow_clone())
    }

    /// One step: from the network's output and the sample (not scaled) that it saw to the next sample,
    /// all of one shape. Called once for each timestep, in order. Noise, where the sampler adds any, is
    /// drawn from `generator`.
    ///
    /// # Errors
    /// Out of memory, or more steps than timesteps.
    fn step(&mut self, model_output: &Tensor, sample: &Tensor, generator: &mut Generator) -> Result<Tensor>;

    /// A clean sample as noisy as the present timestep has it: the first before any step, then the one
    /// that comes next. All of one shape.
    ///
    /// # Errors
    /// Out of memory, or a run that is at its end.
    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor>;
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
    /// η of DDIM, 0 deterministic to 1 as noisy as DDPM; γ of TCD, 0 deterministic to 1 full noise.
    pub eta: f64,
}

/// One class's reading of a configuration.
trait Family: std::fmt::Debug + Send + Sync {
    /// The state at the start of a run.
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>>;
}

/// A scheduler class: its name, how its keys are read, and which arguments it takes.
#[derive(Debug)]
struct Class {
    name: &'static str,
    read: fn(&RawConfig) -> Result<Arc<dyn Family>>,
    /// `set_timesteps` takes `timesteps`.
    timesteps: bool,
    /// `set_timesteps` takes `sigmas`.
    sigmas: bool,
    /// `step` takes `eta`.
    eta: bool,
}

/// Every class that can be asked for, by name.
static CLASSES: &[Class] = &[
    Class {
        name: "DDIMScheduler",
        read: |raw| Ok(Arc::new(DdimConfig::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: true,
    },
    Class {
        name: "DDPMScheduler",
        read: |raw| Ok(Arc::new(DdpmConfig::read(raw)?)),
        timesteps: true,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "DEISMultistepScheduler",
        read: |raw| Ok(Arc::new(DeisMultistepConfig::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        read: |raw| Ok(Arc::new(DpmSolverMultistepConfig::read(raw)?)),
        timesteps: true,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "DPMSolverSinglestepScheduler",
        read: |raw| Ok(Arc::new(DpmSolverSinglestepConfig::read(raw)?)),
        timesteps: true,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "EulerAncestralDiscreteScheduler",
        read: |raw| Ok(Arc::new(EulerAncestralConfig::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "EulerDiscreteScheduler",
        read: |raw| Ok(Arc::new(EulerConfig::read(raw)?)),
        timesteps: true,
        sigmas: true,
        eta: false,
    },
    Class {
        name: "HeunDiscreteScheduler",
        read: |raw| Ok(Arc::new(HeunConfig::read(raw)?)),
        timesteps: true,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "KDPM2AncestralDiscreteScheduler",
        read: |raw| Ok(Arc::new(Kdpm2Config::read_ancestral(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "KDPM2DiscreteScheduler",
        read: |raw| Ok(Arc::new(Kdpm2Config::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "LCMScheduler",
        read: |raw| Ok(Arc::new(LcmConfig::read(raw)?)),
        timesteps: true,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "LMSDiscreteScheduler",
        read: |raw| Ok(Arc::new(LmsConfig::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "PNDMScheduler",
        read: |raw| Ok(Arc::new(PndmConfig::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
    Class {
        name: "TCDScheduler",
        read: |raw| Ok(Arc::new(TcdConfig::read(raw)?)),
        timesteps: true,
        sigmas: false,
        eta: true,
    },
    Class {
        name: "UniPCMultistepScheduler",
        read: |raw| Ok(Arc::new(UniPcMultistepConfig::read(raw)?)),
        timesteps: false,
        sigmas: false,
        eta: false,
    },
];

/// The name of every class that can be asked for.
pub fn names() -> &'static [&'static str] {
    static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| CLASSES.iter().map(|class| class.name).collect());
    &NAMES
}

/// The classes that take an argument, for an error.
fn taken_by(takes: fn(&Class) -> bool) -> String {
    let names: Vec<&str> = CLASSES
        .iter()
        .filter(|class| takes(class))
        .map(|class| class.name)
        .collect();
    names.join(", ")
}

/// A scheduler's class with the configuration that it was loaded with.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    raw: RawConfig,
    class: &'static Class,
    family: Arc<dyn Family>,
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`, as the class that it names.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that cannot be read as that class; `Unsupported` for a class or a
    /// switch that we do not do, by name.
    pub fn parse(text: &str) -> Result<Self> {
        let raw = RawConfig::parse(text)?;
        let name = raw.class_name().unwrap_or("(no _class_name)").to_owned();
        Self::read(&name, raw)
    }

    /// Reads a `scheduler_config.json` as `class`, whatever class it names.
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn parse_as(text: &str, class: &str) -> Result<Self> {
        Self::read_as(RawConfig::parse(text)?, class)
    }

    /// Reads the `scheduler_config.json` of a folder of that pipeline, as `class` if one is given, which
    /// spares the folder's own from being one that we know.
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn of_pipeline(text: &str, pipeline: PipelineClass, class: Option<&str>) -> Result<Self> {
        let file = RawConfig::parse(text)?;
        let current = file.brought_up_to_date(pipeline);
        // What a pipeline changes of a key that the file does not have stays with the file's own class.
        let carried = current.shared_with(&file);
        match class {
            Some(class) if file.class_name() != Some(class) => Self::read_as(carried, class),
            _ => {
                let name = file.class_name().unwrap_or("(no _class_name)").to_owned();
                Ok(Self {
                    raw: carried,
                    ..Self::read(&name, current)?
                })
            }
        }
    }

    fn read_as(mut raw: RawConfig, class: &str) -> Result<Self> {
        if raw.class_name() != Some(class) {
            raw = raw.for_another_class();
        }
        Self::read(class, raw)
    }

    /// The same model's configuration read as another class (diffusers' `from_config`).
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn with_class(&self, name: &str) -> Result<Self> {
        if name == self.class_name() {
            return Ok(self.clone());
        }
        Self::read(name, self.raw.for_another_class())
    }

    fn read(name: &str, raw: RawConfig) -> Result<Self> {
        let Some(class) = CLASSES.iter().find(|class| class.name == name) else {
            return Err(Error::unsupported(format!(
                "scheduler_config.json: this scheduler class is not supported; supported are {}",
                names().join(", ")
            )));
        };
        Ok(Self {
            class,
            family: (class.read)(&raw)?,
            raw,
        })
    }

    /// The class, as diffusers names it.
    pub fn class_name(&self) -> &'static str {
        self.class.name
    }

    /// The state at the start of a run.
    ///
    /// # Errors
    /// `InvalidArgument` for a plan that the class cannot follow, naming the argument.
    pub fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let name = self.class_name();
        if plan.sigmas.is_some() && !self.class.sigmas {
            return Err(Error::invalid_argument(format!(
                "gen_args: sigmas: not taken by {name}; by {}",
                taken_by(|class| class.sigmas)
            )));
        }
        if plan.timesteps.is_some() && !self.class.timesteps {
            return Err(Error::invalid_argument(format!(
                "gen_args: timesteps: not taken by {name}; by {}",
                taken_by(|class| class.timesteps)
            )));
        }
        if plan.eta != 0.0 && !self.class.eta {
            return Err(Error::invalid_argument(format!(
                "gen_args: eta: has no effect with {name}; only with {}",
                taken_by(|class| class.eta)
            )));
        }
        self.family.build(plan)
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

/// `timesteps` as the network gets them.
fn to_floats(timesteps: &[i64]) -> Vec<f64> {
    timesteps.iter().map(|&timestep| timestep as f64).collect()
}

/// The error for a run that went past its end, which no caller of ours does.
fn past_the_end() -> Error {
    Error::internal("a scheduler was stepped past its last timestep")
}
