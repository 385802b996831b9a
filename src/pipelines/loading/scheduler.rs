//! `scheduler/`, and `low_res_scheduler/` of the upscaler.

use super::model_folder::ModelFolder;
use crate::models::unet::UNet2DConfig;
use crate::schedulers::{LowResScheduler, SchedulerConfig};
use diffusion_core::config::PipelineClass;
use diffusion_core::{Context, Error, Result};

/// `max_noise_level` where `model_index.json` has none, the default of diffusers.
const MAX_NOISE_LEVEL: u32 = 350;

/// Reads the configuration of the scheduler; `class` replaces the class that the file names.
pub(super) fn open(folder: &ModelFolder<'_>, class: Option<&str>) -> Result<SchedulerConfig> {
    let text = folder.scheduler_config("scheduler")?;
    SchedulerConfig::of_pipeline(&text, folder.class, class)
        .context(|| folder.component("scheduler").display().to_string())
}

/// Adds noise to the image that the upscaler enlarges.
pub(super) struct LowRes {
    pub scheduler: LowResScheduler,
    /// The largest `noise_level` of a request.
    pub max_noise_level: u32,
}

/// Opens the low-resolution scheduler; `None` unless the pipeline is the upscaler.
pub(super) fn open_low_res(folder: &ModelFolder<'_>, unet: &UNet2DConfig) -> Result<Option<LowRes>> {
    if folder.class != PipelineClass::Upscale {
        return Ok(None);
    }
    folder.index.require("low_res_scheduler", &["DDPMScheduler"])?;
    let text = folder.scheduler_config("low_res_scheduler")?;
    let scheduler =
        LowResScheduler::parse(&text).context(|| folder.component("low_res_scheduler").display().to_string())?;
    let max_noise_level = folder.index.number("max_noise_level")?.unwrap_or(MAX_NOISE_LEVEL);
    let levels = scheduler.num_train_timesteps().min(unet.num_class_embeds.unwrap_or(0));
    if i64::from(max_noise_level) >= levels {
        return Err(Error::invalid_argument(format!(
            "model_index.json: max_noise_level must be below {levels}, the noise levels of the UNet and the \
             low_res_scheduler, got {max_noise_level}"
        )));
    }
    Ok(Some(LowRes {
        scheduler,
        max_noise_level,
    }))
}
