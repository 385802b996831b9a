//! The VAE: images to latents and back.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py`, `models/autoencoders/vae.py`.

use tch::{Kind, Tensor};

use super::config::AutoencoderKlConfig;
use crate::models::layers::attention::scaled_dot_product_attention;
use crate::models::layers::chunked::{self, ChunkSize, Map};
use crate::models::layers::group_norm::GroupNorm;
use crate::models::layers::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::models::layers::{Conv2d, Linear, Rows, silu};
use crate::weights::{Frozen, WeightPath, Weights};
use diffusion_core::Result;

/// Epsilon of a VAE's norms (`resnet_eps` in `vae.py`).
const EPS: f64 = 1e-6;

fn resnet_config(config: &AutoencoderKlConfig) -> ResnetConfig {
    ResnetConfig {
        groups: config.norm_num_groups,
        eps: EPS,
        temb_channels: None,
    }
}

/// Self-attention over the positions of a feature map, with one head and a residual.
struct MidAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl MidAttention {
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
        let (rows, channels, height, width) = input.size4()?;
        let tokens = input.f_view([rows, channels, height * width])?.f_transpose(1, 2)?;
        let tokens = self.group_norm.forward(&tokens.f_transpose(1, 2)?)?.f_transpose(1, 2)?;
        let head = |projection: &Linear| -> Result<Tensor> {
            let projected = projection.forward(&tokens, Rows::WHOLE)?;
            Ok(projected.f_view([rows, -1, 1, channels])?.f_transpose(1, 2)?)
        };
        let (q, k, v) = (head(&self.to_q)?, head(&self.to_k)?, head(&self.to_v)?);
        let attended = scaled_dot_product_attention(&q, &k, &v, None, None)?
            .f_transpose(1, 2)?
            .f_reshape([rows, -1, channels])?;
        let output = self
            .to_out
            .forward(&attended, Rows::WHOLE)?
            .f_transpose(-1, -2)?
            .f_reshape([rows, channels, height, width])?;
        Ok(output.f_add(input)?)
    }
}

/// `UNetMidBlock2D` without time.
struct MidBlock {
    resnets: [ResnetBlock2D; 2],
    attention: Option<MidAttention>,
}

impl MidBlock {
    fn new(path: &WeightPath<'_>, channels: i64, config: &AutoencoderKlConfig) -> Result<Self> {
        let resnet = |index| {
            let path = path.sub("resnets").sub(index);
            ResnetBlock2D::new(&path, channels, channels, resnet_config(config))
        };
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config
                .mid_block_add_attention
                .then(|| MidAttention::new(&path.sub("attentions").sub(0), channels, config.norm_num_groups))
                .transpose()?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.resnets;
        let mut hidden = first.forward(input, None, Rows::WHOLE)?;
        if let Some(attention) = &self.attention {
            hidden = attention.forward(&hidden)?;
        }
        second.forward(&hidden, None, Rows::WHOLE)
    }
}

/// Resnets of one size.
fn resnets(
    path: &WeightPath<'_>,
    layers: usize,
    inputs: i64,
    outputs: i64,
    config: &AutoencoderKlConfig,
) -> Result<Vec<ResnetBlock2D>> {
    (0..layers)
        .map(|index| {
            let inputs = if index == 0 { inputs } else { outputs };
            ResnetBlock2D::new(&path.sub("resnets").sub(index), inputs, outputs, resnet_config(config))
        })
        .collect()
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock2D>, Option<Downsample2D>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(path: &WeightPath<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
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
        let moments = config.latent_channels * 2;
        Ok(Self {
            conv_in: Conv2d::same(&path.sub("conv_in"), config.in_channels, first)?,
            down_blocks,
            mid_block: MidBlock::new(&path.sub("mid_block"), last, config)?,
            conv_norm_out: GroupNorm::new(&path.sub("conv_norm_out"), config.norm_num_groups, last, EPS)?,
            conv_out: Conv2d::same(&path.sub("conv_out"), last, moments)?,
        })
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(image, Rows::WHOLE)?;
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                hidden = resnet.forward(&hidden, None, Rows::WHOLE)?;
            }
            if let Some(downsampler) = downsampler {
                hidden = downsampler.forward(&hidden, Rows::WHOLE)?;
            }
        }
        hidden = self.mid_block.forward(&hidden)?;
        hidden = silu(&self.conv_norm_out.forward(&hidden)?, Rows::WHOLE)?;
        self.conv_out.forward(&hidden, Rows::WHOLE)
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock2D>, Option<Upsample2D>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(path: &WeightPath<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
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

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(latents, Rows::WHOLE)?;
        hidden = self.mid_block.forward(&hidden)?;
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                hidden = resnet.forward(&hidden, None, Rows::WHOLE)?;
            }
            if let Some(upsampler) = upsampler {
                hidden = upsampler.forward(&hidden, None, Rows::WHOLE)?;
            }
        }
        hidden = silu(&self.conv_norm_out.forward(&hidden)?, Rows::WHOLE)?;
        self.conv_out.forward(&hidden, Rows::WHOLE)
    }
}

impl Decoder {
    /// [`Decoder::forward`], a chunk of rows at a time from the middle block on.
    fn forward_in_strips(&self, latents: &Tensor, size: ChunkSize) -> Result<Tensor> {
        let hidden = self.conv_in.forward(latents, Rows::WHOLE)?;
        let mut map = Map::Whole(self.mid_block.forward(&hidden)?);
        drop(hidden);
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                map = Map::Whole(chunked::resnet(resnet, map, size)?);
            }
            map = match (map, upsampler) {
                (Map::Whole(hidden), Some(upsampler)) => Map::Upsampled(hidden, upsampler),
                (map, _) => map,
            };
        }
        chunked::norm_and_conv(&self.conv_norm_out, &self.conv_out, &map, size)
    }
}

/// diffusers' `AutoencoderKL`.
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    kind: Kind,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for AutoencoderKl {}

impl AutoencoderKl {
    /// Builds the model that `config` describes from `weights`, all of which it must use.
    ///
    /// # Errors
    /// A tensor that is missing, left over or of another shape.
    pub fn new(config: AutoencoderKlConfig, weights: Weights) -> Result<Self> {
        let weights = weights.renamed(current_name);
        let model = Self::read(config, &weights)?;
        weights.finish()?;
        Ok(model)
    }

    fn read(config: AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root();
        let latents = config.latent_channels;
        let pointwise = |wanted: bool, name: &str, channels: i64| {
            wanted
                .then(|| Conv2d::pointwise(&path.sub(name), channels, channels))
                .transpose()
        };
        Ok(Self {
            encoder: Encoder::new(&path.sub("encoder"), &config)?,
            decoder: Decoder::new(&path.sub("decoder"), &config)?,
            quant_conv: pointwise(config.use_quant_conv, "quant_conv", latents * 2)?,
            post_quant_conv: pointwise(config.use_post_quant_conv, "post_quant_conv", latents)?,
            kind: weights.kind(),
            config,
        })
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The dtype of the weights, and of what goes in and comes out.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Latents `[rows, latent_channels, height, width]` (already divided by `scaling_factor`) to
    /// images `[rows, out_channels, height·f, width·f]` of about -1 to 1.
    ///
    /// # Errors
    /// Out of memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(latents, Rows::WHOLE)?),
            None => self.decoder.forward(latents),
        }
    }

    /// As [`AutoencoderKl::decode`], but for rounding, in less memory: one image after the other, and each a chunk of
    /// rows at a time.
    ///
    /// # Errors
    /// Out of memory.
    pub fn decode_chunked(&self, latents: &Tensor, size: ChunkSize) -> Result<Tensor> {
        let images = latents
            .f_split(1, 0)?
            .iter()
            .map(|latents| match &self.post_quant_conv {
                Some(conv) => {
                    let latents = conv.forward(latents, Rows::WHOLE)?;
                    self.decoder.forward_in_strips(&latents, size)
                }
                None => self.decoder.forward_in_strips(latents, size),
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&images, 0)?)
    }

    /// Images `[rows, in_channels, height, width]` of -1 to 1 to the moments of the latents'
    /// distribution, `[rows, 2·latent_channels, height/f, width/f]`: means, then log-variances.
    ///
    /// # Errors
    /// Out of memory.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.forward(images)?;
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments, Rows::WHOLE),
            None => Ok(moments),
        }
    }
}

/// The present name of a tensor that older diffusers wrote under another: the middle block's
/// attention was an `AttentionBlock` once (`_convert_deprecated_attention_blocks` in
/// `models/modeling_utils.py`).
fn current_name(name: &str) -> Option<String> {
    const NAMES: [(&str, &str); 4] = [
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ];
    if !name.contains("mid_block.attentions.0.") {
        return None;
    }
    let (path, end) = name.rsplit_once('.')?;
    let (path, layer) = path.rsplit_once('.')?;
    let (_, current) = NAMES.iter().find(|(old, _)| *old == layer)?;
    Some(format!("{path}.{current}.{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_are_brought_up_to_date() {
        let now = |name| current_name(name).unwrap_or_else(|| String::from(name));
        assert_eq!(
            now("decoder.mid_block.attentions.0.proj_attn.weight"),
            "decoder.mid_block.attentions.0.to_out.0.weight"
        );
        assert_eq!(
            now("encoder.mid_block.attentions.0.key.bias"),
            "encoder.mid_block.attentions.0.to_k.bias"
        );
        assert_eq!(
            now("encoder.mid_block.attentions.0.to_q.bias"),
            "encoder.mid_block.attentions.0.to_q.bias"
        );
        assert_eq!(now("decoder.conv_in.weight"), "decoder.conv_in.weight");
    }
}
