//! The VAE's decoder: latents to images.
//!
//! Source: diffusers `models/autoencoders/vae.py` (`Decoder`).

use tch::Tensor;

use super::blocks::{EPS, MidBlock, resnets};
use super::config::AutoencoderKlConfig;
use crate::models::layers::{BatchSplit, Conv2d, GroupNorm, ResnetBlock2D, Upsample2D};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// diffusers' `Decoder`.
pub struct Decoder {
    pub(super) conv_in: Conv2d,
    pub(super) mid_block: MidBlock,
    pub(super) up_blocks: Vec<(Vec<ResnetBlock2D>, Option<Upsample2D>)>,
    pub(super) conv_norm_out: GroupNorm,
    pub(super) conv_out: Conv2d,
}

impl Decoder {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let (first, last) = config.ends();
        let mut up_blocks = Vec::new();
        let mut inputs = last;
        for (index, &outputs) in config.block_out_channels.iter().rev().enumerate() {
            let path = path.sub("up_blocks").sub(index);
            let layers = resnets(&path, config.layers_per_block + 1, inputs, outputs, config)?;
            let upsampler = (index + 1 < config.block_out_channels.len())
                .then(|| Upsample2D::new(&path.sub("upsamplers").sub(0), outputs))
                .transpose()?;
            up_blocks.push((layers, upsampler));
            inputs = outputs;
        }
        Ok(Self {
            conv_in: Conv2d::same(&path.sub("conv_in"), config.latent_channels, last)?,
            mid_block: MidBlock::new(&path.sub("mid_block"), last, config)?,
            up_blocks,
            conv_norm_out: GroupNorm::new(&path.sub("conv_norm_out"), config.norm_num_groups, first, EPS)?,
            conv_out: Conv2d::same(&path.sub("conv_out"), first, config.out_channels)?,
        })
    }

    /// Decodes latents; f is the configuration's `scale_factor`.
    ///
    /// # Shapes
    /// - `latents`: `[batch, latent_channels, height, width]`
    /// - returns `[batch, out_channels, height·f, width·f]`
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(latents)?;
        hidden = self.mid_block.forward(&hidden)?;
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                hidden = resnet.forward(&hidden)?;
            }
            if let Some(upsampler) = upsampler {
                hidden = upsampler.forward(&hidden)?;
            }
        }
        hidden = self.conv_norm_out.forward_silu(&hidden, BatchSplit::Joint)?;
        self.conv_out.forward(&hidden)
    }
}
