//! CLIP's text encoder.
//!
//! Source: transformers `models/clip/modeling_clip.py` (`CLIPTextTransformer`), after Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::encoder::{Activation, ClipEncoder, ClipEncoderConfig};
use crate::models::config;
use crate::models::layers::{BatchSplit, Embedding, LayerNorm, Mask};
use crate::torch::numbers::{arange, full};
use crate::weights::{Frozen, LayerShapes, Weights};
use diffusion_core::Result;

/// `text_encoder/config.json`, with transformers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Entries of the token embedding.
    pub vocab_size: i64,
    /// Size of the hidden states and of the result.
    pub hidden_size: i64,
    /// Size between the two linear layers of a transformer layer.
    pub intermediate_size: i64,
    /// Number of layers. Stable Diffusion 2 uses the last but one layer of its text encoder and ships without the last.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Length of the longest text in tokens.
    pub max_position_embeddings: i64,
    /// Activation.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Whether padding is masked; only `false` is supported.
    pub use_attention_mask: bool,
}

impl Default for ClipTextConfig {
    /// transformers' defaults (`CLIPTextConfig`).
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            use_attention_mask: false,
        }
    }
}

impl ClipTextConfig {
    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        const FILE: &str = "text_encoder/config.json";
        let ensure = |valid, what: &str| config::ensure(valid, FILE, what);
        ensure(
            (1..=1 << 20).contains(&self.vocab_size),
            "vocab_size is out of range (1 to 1048576)",
        )?;
        ensure(
            (3..=1024).contains(&self.max_position_embeddings),
            "max_position_embeddings is out of range (3 to 1024)",
        )?;
        self.encoder().check(FILE)?;
        config::check_supported(FILE, &[("use_attention_mask", !self.use_attention_mask)])
    }

    fn encoder(&self) -> ClipEncoderConfig {
        ClipEncoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}

/// Embeddings of tokens beyond the vocabulary.
#[derive(Debug)]
pub struct AddedVectors {
    /// `[count]`, int64: the numbers of the tokens, counted through all texts of the call. None is there twice.
    pub positions: Tensor,
    /// `[count, hidden_size]` in the model's dtype.
    pub vectors: Tensor,
}

/// transformers' `CLIPTextModel`.
pub struct ClipTextModel {
    config: ClipTextConfig,
    token_embedding: Embedding,
    position_embedding: Embedding,
    encoder: ClipEncoder,
    final_layer_norm: LayerNorm,
    /// Whether the CPU kernels of this crate compute the layers.
    fast: bool,
    layers: LayerShapes,
    kind: Kind,
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for ClipTextModel {}

impl ClipTextModel {
    /// Builds the model from `weights`, all of which it must use.
    ///
    /// Names may begin with `text_model.` (transformers 4) or not (transformers 5).
    pub fn new(config: ClipTextConfig, weights: Weights) -> Result<Self> {
        let weights = weights
            .renamed(|name| name.strip_prefix("text_model.").map(str::to_owned))
            // A buffer of ascending numbers in files of old versions of transformers.
            .ignoring(|name| name.ends_with("embeddings.position_ids"));
        let model = Self::read(config, &weights)?;
        weights.finish()?;
        Ok(model)
    }

    fn read(config: ClipTextConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root();
        let size = config.hidden_size;
        let embeddings = path.sub("embeddings");
        Ok(Self {
            token_embedding: Embedding::new(&embeddings.sub("token_embedding"), config.vocab_size, size)?,
            position_embedding: Embedding::new(
                &embeddings.sub("position_embedding"),
                config.max_position_embeddings,
                size,
            )?,
            encoder: ClipEncoder::new(&path.sub("encoder"), &config.encoder())?,
            final_layer_norm: LayerNorm::new(&path.sub("final_layer_norm"), size, config.layer_norm_eps)?,
            fast: path.is_fast(),
            layers: weights.layers(),
            kind: weights.kind(),
            config,
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Returns the dtype of the outputs.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the layers that adapters can change. Their names do not begin with `text_model.`.
    pub fn layers(&self) -> &LayerShapes {
        &self.layers
    }

    /// Encodes texts without the last `clip_skip` layers. The final norm is always applied.
    ///
    /// # Shapes
    /// - `input_ids`: `[batch, tokens]`, int64
    /// - returns `[batch, tokens, hidden_size]`
    ///
    /// # Errors
    /// Ids outside of the vocabulary; more tokens than positions.
    pub fn forward(&self, input_ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        self.forward_split(input_ids, None, clip_skip, BatchSplit::Joint)
    }

    /// Encodes each job's texts; shapes and errors as in [`ClipTextModel::forward`]. `added` takes the place of the
    /// embeddings of some tokens.
    ///
    /// # Errors
    /// Those of [`ClipTextModel::forward`].
    pub fn forward_split(
        &self,
        input_ids: &Tensor,
        added: Option<&AddedVectors>,
        clip_skip: usize,
        split: BatchSplit<'_>,
    ) -> Result<Tensor> {
        let (_, tokens) = input_ids.size2()?;
        let device = input_ids.device();
        let positions = arange(tokens, Kind::Int64, device)?.f_unsqueeze(0)?;
        let mut embeddings = self.token_embedding.forward(input_ids)?;
        if let Some(added) = added {
            let size = embeddings.size();
            embeddings = embeddings
                .f_view([-1, self.config.hidden_size])?
                .f_index_copy(0, &added.positions, &added.vectors)?
                .f_view(size.as_slice())?;
        }
        let hidden = embeddings.f_add(&self.position_embedding.forward(&positions)?)?;
        let hidden = if device == Device::Cpu && !self.fast {
            let mask = causal_mask(tokens, hidden.kind(), device)?;
            self.encoder.forward(hidden, Mask::Added(&mask), clip_skip, split)?
        } else {
            // The same weights, since exp of the lowest number is 0, and a kernel without a mask in memory.
            self.encoder.forward(hidden, Mask::Causal, clip_skip, split)?
        };
        self.final_layer_norm.forward(&hidden)
    }
}

/// Makes a mask `[1, 1, tokens, tokens]`: 0 up to each token's own position, the lowest number of the dtype behind it
/// (`_create_4d_causal_attention_mask` in transformers `modeling_attn_mask_utils.py`).
fn causal_mask(tokens: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let lowest = match kind {
        Kind::Half => -65504.0,
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    };
    Ok(full(&[tokens, tokens], lowest, kind, device)?
        .f_triu(1)?
        .f_view([1, 1, tokens, tokens])?)
}
