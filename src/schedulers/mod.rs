//! The schedulers, named as in diffusers.
//!
//! A [`SchedulerConfig`] is read once, when a model is loaded, and never changes. Each job builds a [`Scheduler`] from
//! it, the state of one run. The arithmetic follows diffusers operation by operation, in its dtypes, and the samples
//! are equal byte by byte.
//!
//! A file per class holds the configuration and the update rule (`step`), with the variable names of diffusers'
//! `scheduling_*.py`. `common` holds what classes share, `numerics` the scalar functions.
//!
//! Every function that creates tensors can fail with `OutOfMemory`. The sections on errors list the other errors.

mod common;
mod ddim;
mod ddpm;
mod deis_multistep;
mod denoised;
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

use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

use common::scheduler::SchedulerBuilder;

pub use common::config::{PredictionType, RawConfig, TimestepSpacing};
pub use common::scheduler::{SamplingOptions, Scheduler};
pub use denoised::Denoiser;
pub use low_res::LowResScheduler;

use ddim::DdimConfig;
use ddpm::DdpmConfig;
use deis_multistep::DeisMultistepConfig;
use dpm_solver_multistep::DpmSolverMultistepConfig;
use dpm_solver_singlestep::DpmSolverSinglestepConfig;
use euler_ancestral_discrete::EulerAncestralConfig;
use euler_discrete::EulerConfig;
use heun_discrete::HeunConfig;
use k_dpm_2_discrete::{Kdpm2AncestralConfig, Kdpm2Config};
use lcm::LcmConfig;
use lms_discrete::LmsConfig;
use pndm::PndmConfig;
use tcd::TcdConfig;
use unipc_multistep::UniPcMultistepConfig;

/// A scheduler class.
#[derive(Debug)]
struct SchedulerClass {
    name: &'static str,
    read: fn(&RawConfig) -> Result<Arc<dyn SchedulerBuilder>>,
    /// The supported ones of the arguments `timesteps`, `sigmas` (of diffusers' `set_timesteps`) and `eta` (of `step`).
    arguments: &'static [&'static str],
}

/// Makes the registry's entry of a class.
const fn class<B: SchedulerBuilder + 'static>(
    name: &'static str,
    arguments: &'static [&'static str],
) -> SchedulerClass {
    SchedulerClass {
        name,
        read: |raw| Ok(Arc::new(B::read(raw)?)),
        arguments,
    }
}

/// The supported classes.
static REGISTRY: &[SchedulerClass] = &[
    class::<DdimConfig>("DDIMScheduler", &["eta"]),
    class::<DdpmConfig>("DDPMScheduler", &["timesteps"]),
    class::<DeisMultistepConfig>("DEISMultistepScheduler", &[]),
    class::<DpmSolverMultistepConfig>("DPMSolverMultistepScheduler", &["timesteps"]),
    class::<DpmSolverSinglestepConfig>("DPMSolverSinglestepScheduler", &["timesteps"]),
    class::<EulerAncestralConfig>("EulerAncestralDiscreteScheduler", &[]),
    class::<EulerConfig>("EulerDiscreteScheduler", &["timesteps", "sigmas"]),
    class::<HeunConfig>("HeunDiscreteScheduler", &["timesteps"]),
    class::<Kdpm2AncestralConfig>("KDPM2AncestralDiscreteScheduler", &[]),
    class::<Kdpm2Config>("KDPM2DiscreteScheduler", &[]),
    class::<LcmConfig>("LCMScheduler", &["timesteps"]),
    class::<LmsConfig>("LMSDiscreteScheduler", &[]),
    class::<PndmConfig>("PNDMScheduler", &[]),
    class::<TcdConfig>("TCDScheduler", &["timesteps", "eta"]),
    class::<UniPcMultistepConfig>("UniPCMultistepScheduler", &[]),
];

/// Returns the names of the supported classes.
pub fn names() -> &'static [&'static str] {
    static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| REGISTRY.iter().map(|class| class.name).collect());
    &NAMES
}

/// A scheduler's class with the configuration of a model.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    raw: RawConfig,
    class: &'static SchedulerClass,
    builder: Arc<dyn SchedulerBuilder>,
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json` as the class that it names.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that cannot be read as that class; `Unsupported` for an unsupported class or
    /// switch. Both name the key.
    pub fn parse(text: &str) -> Result<Self> {
        let raw = RawConfig::parse(text)?;
        let name = raw.class_name().unwrap_or_default().to_owned();
        Self::read(&name, raw)
    }

    /// Reads a `scheduler_config.json` as `class`, instead of the class that it names.
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn parse_as(text: &str, class: &str) -> Result<Self> {
        Self::read_as(RawConfig::parse(text)?, class)
    }

    /// Reads the `scheduler_config.json` in a model folder of that pipeline, as `class` if one is given. The class that
    /// the file names need not be supported then.
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn of_pipeline(text: &str, pipeline: PipelineClass, class: Option<&str>) -> Result<Self> {
        let file = RawConfig::parse(text)?;
        let current = file.apply_deprecated_config_fixes(pipeline);
        // The pipeline's correction of a key that the file lacks applies to the class of the file alone.
        let carried = current.intersect_keys(&file);
        match class {
            Some(class) if file.class_name() != Some(class) => Self::read_as(carried, class),
            _ => {
                let name = file.class_name().unwrap_or_default().to_owned();
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

    /// Reads the configuration of the same model as another class (diffusers' `from_config`).
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
        let Some(class) = REGISTRY.iter().find(|class| class.name == name) else {
            return Err(Error::unsupported(format!(
                "scheduler_config.json: this scheduler class is not supported; supported are {}",
                names().join(", ")
            )));
        };
        Ok(Self {
            class,
            builder: (class.read)(&raw)?,
            raw,
        })
    }

    /// Returns the name of the class in diffusers.
    pub fn class_name(&self) -> &'static str {
        self.class.name
    }

    /// Prepares a run.
    ///
    /// # Errors
    /// `InvalidArgument` for options that the class or its configuration does not support, naming the argument.
    pub fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        for (given, argument) in [
            (options.sigmas.is_some(), "sigmas"),
            (options.timesteps.is_some(), "timesteps"),
            (options.eta != 0.0, "eta"),
        ] {
            if given && !self.class.arguments.contains(&argument) {
                let supporting = REGISTRY.iter().filter(|class| class.arguments.contains(&argument));
                let supporting: Vec<&str> = supporting.map(|class| class.name).collect();
                return Err(Error::invalid_argument(format!(
                    "gen_args: {argument}: not supported by {}, only by {}",
                    self.class_name(),
                    supporting.join(", ")
                )));
            }
        }
        self.builder.build(options)
    }
}
