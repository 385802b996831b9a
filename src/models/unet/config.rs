//! `unet/config.json`.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::models::config;
use diffusion_core::Result;

/// The block types of Stable Diffusion's UNets.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of diffusers")]
pub enum BlockType {
    CrossAttnDownBlock2D,
    DownBlock2D,
    CrossAttnUpBlock2D,
    UpBlock2D,
}

/// A value for all blocks, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PerBlock<T> {
    /// The same for every block.
    All(T),
    /// One for each down block, in order.
    Each(Vec<T>),
}

impl<T: Copy + Default> PerBlock<T> {
    /// Returns the value for down block `index`, which exists after [`UNet2DConfig::check`].
    pub fn at(&self, index: usize) -> T {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values.get(index).copied().unwrap_or_default(),
        }
    }

    fn fits(&self, blocks: usize) -> bool {
        match self {
            Self::All(_) => true,
            Self::Each(values) => values.len() == blocks,
        }
    }
}

/// The configuration of a [`super::UNet2DConditionModel`], with diffusers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct UNet2DConfig {
    /// Height and width of the latents in training.
    pub sample_size: Option<SampleSize>,
    /// Channels of the input: 4 for latents, more with depth, mask or image.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Whether cosines come before sines in the embedding of the timestep.
    pub flip_sin_to_cos: bool,
    /// Shift of the embedding's frequencies.
    pub freq_shift: f64,
    /// Types of the down blocks, outermost first.
    pub down_block_types: Vec<BlockType>,
    /// Types of the up blocks, innermost first.
    pub up_block_types: Vec<BlockType>,
    /// Channels of each down block, outermost first.
    pub block_out_channels: Vec<i64>,
    /// Resnets in a down block; an up block has one more.
    pub layers_per_block: usize,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: i64,
    /// Groups of the group norms.
    pub norm_num_groups: i64,
    /// Epsilon of the group norms.
    pub norm_eps: f64,
    /// Size of the text embeddings.
    pub cross_attention_dim: i64,
    /// Transformer blocks behind each resnet.
    pub transformer_layers_per_block: PerBlock<usize>,
    /// The number of heads, despite the name (diffusers issue 2011).
    pub attention_head_dim: PerBlock<i64>,
    /// Whether projections are linear layers over tokens (SD2) instead of 1x1 convolutions (SD1).
    pub use_linear_projection: bool,
    /// Whether the first attention of a transformer block also attends to the text.
    pub only_cross_attention: PerBlock<bool>,
    /// Size of the table of class embeddings (the upscaler's noise levels).
    pub num_class_embeds: Option<i64>,
    /// Size of the condition of the time embedding (the guidance scale of a latent consistency model).
    pub time_cond_proj_dim: Option<i64>,
    /// What is added to the time embedding: nothing, or with `text_time` the pooled text and numbers such as the size of the
    /// image (Stable Diffusion XL).
    pub addition_embed_type: Option<String>,
    /// Size of the sinusoids of each of these numbers.
    pub addition_time_embed_dim: Option<i64>,
    /// Size of the pooled text and of the sinusoids of all numbers.
    pub projection_class_embeddings_input_dim: Option<i64>,
    /// Whether attention scores are float32. This has no effect: libtorch's fused kernels always accumulate in float32,
    /// and diffusers' processor for them ignores the switch.
    pub upcast_attention: bool,
    /// Other keys, some of which must be off; see [`OFF`].
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// `sample_size`: one number, or height and width.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// Height and width are equal.
    Square(i64),
    /// Height, width.
    Sides(i64, i64),
}

impl Default for UNet2DConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D};
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                DownBlock2D,
            ],
            up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            downsample_padding: 1,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: 1280,
            transformer_layers_per_block: PerBlock::All(1),
            attention_head_dim: PerBlock::All(8),
            use_linear_projection: false,
            only_cross_attention: PerBlock::All(false),
            num_class_embeds: None,
            time_cond_proj_dim: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            upcast_attention: false,
            rest: Map::new(),
        }
    }
}

/// Switches of diffusers' UNet that must be off, with the values that mean "off" in addition to null.
const OFF: [(&str, &[&str]); 18] = [
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &[]),
    ("class_embeddings_concat", &["false"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &[]),
    ("dropout", &["0.0", "0"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &[]),
    ("encoder_hid_dim_type", &[]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &[]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &[]),
];

impl UNet2DConfig {
    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        let is_off = |value: &Value, off: &[&str]| value.is_null() || off.contains(&value.to_string().as_str());
        let supported = OFF.map(|(key, off)| (key, self.rest.get(key).is_none_or(|value| is_off(value, off))));
        config::check_supported("unet/config.json", &supported)?;
        let adds_known = matches!(self.addition_embed_type.as_deref(), None | Some("text_time"));
        config::check_supported("unet/config.json", &[("addition_embed_type", adds_known)])?;
        let ensure = |valid, what: &str| config::ensure(valid, "unet/config.json", what);
        ensure(
            self.addition_embed_type.is_none() || self.added_sizes().is_some(),
            "addition_embed_type text_time needs addition_time_embed_dim (2 to 65536) and \
             projection_class_embeddings_input_dim (1 to 65536)",
        )?;
        let blocks = self.block_out_channels.len();
        ensure(
            (1..=16).contains(&blocks),
            "block_out_channels must have 1 to 16 entries",
        )?;
        ensure(
            self.down_block_types.len() == blocks && self.up_block_types.len() == blocks,
            "down_block_types and up_block_types must be as long as block_out_channels",
        )?;
        use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D};
        let is_down = |block: &BlockType| matches!(block, CrossAttnDownBlock2D | DownBlock2D);
        let is_up = |block: &BlockType| matches!(block, CrossAttnUpBlock2D | UpBlock2D);
        ensure(
            self.down_block_types.iter().all(is_down),
            "down_block_types must not contain types of up blocks",
        )?;
        ensure(
            self.up_block_types.iter().all(is_up),
            "up_block_types must not contain types of down blocks",
        )?;
        ensure(
            self.attention_head_dim.fits(blocks)
                && self.only_cross_attention.fits(blocks)
                && self.transformer_layers_per_block.fits(blocks),
            "attention_head_dim, only_cross_attention and transformer_layers_per_block must be one value or one per block",
        )?;
        let sizes = [self.in_channels, self.out_channels, self.cross_attention_dim];
        let mut channels = self.block_out_channels.iter().chain(&sizes);
        ensure(
            channels.all(|n| (1..=1 << 16).contains(n)),
            "a channel count is out of range (1 to 65536)",
        )?;
        // Fewer than 4 sinusoids would divide by zero.
        ensure(
            self.time_cond_proj_dim.is_none_or(|size| (4..=1 << 16).contains(&size)),
            "time_cond_proj_dim is out of range (4 to 65536)",
        )?;
        ensure(
            (1..=64).contains(&self.layers_per_block),
            "layers_per_block is out of range (1 to 64)",
        )?;
        ensure(
            (0..=1).contains(&self.downsample_padding),
            "downsample_padding must be 0 or 1",
        )?;
        Ok(())
    }

    /// Returns the size of the sinusoids of a number that is added to the time embedding, and the size of all that is added;
    /// `None` for a UNet that adds nothing.
    pub fn added_sizes(&self) -> Option<(i64, i64)> {
        self.addition_embed_type.as_ref()?;
        let each = self
            .addition_time_embed_dim
            .filter(|size| (2..=1 << 16).contains(size))?;
        let all = self.projection_class_embeddings_input_dim;
        Some((each, all.filter(|size| (1..=1 << 16).contains(size))?))
    }

    /// Returns the channels of the outermost and the innermost block.
    pub fn ends(&self) -> (i64, i64) {
        config::ends(&self.block_out_channels)
    }

    /// Whether the first attention of the middle block also attends to the text: only if `only_cross_attention` is one
    /// value for all blocks. The x4 upscaler has a list.
    pub fn mid_block_only_cross_attention(&self) -> bool {
        match self.rest.get("mid_block_only_cross_attention") {
            Some(Value::Bool(value)) => *value,
            _ => matches!(self.only_cross_attention, PerBlock::All(true)),
        }
    }

    /// Returns height and width of the latents in training; the default is 64.
    pub fn sample_sides(&self) -> (i64, i64) {
        match self.sample_size {
            Some(SampleSize::Square(side)) => (side, side),
            Some(SampleSize::Sides(height, width)) => (height, width),
            None => (64, 64),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
    use super::*;

    fn parsed(json: &str) -> Result<UNet2DConfig> {
        let config: UNet2DConfig = serde_json::from_str(json).unwrap();
        config.check().map(|()| config)
    }

    #[test]
    fn check_defaults_pass() {
        let config = parsed(r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.8"}"#).unwrap();
        assert_eq!(config.ends(), (320, 1280));
        assert_eq!(config.attention_head_dim.at(3), 8);
    }

    #[test]
    fn check_unsupported_switch_names_the_key() {
        parsed(r#"{"act_fn": "silu", "class_embed_type": null, "conv_in_kernel": 3}"#).unwrap();
        for (json, key) in [
            (r#"{"act_fn": "gelu"}"#, "act_fn"),
            (r#"{"addition_embed_type": "image"}"#, "addition_embed_type"),
            (r#"{"addition_embed_type": "text_time"}"#, "addition_time_embed_dim"),
            (
                r#"{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}"#,
                "mid_block_type",
            ),
            (r#"{"attention_head_dim": [5, 10]}"#, "attention_head_dim"),
            (r#"{"block_out_channels": []}"#, "block_out_channels"),
            (r#"{"in_channels": -4}"#, "channel count"),
            (r#"{"time_cond_proj_dim": 3}"#, "time_cond_proj_dim"),
        ] {
            let error = parsed(json).expect_err(json).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn mid_block_only_cross_attention_list_is_off() {
        let list = r#"{"only_cross_attention": [true, true, true, false]}"#;
        assert!(!parsed(list).unwrap().mid_block_only_cross_attention());
        let all = r#"{"only_cross_attention": true}"#;
        assert!(parsed(all).unwrap().mid_block_only_cross_attention());
        let own = r#"{"only_cross_attention": true, "mid_block_only_cross_attention": false}"#;
        assert!(!parsed(own).unwrap().mid_block_only_cross_attention());
    }
}
