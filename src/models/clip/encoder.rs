//! The transformer layers that CLIP's text and vision models share.
//!
//! Source: transformers `models/clip/modeling_clip.py` (`CLIPEncoder`, `CLIPEncoderLayer`, `CLIPAttention`,
//! `CLIPMLP`).

use serde::Deserialize;
use tch::Tensor;

use crate::models::config;
use crate::models::layers::{BatchSplit, LayerNorm, Linear, Mask, scaled_dot_product, self_attention};
use crate::torch::kernels::{self, After};
use crate::torch::numbers::NumberOperators;
use crate::weights::WeightPath;
use diffusion_core::Result;

/// The activation between the two linear layers of a transformer layer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·Φ(x), exactly (Stable Diffusion 2).
    Gelu,
    /// x·σ(1.702·x) (Stable Diffusion 1).
    QuickGelu,
}

/// The shape of the layers.
#[derive(Clone, Copy, Debug)]
pub struct ClipEncoderConfig {
    /// Size of the hidden states.
    pub hidden_size: i64,
    /// Size between the two linear layers of a transformer layer.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads; their number divides the hidden size.
    pub num_attention_heads: i64,
    /// Activation.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl ClipEncoderConfig {
    /// Checks that the values fit each other. `file` is the file that holds them.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file and the key.
    pub fn check(&self, file: &str) -> Result<()> {
        let ensure = |valid, what: &str| config::ensure(valid, file, what);
        let sizes = [self.hidden_size, self.intermediate_size];
        ensure(
            sizes.iter().all(|n| (1..=1 << 20).contains(n)),
            "hidden_size or intermediate_size is out of range (1 to 1048576)",
        )?;
        ensure(
            (1..=1024).contains(&self.num_hidden_layers),
            "num_hidden_layers is out of range (1 to 1024)",
        )?;
        ensure(
            self.num_attention_heads > 0 && self.hidden_size % self.num_attention_heads == 0,
            "num_attention_heads does not divide hidden_size",
        )
    }
}

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl SelfAttention {
    fn new(path: &WeightPath<'_>, size: i64, heads: i64) -> Result<Self> {
        let linear = |name: &str| Linear::new(&path.sub(name), size, size);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            heads,
        })
    }

    /// Attends to `input` itself, and adds `residual`.
    fn forward(&self, input: &Tensor, residual: &Tensor, mask: Mask<'_>, split: BatchSplit<'_>) -> Result<Tensor> {
        let (_, _, size) = input.size3()?;
        let scale = ((size / self.heads) as f64).powf(-0.5);
        if self.q_proj.is_fast() && !matches!(mask, Mask::Added(_)) {
            let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
            let causal = matches!(mask, Mask::Causal);
            let attended = self_attention(input, projections, self.heads, Some(scale), causal, split)?;
            return self.out_proj.forward_add(&attended, residual, split);
        }
        let q = self.q_proj.forward_split(input, split)?;
        let k = self.k_proj.forward_split(input, split)?;
        let v = self.v_proj.forward_split(input, split)?;
        let attended = scaled_dot_product([&q, &k, &v], self.heads, mask, Some(scale), split)?;
        Ok(residual.f_add(&self.out_proj.forward_split(&attended, split)?)?)
    }
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl EncoderLayer {
    fn new(path: &WeightPath<'_>, config: &ClipEncoderConfig) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        let mlp = path.sub("mlp");
        Ok(Self {
            layer_norm1: LayerNorm::new(&path.sub("layer_norm1"), size, config.layer_norm_eps)?,
            self_attn: SelfAttention::new(&path.sub("self_attn"), size, config.num_attention_heads)?,
            layer_norm2: LayerNorm::new(&path.sub("layer_norm2"), size, config.layer_norm_eps)?,
            fc1: Linear::new(&mlp.sub("fc1"), size, inner)?,
            fc2: Linear::new(&mlp.sub("fc2"), inner, size)?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, input: &Tensor, mask: Mask<'_>, split: BatchSplit<'_>) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(input)?;
        let hidden = self.self_attn.forward(&normed, input, mask, split)?;
        let normed = self.layer_norm2.forward(&hidden)?;
        if self.fc1.is_fast() {
            let activation = match self.activation {
                Activation::Gelu => kernels::Activation::Gelu,
                Activation::QuickGelu => kernels::Activation::QuickGelu,
            };
            let after = After::Activate(activation);
            let inner = self
                .fc1
                .forward_fast(&normed, after, split, |inner| self.activate(inner))?;
            return self.fc2.forward_add(&inner, &hidden, split);
        }
        let inner = self.activate(&self.fc1.forward_split(&normed, split)?)?;
        Ok(hidden.f_add(&self.fc2.forward_split(&inner, split)?)?)
    }

    fn activate(&self, inner: &Tensor) -> Result<Tensor> {
        Ok(match self.activation {
            Activation::Gelu => inner.f_gelu("none")?,
            Activation::QuickGelu => inner.f_mul(&inner.mul_number(1.702)?.f_sigmoid()?)?,
        })
    }
}

/// transformers' `CLIPEncoder`.
pub struct ClipEncoder {
    layers: Vec<EncoderLayer>,
}

impl ClipEncoder {
    /// Reads the weights below `path`, which ends in `encoder`.
    pub fn new(path: &WeightPath<'_>, config: &ClipEncoderConfig) -> Result<Self> {
        let layers = path.sub("layers");
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(|index| EncoderLayer::new(&layers.sub(index), config))
                .collect::<Result<_>>()?,
        })
    }

    /// Applies all layers but the last `skip`, to each job's entries.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, tokens, hidden_size]`
    pub fn forward(&self, input: Tensor, mask: Mask<'_>, skip: usize, split: BatchSplit<'_>) -> Result<Tensor> {
        let (first, _) = self.layers.split_at(self.layers.len().saturating_sub(skip));
        apply(first, input, mask, split)
    }

    /// Applies all layers to each job's entries. Returns the result without the last `skip` layers, and the result of all.
    ///
    /// # Shapes
    /// - `input` and the results: `[batch, tokens, hidden_size]`
    pub fn forward_keeping(
        &self,
        input: Tensor,
        mask: Mask<'_>,
        skip: usize,
        split: BatchSplit<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let (first, last) = self.layers.split_at(self.layers.len().saturating_sub(skip));
        let kept = apply(first, input, mask, split)?;
        let all = apply(last, kept.shallow_clone(), mask, split)?;
        Ok((kept, all))
    }
}

fn apply(layers: &[EncoderLayer], input: Tensor, mask: Mask<'_>, split: BatchSplit<'_>) -> Result<Tensor> {
    let mut layers = layers.iter();
    layers.try_fold(input, |hidden, layer| layer.forward(&hidden, mask, split))
}
