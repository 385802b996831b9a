//! `unet/`.

use super::model_folder::ModelFolder;
use crate::models::clip::ClipTextConfig;
use crate::models::unet::{UNet2DConditionModel, UNet2DConfig};
use crate::models::vae::AutoencoderKlConfig;
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

/// The numbers of a request that the UNet of Stable Diffusion XL takes: three pairs.
const TIME_IDS: i64 = 6;

pub(super) struct Unet {
    pub config: UNet2DConfig,
    weights: ComponentId,
}

/// Opens the UNet and checks that it fits the pipeline, the VAE and the text encoder.
pub(super) fn open(
    folder: &mut ModelFolder<'_>,
    vae: &AutoencoderKlConfig,
    text: &ClipTextConfig,
    second_text: Option<&ClipTextConfig>,
) -> Result<Unet> {
    folder.index.require("unet", &["UNet2DConditionModel"])?;
    let config: UNet2DConfig = folder.config("unet")?;
    config.check()?;
    check_compatible(folder.class, &config, vae)?;
    check_text(&config, text, second_text)?;
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

fn check_compatible(class: PipelineClass, unet: &UNet2DConfig, vae: &AutoencoderKlConfig) -> Result<()> {
    let latents = vae.latent_channels;
    let expected: &[i64] = match class {
        PipelineClass::StableDiffusion
        | PipelineClass::LatentConsistency
        | PipelineClass::Img2Img
        | PipelineClass::StableDiffusionXl
        | PipelineClass::Img2ImgXl => &[latents],
        PipelineClass::Depth2Img => &[latents + 1],
        // With channels for the mask and the masked image, or without.
        PipelineClass::Inpaint | PipelineClass::InpaintXl => &[latents * 2 + 1, latents],
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
    Ok(())
}

/// Checks that the UNet takes what the text encoders give: one of them or, in Stable Diffusion XL, two with a pooled state.
fn check_text(unet: &UNet2DConfig, text: &ClipTextConfig, second: Option<&ClipTextConfig>) -> Result<()> {
    let hidden_size = text.hidden_size + second.map_or(0, |second| second.hidden_size);
    if unet.cross_attention_dim != hidden_size {
        return Err(Error::invalid_argument(format!(
            "unet/config.json: cross_attention_dim is {}, but the text encoder's hidden_size is {hidden_size}",
            unet.cross_attention_dim
        )));
    }
    match (second, unet.added_sizes()) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(Error::unsupported(
            "unet/config.json: addition_embed_type text_time is supported by Stable Diffusion XL alone",
        )),
        (Some(_), None) => Err(Error::unsupported(
            "unet/config.json: Stable Diffusion XL needs addition_embed_type text_time",
        )),
        (Some(second), Some((each, all))) => {
            let expected = second.projection_dim + each * TIME_IDS;
            if all == expected {
                return Ok(());
            }
            Err(Error::invalid_argument(format!(
                "unet/config.json: projection_class_embeddings_input_dim is {all}, expected {expected}: projection_dim of \
                 text_encoder_2 and {TIME_IDS} times addition_time_embed_dim"
            )))
        }
    }
}
