//! The VAE's encoder: images to moments of latents.
//!
//! Source: diffusers `models/autoencoders/vae.py` (`Encoder`).

use tch::Tensor;

use super::blocks::{EPS, MidBlock, resnets};
use super::config::AutoencoderKlConfig;
use crate::models::layers::{BatchSplit, Conv2d, Downsample2D, GroupNorm, ResnetBlock2D};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// diffusers' `Encoder`.
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock2D>, Option<Downsample2D>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let (first, last) = config.ends();
        let mut down_blocks = Vec::new();
        let mut inputs = first;
        for (index, &outputs) in config.block_out_channels.iter().enumerate() {
            let path = path.sub("down_blocks").sub(index);
            let layers = resnets(&path, config.layers_per_block, inputs, outputs, config)?;
            let downsampler = (index + 1 < config.block_out_channels.len())
                .then(|| Downsample2D::new(&path.sub("downsamplers").sub(0), outputs, 0))
                .transpose()?;
            down_blocks.push((layers, downsampler));
            inputs = outputs;
        }
        Ok(Self {
            conv_in: Conv2d::same(&path.sub("conv_in"), config.in_channels, first)?,
            down_blocks,
            mid_block: MidBlock::new(&path.sub("mid_block"), last, config)?,
            conv_norm_out: GroupNorm::new(&path.sub("conv_norm_out"), config.norm_num_groups, last, EPS)?,
            conv_out: Conv2d::same(&path.sub("conv_out"), last, config.latent_channels * 2)?,
        })
    }

    /// Encodes images; f is the configuration's `scale_factor`.
    ///
    /// # Shapes
    /// - `images`: `[batch, in_channels, height, width]`
    /// - returns `[batch, 2·latent_channels, height/f, width/f]`
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(images)?;
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                hidden = resnet.forward(&hidden)?;
            }
            if let Some(downsampler) = downsampler {
                hidden = downsampler.forward(&hidden, BatchSplit::Joint)?;
            }
        }
        hidden = self.mid_block.forward(&hidden)?;
        hidden = self.conv_norm_out.forward_silu(&hidden, BatchSplit::Joint)?;
        // Noise is drawn in the order of the channels.
        Ok(self.conv_out.forward(&hidden)?.f_contiguous()?)
    }
}
