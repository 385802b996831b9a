//! Transformer blocks over a feature map.
//!
//! Source: diffusers `models/transformers/transformer_2d.py` (`Transformer2DModel`), `models/attention.py`
//! (`BasicTransformerBlock`, `FeedForward`), `models/activations.py` (`GEGLU`).

use tch::Tensor;

use super::attention::{Attention, KeyValue};
use super::batch_split::BatchSplit;
use super::conditioning::Conditioning;
use super::conv::Conv2d;
use super::group_norm::GroupNorm;
use super::layer_norm::LayerNorm;
use super::linear::Linear;
use crate::torch::kernels::After;
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// Two linear layers with a gated GELU between them (`FeedForward` with `geglu`).
struct FeedForward {
    project_in: Linear,
    project_out: Linear,
}

impl FeedForward {
    fn new(path: &WeightPath<'_>, channels: i64) -> Result<Self> {
        let inner = channels * 4;
        let net = path.sub("net");
        Ok(Self {
            project_in: Linear::new(&net.sub(0).sub("proj"), channels, inner * 2)?,
            project_out: Linear::new(&net.sub(2), inner, channels)?,
        })
    }

    /// Applies the layers and adds `residual`.
    fn forward(&self, input: &Tensor, residual: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.project_in.is_fast() {
            let gated = self.project_in.forward_fast(input, After::Gate, split, |projected| {
                let (value, gate) = halves(projected)?;
                Ok(gate.f_gelu("none")?.f_mul(&value)?)
            })?;
            return self.project_out.forward_add(&gated, residual, split);
        }
        let projected = self.project_in.forward_split(input, split)?;
        let (value, gate) = halves(&projected)?;
        let mut gated = split.map(&gate, |gate| Ok(gate.f_gelu("none")?))?;
        // In place: the product of two maps is the largest tensor of a UNet call.
        let _ = gated.f_mul_(&value)?;
        drop((projected, value, gate));
        self.project_out.forward_add(&gated, residual, split)
    }
}

/// Returns the two halves of the last dimension.
fn halves(projected: &Tensor) -> Result<(Tensor, Tensor)> {
    let inner = projected.size().last().copied().unwrap_or_default() / 2;
    Ok((projected.f_narrow(-1, 0, inner)?, projected.f_narrow(-1, inner, inner)?))
}

/// Self-attention, cross-attention and a feed-forward network, each after a norm and with a residual.
struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl BasicTransformerBlock {
    fn new(path: &WeightPath<'_>, config: &Transformer2DConfig) -> Result<Self> {
        let (channels, context) = (config.channels, config.cross_attention_dim);
        let first_context = if config.only_cross_attention { context } else { channels };
        let norm = |name| LayerNorm::new(&path.sub(name), channels, 1e-5);
        let attention = |name, context| Attention::new(&path.sub(name), channels, context, config.heads, false);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", first_context)?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", context)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(&path.sub("ff"), channels)?,
            only_cross_attention: config.only_cross_attention,
        })
    }

    /// The attentions to the text, in the order of [`BasicTransformerBlock::forward`].
    fn cross_attentions(&self) -> impl Iterator<Item = &Attention> {
        let first = self.only_cross_attention.then_some(&self.attn1);
        first.into_iter().chain([&self.attn2])
    }

    /// Each map is freed as soon as it has been used: they are the largest of a UNet call.
    fn forward(&self, input: Tensor, conditioning: &mut Conditioning<'_>, split: BatchSplit<'_>) -> Result<Tensor> {
        let mut hidden = input;
        let mut normed = self.norm1.forward(&hidden)?;
        hidden = if self.only_cross_attention {
            self.attn1
                .forward_to(&normed, conditioning.next_text()?, &hidden, split)?
        } else {
            self.attn1.forward(&normed, &hidden, split)?
        };
        normed = self.norm2.forward(&hidden)?;
        hidden = self
            .attn2
            .forward_to(&normed, conditioning.next_text()?, &hidden, split)?;
        normed = self.norm3.forward(&hidden)?;
        self.ff.forward(&normed, &hidden, split)
    }
}

/// The shape of a [`Transformer2DModel`].
pub struct Transformer2DConfig {
    /// Channels in and out.
    pub channels: i64,
    /// Attention heads; their number divides the channels.
    pub heads: i64,
    /// Size of the text embeddings.
    pub cross_attention_dim: i64,
    /// Groups of the first norm.
    pub norm_num_groups: i64,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Projections in and out are linear layers over tokens (SD2) instead of 1x1 convolutions (SD1).
    pub use_linear_projection: bool,
    /// The first attention of a block also attends to the text (x4 upscaler).
    pub only_cross_attention: bool,
}

/// The projections in and out of a [`Transformer2DModel`].
enum Projections {
    Linear { proj_in: Linear, proj_out: Linear },
    Conv { proj_in: Conv2d, proj_out: Conv2d },
}

/// Transformer blocks over the positions of a feature map.
pub struct Transformer2DModel {
    norm: GroupNorm,
    projections: Projections,
    transformer_blocks: Vec<BasicTransformerBlock>,
}

impl Transformer2DModel {
    /// Reads the weights below `path`.
    ///
    /// # Errors
    /// `InvalidArgument` if `heads` does not divide `channels`.
    pub fn new(path: &WeightPath<'_>, config: &Transformer2DConfig) -> Result<Self> {
        let channels = config.channels;
        if config.heads <= 0 || channels % config.heads != 0 {
            return Err(Error::invalid_argument(format!(
                "unet/config.json: attention_head_dim (the number of heads) {} does not divide {channels} channels",
                config.heads
            )));
        }
        let (proj_in, proj_out) = (path.sub("proj_in"), path.sub("proj_out"));
        let projections = if config.use_linear_projection {
            Projections::Linear {
                proj_in: Linear::new(&proj_in, channels, channels)?,
                proj_out: Linear::new(&proj_out, channels, channels)?,
            }
        } else {
            Projections::Conv {
                proj_in: Conv2d::pointwise(&proj_in, channels, channels)?,
                proj_out: Conv2d::pointwise(&proj_out, channels, channels)?,
            }
        };
        let blocks = path.sub("transformer_blocks");
        Ok(Self {
            norm: GroupNorm::new(&path.sub("norm"), config.norm_num_groups, channels, 1e-6)?,
            projections,
            transformer_blocks: (0..config.layers)
                .map(|i| BasicTransformerBlock::new(&blocks.sub(i), config))
                .collect::<Result<_>>()?,
        })
    }

    /// Returns the number of attentions to the text.
    pub fn num_text_attentions(&self) -> usize {
        let blocks = self.transformer_blocks.iter();
        blocks.flat_map(BasicTransformerBlock::cross_attentions).count()
    }

    /// Projects the text for each attention to it, in the order in which [`Transformer2DModel::forward`] takes them.
    ///
    /// # Shapes
    /// - `context`: `[batch, tokens, cross_attention_dim]`
    pub fn project_text(&self, context: &Tensor, split: BatchSplit<'_>) -> Result<Vec<KeyValue>> {
        let blocks = self.transformer_blocks.iter();
        blocks
            .flat_map(BasicTransformerBlock::cross_attentions)
            .map(|attention| attention.key_value(context, split))
            .collect()
    }

    /// Applies the blocks to the positions of a feature map. Takes the projected text from `conditioning`.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, channels, height, width]`
    pub fn forward(
        &self,
        input: &Tensor,
        conditioning: &mut Conditioning<'_>,
        split: BatchSplit<'_>,
    ) -> Result<Tensor> {
        let (batch, channels, height, width) = input.size4()?;
        let to_tokens = |map: &Tensor| -> Result<Tensor> {
            Ok(map
                .f_permute([0, 2, 3, 1])?
                .f_reshape([batch, height * width, channels])?)
        };
        let to_map = |tokens: &Tensor| -> Result<Tensor> {
            Ok(tokens
                .f_reshape([batch, height, width, channels])?
                .f_permute([0, 3, 1, 2])?)
        };
        let normed = self.norm.forward(input)?;
        let mut hidden = match &self.projections {
            Projections::Linear { proj_in, .. } => proj_in.forward_split(&to_tokens(&normed)?, split)?,
            Projections::Conv { proj_in, .. } => to_tokens(&proj_in.forward_split(&normed, split, None)?)?,
        };
        // Its memory is free for the blocks.
        drop(normed);
        for block in &self.transformer_blocks {
            hidden = block.forward(hidden, conditioning, split)?;
        }
        if let Projections::Linear { proj_out, .. } = &self.projections
            && proj_out.is_fast()
        {
            return to_map(&proj_out.forward_add(&hidden, &to_tokens(input)?, split)?);
        }
        let output = match &self.projections {
            Projections::Linear { proj_out, .. } => to_map(&proj_out.forward_split(&hidden, split)?)?,
            Projections::Conv { proj_out, .. } => {
                if proj_out.is_fast() {
                    return proj_out.forward_add(&to_map(&hidden)?, input, split, None);
                }
                proj_out.forward_split(&to_map(&hidden)?.f_contiguous()?, split, None)?
            }
        };
        // The sum takes the layout of its first operand: the map need not be copied to it before.
        Ok(input.f_add(&output)?)
    }
}
