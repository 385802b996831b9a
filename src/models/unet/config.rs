//! `unet/config.json`.

use serde::Deserialize;
use serde_json::{Map, Value};

use diffusion_core::{Error, Result};

/// The block types of Stable Diffusion's UNets.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are diffusers' and say it")]
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
    /// The value for down block `index`; [`UNet2DConfig::check`] has seen that there is one.
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
    /// Height and width of the latents that the model was trained on.
    pub sample_size: Option<SampleSize>,
    /// Channels of the input: 4 for latents, more for depth, mask or an image beside them.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Cosines before sines in the embedding of the timestep.
    pub flip_sin_to_cos: bool,
    /// Shift of the embedding's frequencies.
    pub freq_shift: f64,
    /// Types on the way down, outermost first.
    pub down_block_types: Vec<BlockType>,
    /// Types on the way up, innermost first.
    pub up_block_types: Vec<BlockType>,
    /// Channels of each down block, outermost first.
    pub block_out_channels: Vec<i64>,
    /// Resnets in a down block.
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
    /// The number of heads, in spite of its name (diffusers issue 2011).
    pub attention_head_dim: PerBlock<i64>,
    /// Projections over tokens (SD2) instead of 1x1 convolutions (SD1).
    pub use_linear_projection: bool,
    /// The first attention of a transformer block attends to the text too.
    pub only_cross_attention: PerBlock<bool>,
    /// Size of the table of class embeddings (the upscaler's noise levels).
    pub num_class_embeds: Option<i64>,
    /// Size of the condition that is added to the timestep's embedding (a latent consistency model's guidance scale).
    pub time_cond_proj_dim: Option<i64>,
    /// Asks for float32 attention scores. The fused kernels that we and diffusers use accumulate in
    /// float32 in any case, and diffusers' processor for them ignores the switch.
    pub upcast_attention: bool,
    /// Switches that are read only to be refused.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// `sample_size`: one number, or height and width.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// Height and width alike.
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
            upcast_attention: false,
            rest: Map::new(),
        }
    }
}

/// Switches of diffusers' UNet that none of the supported families uses, with the values that mean
/// "off" beside null. Any other value fails the load.
const OFF: [(&str, &[&str]); 20] = [
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("addition_embed_type", &[]),
    ("addition_time_embed_dim", &[]),
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
    /// Checks that the parts fit each other and that nothing is asked for that we do not do.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        for (key, off) in OFF {
            if let Some(value) = self.rest.get(key)
                && !value.is_null()
                && !off.contains(&value.to_string().as_str())
            {
                return Err(Error::unsupported(format!(
                    "unet/config.json: {key} is set to a value that is not supported"
                )));
            }
        }
        let blocks = self.block_out_channels.len();
        let invalid = |what: &str| Err(Error::invalid_argument(format!("unet/config.json: {what}")));
        if !(1..=16).contains(&blocks) {
            return invalid("block_out_channels must have 1 to 16 entries");
        }
        if self.down_block_types.len() != blocks || self.up_block_types.len() != blocks {
            return invalid("down_block_types and up_block_types must be as long as block_out_channels");
        }
        use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D};
        if self
            .down_block_types
            .iter()
            .any(|t| matches!(t, CrossAttnUpBlock2D | UpBlock2D))
        {
            return invalid("down_block_types holds a type of the way up");
        }
        if self
            .up_block_types
            .iter()
            .any(|t| matches!(t, CrossAttnDownBlock2D | DownBlock2D))
        {
            return invalid("up_block_types holds a type of the way down");
        }
        if !self.attention_head_dim.fits(blocks)
            || !self.only_cross_attention.fits(blocks)
            || !self.transformer_layers_per_block.fits(blocks)
        {
            return invalid(
                "attention_head_dim, only_cross_attention and transformer_layers_per_block must be one value or one a block",
            );
        }
        let sizes = [self.in_channels, self.out_channels, self.cross_attention_dim];
        if self
            .block_out_channels
            .iter()
            .chain(&sizes)
            .any(|&n| !(1..=1 << 16).contains(&n))
        {
            return invalid("a channel count is out of range (1 to 65536)");
        }
        // The sinusoids of fewer than 4 would be of infinite frequency.
        if self
            .time_cond_proj_dim
            .is_some_and(|size| !(4..=1 << 16).contains(&size))
        {
            return invalid("time_cond_proj_dim is out of range (4 to 65536)");
        }
        if !(1..=64).contains(&self.layers_per_block) {
            return invalid("layers_per_block is out of range (1 to 64)");
        }
        if !(0..=1).contains(&self.downsample_padding) {
            return invalid("downsample_padding must be 0 or 1");
        }
        Ok(())
    }

    /// Channels of the outermost and of the innermost block.
    pub fn ends(&self) -> (i64, i64) {
        let first = self.block_out_channels.first().copied().unwrap_or_default();
        (first, self.block_out_channels.last().copied().unwrap_or(first))
    }

    /// Whether the middle block attends to the text alone: only if a single switch says so for all.
    pub fn mid_block_only_cross_attention(&self) -> bool {
        match self.rest.get("mid_block_only_cross_attention") {
            Some(Value::Bool(value)) => *value,
            _ => matches!(self.only_cross_attention, PerBlock::All(true)),
        }
    }

    /// Height and width of the latents that the model was trained on; 64 where the file does not say.
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
    fn defaults_are_a_whole_model() {
        let config = parsed(r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.8"}"#).unwrap();
        assert_eq!(config.ends(), (320, 1280));
        assert_eq!(config.attention_head_dim.at(3), 8);
    }

    #[test]
    fn switches_that_are_off_pass_and_others_fail_by_name() {
        parsed(r#"{"act_fn": "silu", "class_embed_type": null, "conv_in_kernel": 3}"#).unwrap();
        for (json, key) in [
            (r#"{"act_fn": "gelu"}"#, "act_fn"),
            (r#"{"addition_embed_type": "text_time"}"#, "addition_embed_type"),
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
    fn a_list_leaves_the_middle_blocks_self_attention_on() {
        let list = r#"{"only_cross_attention": [true, true, true, false]}"#;
        assert!(!parsed(list).unwrap().mid_block_only_cross_attention());
        let all = r#"{"only_cross_attention": true}"#;
        assert!(parsed(all).unwrap().mid_block_only_cross_attention());
        let own = r#"{"only_cross_attention": true, "mid_block_only_cross_attention": false}"#;
        assert!(!parsed(own).unwrap().mid_block_only_cross_attention());
    }
}
