//! The transformer layers that CLIP's text and vision models have in common.
//!
//! Source: transformers `models/clip/modeling_clip.py` (`CLIPEncoder`, `CLIPEncoderLayer`,
//! `CLIPAttention`, `CLIPMLP`).

use serde::Deserialize;
use tch::Tensor;

use crate::models::layers::attention::scaled_dot_product_attention;
use crate::models::layers::{LayerNorm, Linear, Rows};
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// The activation between a layer's two products.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·Φ(x), exactly (Stable Diffusion 2).
    Gelu,
    /// x·σ(1.702·x) (Stable Diffusion 1).
    QuickGelu,
}

/// What shapes the layers.
#[derive(Clone, Copy, Debug)]
pub struct ClipEncoderConfig {
    /// Size of the hidden states.
    pub hidden_size: i64,
    /// Size between a layer's two products.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads; they divide the hidden size.
    pub num_attention_heads: i64,
    /// Activation.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl ClipEncoderConfig {
    /// Checks that the parts fit each other. `file` is where they come from.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file and the key.
    pub fn check(&self, file: &str) -> Result<()> {
        let invalid = |what: &str| Err(Error::invalid_argument(format!("{file}: {what}")));
        let sizes = [self.hidden_size, self.intermediate_size];
        if sizes.iter().any(|&n| !(1..=1 << 20).contains(&n)) {
            return invalid("hidden_size or intermediate_size is out of range (1 to 1048576)");
        }
        if !(1..=1024).contains(&self.num_hidden_layers) {
            return invalid("num_hidden_layers is out of range (1 to 1024)");
        }
        if self.num_attention_heads < 1 || self.hidden_size % self.num_attention_heads != 0 {
            return invalid("num_attention_heads does not divide hidden_size");
        }
        Ok(())
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

    fn forward(&self, input: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (rows, tokens, size) = input.size3()?;
        let head = size / self.heads;
        let split = |projection: &Linear| -> Result<Tensor> {
            let projected = projection.forward(input, Rows::WHOLE)?;
            Ok(projected.f_view([rows, tokens, -1, head])?.f_transpose(1, 2)?)
        };
        let (q, k, v) = (split(&self.q_proj)?, split(&self.k_proj)?, split(&self.v_proj)?);
        let scale = (head as f64).powf(-0.5);
        let attended = scaled_dot_product_attention(&q, &k, &v, mask, Some(scale))?;
        let joined = attended
            .f_transpose(1, 2)?
            .f_contiguous()?
            .f_reshape([rows, tokens, size])?;
        self.out_proj.forward(&joined, Rows::WHOLE)
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

    fn forward(&self, input: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.layer_norm1.forward(input)?, mask)?;
        let hidden = input.f_add(&attended)?;
        let inner = self.fc1.forward(&self.layer_norm2.forward(&hidden)?, Rows::WHOLE)?;
        let inner = match self.activation {
            Activation::Gelu => inner.f_gelu("none")?,
            Activation::QuickGelu => inner.f_mul(&inner.f_mul_scalar(1.702)?.f_sigmoid()?)?,
        };
        Ok(hidden.f_add(&self.fc2.forward(&inner, Rows::WHOLE)?)?)
    }
}

/// transformers' `CLIPEncoder`.
pub struct ClipEncoder {
    layers: Vec<EncoderLayer>,
}

impl ClipEncoder {
    /// Reads the weights below `path`, which ends in `encoder`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, config: &ClipEncoderConfig) -> Result<Self> {
        let layers = path.sub("layers");
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(|index| EncoderLayer::new(&layers.sub(index), config))
                .collect::<Result<_>>()?,
        })
    }

    /// `[rows, tokens, hidden_size]` to the same, leaving out the last `skip` layers. `mask`, if
    /// any, is added to the attention scores, `[1, 1, tokens, tokens]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: Tensor, mask: Option<&Tensor>, skip: usize) -> Result<Tensor> {
        let layers = self.layers.len().saturating_sub(skip);
        self.layers
            .iter()
            .take(layers)
            .try_fold(input, |hidden, layer| layer.forward(&hidden, mask))
    }
}
