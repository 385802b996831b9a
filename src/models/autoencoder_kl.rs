//! The VAE: pictures to latents and back.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py`, `models/autoencoders/vae.py`.

use serde::Deserialize;
use tch::Tensor;

use super::attention::scaled_dot_product_attention;
use super::layers::{Conv2d, GroupNorm, Linear, Rows, silu};
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::error::{Error, Result};
use crate::weights::{WeightPath, Weights};

/// Epsilon of a VAE's norms (`resnet_eps` in `vae.py`).
const EPS: f64 = 1e-6;

/// `vae/config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the picture.
    pub in_channels: i64,
    /// Channels of the decoded picture.
    pub out_channels: i64,
    /// Channels of each block, outermost first; there is one halving fewer than blocks.
    pub block_out_channels: Vec<i64>,
    /// Resnets in a block of the encoder; the decoder's have one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of the group norms.
    pub norm_num_groups: i64,
    /// What latents are multiplied by before the UNet sees them.
    pub scaling_factor: f64,
    /// Block types; only diffusers' plain ones are supported.
    pub down_block_types: Vec<String>,
    /// Block types; only diffusers' plain ones are supported.
    pub up_block_types: Vec<String>,
    /// Activation; only SiLU is supported.
    pub act_fn: String,
    /// A 1x1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in the middle block.
    pub mid_block_add_attention: bool,
    /// A shift of the latents, which no Stable Diffusion 1 or 2 has.
    pub shift_factor: Option<f64>,
    /// Statistics of the latents, which no Stable Diffusion 1 or 2 has.
    pub latents_mean: Option<Vec<f64>>,
    /// Statistics of the latents, which no Stable Diffusion 1 or 2 has.
    pub latents_std: Option<Vec<f64>>,
}

impl Default for AutoencoderKlConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            act_fn: "silu".to_owned(),
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl AutoencoderKlConfig {
    /// Checks that the parts fit each other and that nothing is asked for that we do not do.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::invalid_argument(format!("vae/config.json: {what}")));
        let unsupported = |key: &str| {
            Err(Error::unsupported(format!(
                "vae/config.json: {key} is set to a value that is not supported"
            )))
        };
        let blocks = self.block_out_channels.len();
        if !(1..=8).contains(&blocks) {
            return invalid("block_out_channels must have 1 to 8 entries");
        }
        if self.down_block_types.len() != blocks || self.up_block_types.len() != blocks {
            return invalid("down_block_types and up_block_types must be as long as block_out_channels");
        }
        if self.down_block_types.iter().any(|t| t != "DownEncoderBlock2D") {
            return unsupported("down_block_types");
        }
        if self.up_block_types.iter().any(|t| t != "UpDecoderBlock2D") {
            return unsupported("up_block_types");
        }
        if self.act_fn != "silu" {
            return unsupported("act_fn");
        }
        if self.shift_factor.is_some() {
            return unsupported("shift_factor");
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return unsupported("latents_mean");
        }
        let sizes = [self.in_channels, self.out_channels, self.latent_channels];
        if self.block_out_channels.iter().chain(&sizes).any(|&n| !(1..=1 << 16).contains(&n)) {
            return invalid("a channel count is out of range (1 to 65536)");
        }
        if !(1..=64).contains(&self.layers_per_block) {
            return invalid("layers_per_block is out of range (1 to 64)");
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return invalid("scaling_factor must be a positive number");
        }
        Ok(())
    }

    /// Pixels per latent, along each side.
    pub fn scale_factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    fn resnet(&self) -> ResnetConfig {
        ResnetConfig { groups: self.norm_num_groups, eps: EPS, temb_channels: None }
    }

    fn ends(&self) -> (i64, i64) {
        let first = self.block_out_channels.first().copied().unwrap_or_default();
        (first, self.block_out_channels.last().copied().unwrap_or(first))
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
            ResnetBlock2D::new(&path, channels, channels, config.resnet())
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
            ResnetBlock2D::new(&path.sub("resnets").sub(index), inputs, outputs, config.resnet())
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

    fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(picture, Rows::WHOLE)?;
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

/// diffusers' `AutoencoderKL`.
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

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
            wanted.then(|| Conv2d::pointwise(&path.sub(name), channels, channels)).transpose()
        };
        Ok(Self {
            encoder: Encoder::new(&path.sub("encoder"), &config)?,
            decoder: Decoder::new(&path.sub("decoder"), &config)?,
            quant_conv: pointwise(config.use_quant_conv, "quant_conv", latents * 2)?,
            post_quant_conv: pointwise(config.use_post_quant_conv, "post_quant_conv", latents)?,
            config,
        })
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Latents `[rows, latent_channels, height, width]` (already divided by `scaling_factor`) to
    /// pictures `[rows, out_channels, height·f, width·f]` of about -1 to 1.
    ///
    /// # Errors
    /// Out of memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(latents, Rows::WHOLE)?),
            None => self.decoder.forward(latents),
        }
    }

    /// Pictures `[rows, in_channels, height, width]` of -1 to 1 to the moments of the latents'
    /// distribution, `[rows, 2·latent_channels, height/f, width/f]`: means, then log-variances.
    ///
    /// # Errors
    /// Out of memory.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.forward(pictures)?;
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
    const NAMES: [(&str, &str); 4] =
        [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
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
        assert_eq!(now("encoder.mid_block.attentions.0.key.bias"), "encoder.mid_block.attentions.0.to_k.bias");
        assert_eq!(now("encoder.mid_block.attentions.0.to_q.bias"), "encoder.mid_block.attentions.0.to_q.bias");
        assert_eq!(now("decoder.conv_in.weight"), "decoder.conv_in.weight");
    }
}
