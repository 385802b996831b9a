//! The scheduler that makes the upscaler's input noisy.

use tch::Tensor;

use super::at;
use super::common::config::RawConfig;
use super::common::noise_schedule::{BetasConfig, add_noise, to_vec};
use diffusion_core::Result;

/// `low_res_scheduler/scheduler_config.json`, of which only the noise of a timestep is used (`add_noise` of
/// diffusers' `schedulers/scheduling_ddpm.py`).
#[derive(Clone, Debug)]
pub struct LowResScheduler {
    alphas_cumprod: Vec<f32>,
}

impl LowResScheduler {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn parse(text: &str) -> Result<Self> {
        let betas: BetasConfig = RawConfig::parse(text)?.read()?;
        Ok(Self {
            alphas_cumprod: to_vec(&betas.alphas_cumprod()?)?,
        })
    }

    /// Timesteps that there are, from 0 on.
    pub fn num_train_timesteps(&self) -> i64 {
        self.alphas_cumprod.len() as i64
    }

    /// `original` with `noise` of that timestep, all of one shape.
    ///
    /// # Errors
    /// `InvalidArgument` for a timestep that there is not; out of memory.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor, timestep: i64) -> Result<Tensor> {
        add_noise(original, noise, at(&self.alphas_cumprod, timestep)?)
    }
}
