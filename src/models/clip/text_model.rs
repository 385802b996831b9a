//! CLIP's text encoder.
//!
//! Source: transformers `models/clip/modeling_clip.py` (`CLIPTextTransformer`), after Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::encoder::{Activation, ClipEncoder, ClipEncoderConfig};
use crate::models::config;
use crate::models::layers::{BatchSplit, Embedding, LayerNorm, Linear, Mask};
use crate::torch::numbers::{NumberOperators, arange, full};
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
    /// Size of the projection, of a model that has one.
    pub projection_dim: i64,
    /// The id that ends a text, for the pooled state. 2 in old files, whose vocabulary has another end.
    pub eos_token_id: i64,
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
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Checks that the values fit each other and are supported. `file` is the name of the file, for errors.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self, file: &str) -> Result<()> {
        let ensure = |valid, what: &str| config::ensure(valid, file, what);
        ensure(
            (1..=1 << 20).contains(&self.vocab_size),
            "vocab_size is out of range (1 to 1048576)",
        )?;
        ensure(
            (3..=1024).contains(&self.max_position_embeddings),
            "max_position_embeddings is out of range (3 to 1024)",
        )?;
        ensure(
            (1..=1 << 16).contains(&self.projection_dim),
            "projection_dim is out of range (1 to 65536)",
        )?;
        self.encoder().check(file)?;
        config::check_supported(file, &[("use_attention_mask", !self.use_attention_mask)])
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

/// The states of a text that Stable Diffusion XL attends to.
#[derive(Debug)]
pub struct PenultimateStates {
    /// `[batch, tokens, hidden_size]`.
    pub states: Tensor,
    /// `[batch, projection_dim]`, of a model with a projection.
    pub pooled: Option<Tensor>,
}

/// The mask that hides later tokens; `None` for kernels that need no mask in memory. The weights are the same, since exp of
/// the lowest number is 0.
struct TextMask(Option<Tensor>);

impl TextMask {
    fn as_mask(&self) -> Mask<'_> {
        self.0.as_ref().map_or(Mask::Causal, Mask::Added)
    }
}

/// transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`.
pub struct ClipTextModel {
    config: ClipTextConfig,
    token_embedding: Embedding,
    position_embedding: Embedding,
    encoder: ClipEncoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
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
        Self::build(config, weights, false)
    }

    /// Builds a model with a projection of the pooled state (transformers' `CLIPTextModelWithProjection`).
    ///
    /// # Errors
    /// Those of [`ClipTextModel::new`].
    pub fn with_projection(config: ClipTextConfig, weights: Weights) -> Result<Self> {
        Self::build(config, weights, true)
    }

    fn build(config: ClipTextConfig, weights: Weights, projects: bool) -> Result<Self> {
        let weights = weights
            .renamed(|name| name.strip_prefix("text_model.").map(str::to_owned))
            // A buffer of ascending numbers in files of old versions of transformers.
            .ignoring(|name| name.ends_with("embeddings.position_ids"));
        let model = Self::read(config, &weights, projects)?;
        weights.finish()?;
        Ok(model)
    }

    fn read(config: ClipTextConfig, weights: &Weights, projects: bool) -> Result<Self> {
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
            text_projection: projects
                .then(|| Linear::with_bias(&path.sub("text_projection"), size, config.projection_dim, false))
                .transpose()?,
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
        let hidden = self.embed(input_ids, added)?;
        let mask = self.mask(&hidden)?;
        let hidden = self.encoder.forward(hidden, mask.as_mask(), clip_skip, split)?;
        self.final_layer_norm.forward(&hidden)
    }

    /// Encodes each job's texts for Stable Diffusion XL: the states before the last layer and `clip_skip` further ones,
    /// without the final norm, and the projection of the pooled state, for a model that has one. `added` takes the place of
    /// the embeddings of some tokens.
    ///
    /// Source: diffusers `pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py` (`encode_prompt`).
    ///
    /// # Errors
    /// Those of [`ClipTextModel::forward`].
    pub fn forward_penultimate(
        &self,
        input_ids: &Tensor,
        added: Option<&AddedVectors>,
        clip_skip: usize,
        split: BatchSplit<'_>,
    ) -> Result<PenultimateStates> {
        let hidden = self.embed(input_ids, added)?;
        let mask = self.mask(&hidden)?;
        let Some(text_projection) = &self.text_projection else {
            let states = self.encoder.forward(hidden, mask.as_mask(), clip_skip + 1, split)?;
            return Ok(PenultimateStates { states, pooled: None });
        };
        let (states, all) = self
            .encoder
            .forward_keeping(hidden, mask.as_mask(), clip_skip + 1, split)?;
        let pooled = self.pool(&self.final_layer_norm.forward(&all)?, input_ids)?;
        Ok(PenultimateStates {
            states,
            pooled: Some(text_projection.forward_split(&pooled, split)?),
        })
    }

    /// Returns the state of each text's end, `[batch, hidden_size]`.
    fn pool(&self, states: &Tensor, input_ids: &Tensor) -> Result<Tensor> {
        let (_, _, size) = states.size3()?;
        // Of old files the end is the largest id.
        let scores = match self.config.eos_token_id {
            2 => input_ids.shallow_clone(),
            end => input_ids.eq_number(end)?.f_to_kind(Kind::Int)?,
        };
        let ends = scores.f_argmax(-1, false)?;
        let index = ends.f_view([-1, 1, 1])?.f_expand([-1, 1, size], false)?;
        Ok(states.f_gather(1, &index, false)?.f_squeeze_dim(1)?)
    }

    /// Returns the embeddings of tokens and positions, `[batch, tokens, hidden_size]`.
    fn embed(&self, input_ids: &Tensor, added: Option<&AddedVectors>) -> Result<Tensor> {
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
        Ok(embeddings.f_add(&self.position_embedding.forward(&positions)?)?)
    }

    fn mask(&self, hidden: &Tensor) -> Result<TextMask> {
        if hidden.device() == Device::Cpu && !self.fast {
            let (_, tokens, _) = hidden.size3()?;
            return Ok(TextMask(Some(causal_mask(tokens, hidden.kind(), hidden.device())?)));
        }
        Ok(TextMask(None))
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
