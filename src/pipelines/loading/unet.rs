//! `unet/`.

use super::model_folder::ModelFolder;
use crate::models::clip::ClipTextConfig;
use crate::models::unet::{UNet2DConditionModel, UNet2DConfig};
use crate::models::vae::AutoencoderKlConfig;
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

pub(super) struct Unet {
    pub config: UNet2DConfig,
    weights: ComponentId,
}

/// Opens the UNet and checks that it fits the pipeline, the VAE and the text encoder.
pub(super) fn open(folder: &mut ModelFolder<'_>, vae: &AutoencoderKlConfig, text: &ClipTextConfig) -> Result<Unet> {
    folder.index.require("unet", &["UNet2DConditionModel"])?;
    let config: UNet2DConfig = folder.config("unet")?;
    config.check()?;
    check_compatible(folder.class, &config, vae, text)?;
    Ok(Unet {
        config,
        weights: folder.diffusers_weights("unet", folder.kind)?,
    })
}

impl Unet {
    pub fn build(self, weights: &mut LoadedWeights, fast: bool) -> Result<SharedModel<UNet2DConditionModel>> {
        let model = UNet2DConditionModel::new(self.config, weights.take(self.weights)?.fast(fast))?;
        Ok(SharedModel::new(model))
    }
}

fn check_compatible(
    class: PipelineClass,
    unet: &UNet2DConfig,
    vae: &AutoencoderKlConfig,
    text: &ClipTextConfig,
) -> Result<()> {
    let latents = vae.latent_channels;
    let expected: &[i64] = match class {
        PipelineClass::StableDiffusion | PipelineClass::LatentConsistency | PipelineClass::Img2Img => &[latents],
        PipelineClass::Depth2Img => &[latents + 1],
        // With channels for the mask and the masked image, or without.
        PipelineClass::Inpaint => &[latents * 2 + 1, latents],
        PipelineClass::Upscale => &[latents + vae.in_channels],
    };
    if !expected.contains(&unet.in_channels) {
        let expected: Vec<String> = expected.iter().map(i64::to_string).collect();
        return Err(Error::invalid_argument(format!(
            "unet/config.json: {class} with a VAE of {latents} latent channels needs in_channels {}, got {}",
            expected.join(" or "),
            unet.in_channels,
        )));
    }
    let upscales = class == PipelineClass::Upscale;
    if unet.num_class_embeds.is_some() != upscales {
        return Err(Error::unsupported(format!(
            "unet/config.json: {class} needs a UNet {} num_class_embeds",
            if upscales { "with" } else { "without" },
        )));
    }
    if class == PipelineClass::LatentConsistency && unet.time_cond_proj_dim.is_none() {
        return Err(Error::invalid_argument(format!(
            "unet/config.json: {class} needs time_cond_proj_dim, but it is missing"
        )));
    }
    if matches!(class, PipelineClass::Depth2Img | PipelineClass::Upscale) && unet.time_cond_proj_dim.is_some() {
        return Err(Error::unsupported(format!(
            "unet/config.json: {class} does not support time_cond_proj_dim"
        )));
    }
    if unet.cross_attention_dim != text.hidden_size {
        return Err(Error::invalid_argument(format!(
            "unet/config.json: cross_attention_dim is {}, but the text encoder's hidden_size is {}",
            unet.cross_attention_dim, text.hidden_size
        )));
    }
    Ok(())
}
