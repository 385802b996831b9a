//! The blocks that the VAE's encoder and decoder share.
//!
//! Source: diffusers `models/unets/unet_2d_blocks.py` (`UNetMidBlock2D`), `models/attention_processor.py`.

use tch::Tensor;

use super::config::AutoencoderKlConfig;
use crate::models::layers::{
    BatchSplit, GroupNorm, Linear, Mask, ResnetBlock2D, ResnetConfig, scaled_dot_product, self_attention,
};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// Epsilon of a VAE's norms (`resnet_eps` in `vae.py`).
pub const EPS: f64 = 1e-6;

/// Reads `resnets.{index}` below `path`.
fn resnet(
    path: &WeightPath<'_>,
    index: usize,
    inputs: i64,
    outputs: i64,
    config: &AutoencoderKlConfig,
) -> Result<ResnetBlock2D> {
    let resnet_config = ResnetConfig {
        groups: config.norm_num_groups,
        eps: EPS,
        temb_channels: None,
    };
    ResnetBlock2D::new(&path.sub("resnets").sub(index), inputs, outputs, resnet_config)
}

/// Reads the resnets of one block of the encoder or the decoder.
pub fn resnets(
    path: &WeightPath<'_>,
    layers: usize,
    inputs: i64,
    outputs: i64,
    config: &AutoencoderKlConfig,
) -> Result<Vec<ResnetBlock2D>> {
    (0..layers)
        .map(|index| resnet(path, index, if index == 0 { inputs } else { outputs }, outputs, config))
        .collect()
}

/// Self-attention over the positions of a feature map, with one head and a residual.
struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn new(path: &WeightPath<'_>, channels: i64, groups: i64) -> Result<Self> {
        let linear = |path: &WeightPath<'_>| Linear::new(path, channels, channels);
        Ok(Self {
            group_norm: GroupNorm::new(&path.sub("group_norm"), groups, channels, EPS)?,
            to_q: linear(&path.sub("to_q"))?,
            to_k: linear(&path.sub("to_k"))?,
            to_v: linear(&path.sub("to_v"))?,
            to_out: linear(&path.sub("to_out").sub(0))?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = input.size4()?;
        if self.to_q.is_fast() {
            let tokens = |map: &Tensor| -> Result<Tensor> {
                Ok(map
                    .f_permute([0, 2, 3, 1])?
                    .f_reshape([batch, height * width, channels])?)
            };
            let normed = tokens(&self.group_norm.forward(input)?)?;
            let attended = self_attention(
                &normed,
                [&self.to_q, &self.to_k, &self.to_v],
                1,
                None,
                false,
                BatchSplit::Joint,
            )?;
            let output = self.to_out.forward_add(&attended, &tokens(input)?, BatchSplit::Joint)?;
            return Ok(output
                .f_view([batch, height, width, channels])?
                .f_permute([0, 3, 1, 2])?);
        }
        let tokens = input.f_view([batch, channels, height * width])?.f_transpose(1, 2)?;
        let tokens = self.group_norm.forward(&tokens.f_transpose(1, 2)?)?.f_transpose(1, 2)?;
        let q = self.to_q.forward(&tokens)?;
        let k = self.to_k.forward(&tokens)?;
        let v = self.to_v.forward(&tokens)?;
        let attended = scaled_dot_product([&q, &k, &v], 1, Mask::None, None, BatchSplit::Joint)?;
        let output = self
            .to_out
            .forward(&attended)?
            .f_transpose(-1, -2)?
            .f_reshape([batch, channels, height, width])?;
        Ok(output.f_add(input)?)
    }
}

/// `UNetMidBlock2D` without time.
pub struct MidBlock {
    resnets: [ResnetBlock2D; 2],
    attention: Option<Attention>,
}

impl MidBlock {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, channels: i64, config: &AutoencoderKlConfig) -> Result<Self> {
        let resnet = |index| resnet(path, index, channels, channels, config);
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config
                .mid_block_add_attention
                .then(|| Attention::new(&path.sub("attentions").sub(0), channels, config.norm_num_groups))
                .transpose()?,
        })
    }

    /// Applies the block.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, channels, height, width]`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.resnets;
        let mut hidden = first.forward(input)?;
        if let Some(attention) = &self.attention {
            hidden = attention.forward(&hidden)?;
        }
        second.forward(&hidden)
    }
}
