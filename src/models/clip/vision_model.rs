//! CLIP's vision model.
//!
//! Source: transformers `models/clip/modeling_clip.py` (`CLIPVisionTransformer`), after Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::encoder::{Activation, ClipEncoder, ClipEncoderConfig};
use crate::models::config;
use crate::models::layers::{BatchSplit, Embedding, LayerNorm, Mask, Weight};
use crate::torch::numbers::arange;
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// transformers' `CLIPVisionConfig`, with its names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Size of the hidden states and of the result.
    pub hidden_size: i64,
    /// Size between the two linear layers of a transformer layer.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Channels of an image; only 3 is supported.
    pub num_channels: i64,
    /// Height and width of an image, in pixels.
    pub image_size: i64,
    /// Height and width of a patch, which becomes one token, in pixels.
    pub patch_size: i64,
    /// Activation.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Checks that the values fit each other and are supported. `file` is the file that holds them.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the file and the key.
    pub fn check(&self, file: &str) -> Result<()> {
        self.encoder().check(file)?;
        config::check_supported(file, &[("num_channels", self.num_channels == 3)])?;
        let ensure = |valid, what: &str| config::ensure(valid, file, what);
        ensure(
            (1..=4096).contains(&self.image_size),
            "image_size is out of range (1 to 4096)",
        )?;
        ensure(
            (1..=self.image_size).contains(&self.patch_size),
            "patch_size is out of range (1 to image_size)",
        )
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

    /// Returns the number of tokens of an image: the class token and one for each whole patch.
    fn num_positions(&self) -> i64 {
        let side = self.image_size / self.patch_size;
        side * side + 1
    }
}

/// transformers' `CLIPVisionModel`, as far as `pooler_output` needs it.
pub struct ClipVisionModel {
    class_embedding: Tensor,
    /// The kernel of a convolution without bias over separate patches.
    patch_embedding: Weight,
    position_embedding: Embedding,
    /// Spelled `pre_layrnorm` in checkpoints.
    pre_layernorm: LayerNorm,
    encoder: ClipEncoder,
    post_layernorm: LayerNorm,
    image_size: i64,
    patch_size: i64,
    num_positions: i64,
}

impl ClipVisionModel {
    /// Reads the weights below `path`, which holds `embeddings` and `encoder`.
    pub fn new(path: &WeightPath<'_>, config: &ClipVisionConfig) -> Result<Self> {
        let (size, patch) = (config.hidden_size, config.patch_size);
        let embeddings = path.sub("embeddings");
        let norm = |name: &str| LayerNorm::new(&path.sub(name), size, config.layer_norm_eps);
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[size])?,
            patch_embedding: Weight::new(
                &embeddings.sub("patch_embedding"),
                &[size, config.num_channels, patch, patch],
            )?,
            position_embedding: Embedding::new(&embeddings.sub("position_embedding"), config.num_positions(), size)?,
            pre_layernorm: norm("pre_layrnorm")?,
            encoder: ClipEncoder::new(&path.sub("encoder"), &config.encoder())?,
            post_layernorm: norm("post_layernorm")?,
            image_size: config.image_size,
            patch_size: patch,
            num_positions: config.num_positions(),
        })
    }

    /// Encodes images; returns the vector of the class token.
    ///
    /// # Shapes
    /// - `pixel_values`: `[batch, 3, image_size, image_size]`, model dtype
    /// - returns `[batch, hidden_size]`
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pixel_values.size4()?;
        if channels != 3 || height != self.image_size || width != self.image_size {
            return Err(Error::internal(format!(
                "expected pixel values of 3x{size}x{size} for the vision model, got {channels}x{height}x{width}",
                size = self.image_size
            )));
        }
        let stride = [self.patch_size, self.patch_size];
        let patches = self
            .patch_embedding
            .with(pixel_values.kind(), |weight| {
                Ok(pixel_values.f_conv2d(weight, None::<&Tensor>, stride, [0, 0], [1, 1], 1)?)
            })?
            .f_flatten(2, -1)?
            .f_transpose(1, 2)?;
        let class = self.class_embedding.f_expand([batch, 1, -1], false)?;
        let device = pixel_values.device();
        let positions = arange(self.num_positions, Kind::Int64, device)?.f_unsqueeze(0)?;
        let embeddings = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.position_embedding.forward(&positions)?)?;
        let hidden = self.pre_layernorm.forward(&embeddings)?;
        let hidden = self.encoder.forward(hidden, Mask::None, 0, BatchSplit::Joint)?;
        self.post_layernorm.forward(&hidden.f_select(1, 0)?)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn refusal(change: impl FnOnce(&mut ClipVisionConfig)) -> String {
        let mut config = ClipVisionConfig::default();
        config.check("here").unwrap();
        change(&mut config);
        config.check("here").unwrap_err().to_string()
    }

    #[test]
    fn check_value_out_of_range_names_the_key() {
        for (key, text) in [
            ("hidden_size", refusal(|c| c.hidden_size = 0)),
            ("intermediate_size", refusal(|c| c.intermediate_size = -1)),
            ("num_hidden_layers", refusal(|c| c.num_hidden_layers = 0)),
            ("num_attention_heads", refusal(|c| c.num_attention_heads = 7)),
            ("num_channels", refusal(|c| c.num_channels = 1)),
            ("image_size", refusal(|c| c.image_size = 4097)),
            ("patch_size", refusal(|c| c.patch_size = 225)),
        ] {
            assert!(text.starts_with("here: ") && text.contains(key), "{text}");
        }
    }

    #[test]
    fn num_positions_incomplete_patch_is_not_counted() {
        let config = ClipVisionConfig {
            image_size: 224,
            patch_size: 14,
            ..ClipVisionConfig::default()
        };
        assert_eq!(config.num_positions(), 257);
        let config = ClipVisionConfig {
            image_size: 30,
            patch_size: 8,
            ..ClipVisionConfig::default()
        };
        assert_eq!(config.num_positions(), 10);
    }
}
