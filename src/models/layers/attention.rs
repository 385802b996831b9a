//! Attention and the transformer blocks of the UNet.
//!
//! Sources of the arithmetic: diffusers `models/attention_processor.py` (`Attention`,
//! `AttnProcessor2_0`), `models/attention.py` (`BasicTransformerBlock`, `FeedForward`),
//! `models/activations.py` (`GEGLU`) and `models/transformers/transformer_2d.py`. The order of views
//! and products is theirs: another order rounds differently.

use tch::Tensor;

use super::group_norm::GroupNorm;
use crate::models::layers::{Conv2d, LayerNorm, Linear, Rows};
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// softmax(q·kᵀ/√d)·v by libtorch's fused kernels.
///
/// `q` is `[rows, heads, queries, d]`, `k` and `v` are `[rows, heads, keys, d]`; `mask`, if any, is
/// added to the scores and broadcasts against `[rows, heads, queries, keys]`.
///
/// # Errors
/// Out of memory.
pub fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: Option<f64>,
) -> Result<Tensor> {
    Ok(Tensor::f_scaled_dot_product_attention(
        q, k, v, mask, 0.0, false, scale, false,
    )?)
}

/// Attention with its projections (diffusers' `Attention`).
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Attention {
    /// Self-attention where `context` equals `channels` and no context is given to
    /// [`Attention::forward`]. `bias` is for the first three projections; the last has one always.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, channels: i64, context: i64, heads: i64, bias: bool) -> Result<Self> {
        let projection = |name: &str, inputs| {
            if bias {
                Linear::new(&path.sub(name), inputs, channels)
            } else {
                Linear::without_bias(&path.sub(name), inputs, channels)
            }
        };
        Ok(Self {
            to_q: projection("to_q", channels)?,
            to_k: projection("to_k", context)?,
            to_v: projection("to_v", context)?,
            to_out: Linear::new(&path.sub("to_out").sub(0), channels, channels)?,
            heads,
        })
    }

    /// `[rows, tokens, channels]`, attending to `context` (`[rows, keys, context]`) or to itself.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, context: Option<&Tensor>, rows: Rows<'_>) -> Result<Tensor> {
        let context = context.unwrap_or(input);
        let q = self.to_q.forward(input, rows)?;
        let k = self.to_k.forward(context, rows)?;
        let v = self.to_v.forward(context, rows)?;
        let (batch, _, channels) = q.size3()?;
        let head = channels / self.heads;
        let split = |projected: Tensor| -> Result<Tensor> {
            Ok(projected.f_view([batch, -1, self.heads, head])?.f_transpose(1, 2)?)
        };
        let (q, k, v) = (split(q)?, split(k)?, split(v)?);
        let attended = rows.each_with(&[&q, &k, &v], |piece| match piece {
            [q, k, v] => scaled_dot_product_attention(q, k, v, None, None),
            _ => Err(Error::internal("attention over other than three tensors")),
        })?;
        let joined = attended.f_transpose(1, 2)?.f_reshape([batch, -1, channels])?;
        self.to_out.forward(&joined, rows)
    }
}

/// Two products with a gated GELU between (`FeedForward` with `geglu`).
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

    fn forward(&self, input: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        let projected = self.project_in.forward(input, rows)?;
        let inner = projected.size().last().copied().unwrap_or_default() / 2;
        let value = projected.f_narrow(-1, 0, inner)?;
        let gate = projected.f_narrow(-1, inner, inner)?;
        let gate = rows.each(&gate, |gate| Ok(gate.f_gelu("none")?))?;
        self.project_out.forward(&value.f_mul(&gate)?, rows)
    }
}

/// Self-attention, cross-attention and feed-forward, each after a norm and with a residual.
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
        let own_context = if config.only_cross_attention { context } else { channels };
        let norm = |name| LayerNorm::new(&path.sub(name), channels, 1e-5);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(&path.sub("attn1"), channels, own_context, config.heads, false)?,
            norm2: norm("norm2")?,
            attn2: Attention::new(&path.sub("attn2"), channels, context, config.heads, false)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(&path.sub("ff"), channels)?,
            only_cross_attention: config.only_cross_attention,
        })
    }

    fn forward(&self, input: &Tensor, context: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        let own_context = self.only_cross_attention.then_some(context);
        let attended = self.attn1.forward(&self.norm1.forward(input)?, own_context, rows)?;
        let hidden = attended.f_add(input)?;
        let attended = self.attn2.forward(&self.norm2.forward(&hidden)?, Some(context), rows)?;
        let hidden = attended.f_add(&hidden)?;
        let fed = self.ff.forward(&self.norm3.forward(&hidden)?, rows)?;
        Ok(fed.f_add(&hidden)?)
    }
}

/// What shapes a [`Transformer2DModel`].
pub struct Transformer2DConfig {
    /// Channels in and out.
    pub channels: i64,
    /// Attention heads; they divide the channels.
    pub heads: i64,
    /// Size of the text embeddings.
    pub cross_attention_dim: i64,
    /// Groups of the first norm.
    pub norm_num_groups: i64,
    /// Transformer blocks one after the other.
    pub layers: usize,
    /// Projections in and out as products over tokens (SD2) instead of 1x1 convolutions (SD1).
    pub use_linear_projection: bool,
    /// The first attention of a block attends to the text too (x4 upscaler).
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
    /// A tensor that is missing or of another shape; heads that do not divide the channels.
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

    /// `[rows, channels, height, width]` with `context` of `[rows, tokens, cross_attention_dim]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, context: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        let (batch, channels, height, width) = input.size4()?;
        let to_tokens = |map: &Tensor| -> Result<Tensor> {
            Ok(map
                .f_permute([0, 2, 3, 1])?
                .f_reshape([batch, height * width, channels])?)
        };
        let to_map = |tokens: &Tensor| -> Result<Tensor> {
            Ok(tokens
                .f_reshape([batch, height, width, channels])?
                .f_permute([0, 3, 1, 2])?
                .f_contiguous()?)
        };
        let normed = self.norm.forward(input)?;
        let mut hidden = match &self.projections {
            Projections::Linear { proj_in, .. } => proj_in.forward(&to_tokens(&normed)?, rows)?,
            Projections::Conv { proj_in, .. } => to_tokens(&proj_in.forward(&normed, rows)?)?,
        };
        for block in &self.transformer_blocks {
            hidden = block.forward(&hidden, context, rows)?;
        }
        let output = match &self.projections {
            Projections::Linear { proj_out, .. } => to_map(&proj_out.forward(&hidden, rows)?)?,
            Projections::Conv { proj_out, .. } => proj_out.forward(&to_map(&hidden)?, rows)?,
        };
        Ok(output.f_add(input)?)
    }
}
