//! One of the pipelines that a model folder serves, and its image inputs.

use std::sync::Arc;

use super::{Capabilities, RowInputs};
use crate::gen_args::GenArgs;
use crate::generate_request::Source;
use diffusion_core::config::{Limits, PipelineClass, PipelineDefaults};
use diffusion_core::{Context, Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::decode;
use diffusion_image::depth_map::DepthMap;
use diffusion_image::mask::Mask;

/// Most pixels of an input image along one side. What is longer and within the limit of pixels is too thin for any use.
const MAX_IMAGE_SIDE: u32 = 16_384;

/// One of the pipelines that a model folder serves.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The defaults and limits of its class.
    pub defaults: PipelineDefaults,
    /// Those of the model's `default_gen_args` that the pipeline takes.
    pub default_gen_args: GenArgs,
}

impl Variant {
    /// The pipeline class.
    pub fn class(&self) -> PipelineClass {
        self.defaults.pipeline
    }

    /// What no request may exceed.
    pub fn limits(&self) -> &Limits {
        &self.defaults.limits
    }

    fn decode_limits(&self) -> Result<decode::Limits> {
        match (self.limits().max_image_bytes, self.limits().max_image_pixels) {
            (Some(max_base64_bytes), Some(max_pixels)) => Ok(decode::Limits {
                max_base64_bytes,
                max_pixels,
                max_side: MAX_IMAGE_SIDE,
            }),
            _ => Err(Error::internal(format!("{} has no limits for images", self.class()))),
        }
    }

    /// The limits of `image`. Where it decides the size of what is made, one that is too large for that need not be decoded:
    /// what is cut off, to a multiple of the VAE's factor, is less than that factor from each side.
    fn image_limits(&self, limits: decode::Limits, capabilities: &Capabilities) -> decode::Limits {
        if !matches!(self.class(), PipelineClass::Img2Img | PipelineClass::Depth2Img) {
            return limits;
        }
        let cut_off = u64::from(capabilities.vae_scale_factor) * u64::from(limits.max_side) * 2;
        decode::Limits {
            max_pixels: limits.max_pixels.min(self.limits().max_pixels.saturating_add(cut_off)),
            ..limits
        }
    }

    /// The image inputs, decoded, with the arguments that say how they are used.
    ///
    /// # Errors
    /// InvalidArgument that names the input or the key.
    pub fn source(&self, row: &RowInputs<'_>, args: &GenArgs, capabilities: &Capabilities) -> Result<Source> {
        if matches!(
            self.class(),
            PipelineClass::StableDiffusion | PipelineClass::LatentConsistency
        ) {
            return Ok(Source::Text);
        }
        let limits = self.decode_limits()?;
        let image_limits = self.image_limits(limits, capabilities);
        let missing =
            |name: &str| Error::invalid_argument(format!("input `{name}` is missing: {} needs it", self.class()));
        let image =
            decode::rgb(row.image.ok_or_else(|| missing("image"))?, &image_limits).context(|| "input `image`")?;
        let depth_map = row
            .depth_map
            .map(|text| decode::depth_map(text, &limits).context(|| "input `depth_map`"))
            .transpose()?;
        let mask_image = match self.class() {
            PipelineClass::Inpaint => {
                let text = row.mask_image.ok_or_else(|| missing("mask_image"))?;
                Some(decode::mask(text, &limits).context(|| "input `mask_image`")?)
            }
            _ => None,
        };
        self.source_of(image, mask_image, depth_map, args, capabilities)
    }

    /// [`Variant::source`] of images that are decoded already.
    ///
    /// # Errors
    /// InvalidArgument that names the key.
    pub fn source_of(
        &self,
        image: RgbImage,
        mask_image: Option<Mask>,
        depth_map: Option<DepthMap>,
        args: &GenArgs,
        capabilities: &Capabilities,
    ) -> Result<Source> {
        let defaults = &self.defaults.defaults;
        let strength = args.strength.or(defaults.strength).unwrap_or(1.0);
        let image = Arc::new(image);
        Ok(match (self.class(), mask_image) {
            (PipelineClass::StableDiffusion | PipelineClass::LatentConsistency, _) => Source::Text,
            (PipelineClass::Depth2Img, _) => Source::Depth {
                image,
                depth_map: depth_map.map(Arc::new),
                strength,
            },
            (PipelineClass::Inpaint, Some(mask_image)) => {
                let pad = args.padding_mask_crop;
                let size = |width: u32, height: u32| (width, height);
                if pad.is_some() && size(image.width(), image.height()) != size(mask_image.width(), mask_image.height())
                {
                    return Err(Error::invalid_argument(format!(
                        "inputs `image` and `mask_image` must be of one size with `padding_mask_crop`; they are {}x{} and {}x{}",
                        image.width(),
                        image.height(),
                        mask_image.width(),
                        mask_image.height()
                    )));
                }
                Source::Inpaint {
                    image,
                    mask_image: Arc::new(mask_image),
                    strength,
                    padding_mask_crop: pad.and_then(|pad| u32::try_from(pad).ok()),
                    keep_unmasked: args.keep_unmasked.or(defaults.keep_unmasked).unwrap_or(true),
                }
            }
            (PipelineClass::Upscale, _) => {
                let noise_level = args.noise_level.or(defaults.noise_level.map(u64::from)).unwrap_or(0);
                let max = capabilities.max_noise_level;
                if noise_level > u64::from(max) {
                    return Err(Error::invalid_argument(format!(
                        "gen_args: `noise_level` {noise_level} is more than the model's max_noise_level {max}"
                    )));
                }
                Source::Upscale {
                    image,
                    noise_level: i64::try_from(noise_level).unwrap_or(0),
                    max_piece_pixels: self.limits().max_pixels,
                }
            }
            (PipelineClass::Img2Img | PipelineClass::Inpaint, _) => Source::Image { image, strength },
        })
    }
}
