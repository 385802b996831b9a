//! The scheduler that adds noise to the upscaler's input.

use tch::Tensor;

use super::common::alpha_schedule::AlphaSchedule;
use super::common::betas::BetasConfig;
use super::common::config::RawConfig;
use diffusion_core::Result;

/// The scheduler of `low_res_scheduler/scheduler_config.json`. Only its `add_noise` is used (diffusers'
/// `schedulers/scheduling_ddpm.py`).
#[derive(Clone, Debug)]
pub struct LowResScheduler {
    alphas: AlphaSchedule,
}

impl LowResScheduler {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn parse(text: &str) -> Result<Self> {
        let betas: BetasConfig = RawConfig::parse(text)?.read()?;
        Ok(Self {
            alphas: AlphaSchedule::new(&betas)?,
        })
    }

    /// Returns the number of training timesteps, which count from 0.
    pub fn num_train_timesteps(&self) -> i64 {
        self.alphas.num_train_timesteps()
    }

    /// Adds noise of a timestep's level to `original`. Both are of one shape `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// `InvalidArgument` for a timestep outside of training.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor, timestep: i64) -> Result<Tensor> {
        self.alphas.add_noise_at(timestep, original, noise)
    }
}
