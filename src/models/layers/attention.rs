//! Multi-head attention.
//!
//! Source: diffusers `models/attention_processor.py` (`Attention`, `AttnProcessor2_0`). The order of views and products
//! is that of the source: another order rounds differently.

use tch::Tensor;

use super::batch_split::BatchSplit;
use super::linear::Linear;
use crate::torch::kernels::{self, Activation, After};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// What a query may attend to.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Everything.
    None,
    /// Keys up to its own position.
    Causal,
    /// The tensor is added to the scores, `[batch or 1, heads or 1, queries, keys]`.
    Added(&'a Tensor),
}

impl<'a> Mask<'a> {
    fn added(self) -> Option<&'a Tensor> {
        match self {
            Self::Added(tensor) => Some(tensor),
            Self::None | Self::Causal => None,
        }
    }
}

/// Computes softmax(q·kᵀ·scale)·v in each of `heads` heads with libtorch's fused kernels, for each job's entries.
///
/// The default `scale` is 1/√(channels of a head).
///
/// # Shapes
/// - `q`: `[batch, queries, channels]`
/// - `k`, `v`: `[batch, keys, channels]`
/// - returns `[batch, queries, channels]`
pub fn scaled_dot_product(
    [q, k, v]: [&Tensor; 3],
    heads: i64,
    mask: Mask<'_>,
    scale: Option<f64>,
    split: BatchSplit<'_>,
) -> Result<Tensor> {
    let (batch, _, channels) = q.size3()?;
    let to_heads = |projected: &Tensor| -> Result<Tensor> {
        Ok(projected
            .f_view([batch, -1, heads, channels / heads])?
            .f_transpose(1, 2)?)
    };
    let (q, k, v) = (to_heads(q)?, to_heads(k)?, to_heads(v)?);
    let attended = split.map_all([&q, &k, &v], |[q, k, v]| {
        Ok(Tensor::f_scaled_dot_product_attention(
            q,
            k,
            v,
            mask.added(),
            0.0,
            matches!(mask, Mask::Causal),
            scale,
            false,
        )?)
    })?;
    Ok(attended.f_transpose(1, 2)?.f_reshape([batch, -1, channels])?)
}

/// Attends to `input` itself with the CPU kernels of this crate: one product for the three projections, and what adapters
/// add to them.
///
/// # Shapes
/// - `input` and the result: `[batch, tokens, channels]`
pub fn self_attention(
    input: &Tensor,
    projections: [&Linear; 3],
    heads: i64,
    scale: Option<f64>,
    causal: bool,
    split: BatchSplit<'_>,
) -> Result<Tensor> {
    let weights = projections.map(Linear::kernel);
    let projected = kernels::linear(input, &weights, After::Activate(Activation::Identity))?;
    let channels = projected.size().last().copied().unwrap_or_default() / 3;
    let part = |index: usize| -> Result<Tensor> {
        let part = projected.f_narrow(-1, index as i64 * channels, channels)?;
        projections[index].adapt(input, part, split)
    };
    kernels::attention([&part(0)?, &part(1)?, &part(2)?], heads, scale, causal)
}

/// The projected keys and values of an attention, `[batch, keys, channels]` each.
#[derive(Debug)]
pub struct KeyValue {
    /// What queries are compared with.
    pub key: Tensor,
    /// What the result is a weighted mean of.
    pub value: Tensor,
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
    /// Reads the weights below `path`. `context` is the size of the vectors that are attended to, and equals `channels`
    /// for self-attention. `bias` is for the first three projections; the last always has one.
    pub fn new(path: &WeightPath<'_>, channels: i64, context: i64, heads: i64, bias: bool) -> Result<Self> {
        let projection = |name: &str, inputs| Linear::with_bias(&path.sub(name), inputs, channels, bias);
        Ok(Self {
            to_q: projection("to_q", channels)?,
            to_k: projection("to_k", context)?,
            to_v: projection("to_v", context)?,
            to_out: Linear::new(&path.sub("to_out").sub(0), channels, channels)?,
            heads,
        })
    }

    /// Projects what is attended to.
    ///
    /// # Shapes
    /// - `context`: `[batch, keys, context]`
    pub fn key_value(&self, context: &Tensor, split: BatchSplit<'_>) -> Result<KeyValue> {
        Ok(KeyValue {
            key: self.to_k.forward_split(context, split)?,
            value: self.to_v.forward_split(context, split)?,
        })
    }

    /// Attends to `input` itself, and adds `residual`.
    ///
    /// # Shapes
    /// - `input`, `residual` and the result: `[batch, tokens, channels]`
    pub fn forward(&self, input: &Tensor, residual: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.to_q.is_fast() {
            let attended = self_attention(
                input,
                [&self.to_q, &self.to_k, &self.to_v],
                self.heads,
                None,
                false,
                split,
            )?;
            return self.to_out.forward_add(&attended, residual, split);
        }
        // In diffusers' order.
        let q = self.to_q.forward_split(input, split)?;
        self.attend(&q, &self.key_value(input, split)?, residual, split)
    }

    /// Attends to what was projected before, and adds `residual`; shapes as in [`Attention::forward`].
    pub fn forward_to(
        &self,
        input: &Tensor,
        context: &KeyValue,
        residual: &Tensor,
        split: BatchSplit<'_>,
    ) -> Result<Tensor> {
        self.attend(&self.to_q.forward_split(input, split)?, context, residual, split)
    }

    fn attend(&self, q: &Tensor, context: &KeyValue, residual: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        let qkv = [q, &context.key, &context.value];
        let attended = if self.to_q.is_fast() {
            kernels::attention(qkv, self.heads, None, false)?
        } else {
            scaled_dot_product(qkv, self.heads, Mask::None, None, split)?
        };
        self.to_out.forward_add(&attended, residual, split)
    }
}
