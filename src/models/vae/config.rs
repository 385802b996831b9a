//! `vae/config.json`.

use serde::Deserialize;

use crate::models::config;
use diffusion_core::Result;

/// The configuration of a [`super::AutoencoderKl`], with diffusers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the image.
    pub in_channels: i64,
    /// Channels of the decoded image.
    pub out_channels: i64,
    /// Channels of each block, outermost first. All blocks but the last halve the size.
    pub block_out_channels: Vec<i64>,
    /// Resnets in a block of the encoder; the decoder's have one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of the group norms.
    pub norm_num_groups: i64,
    /// Factor of the latents in the UNet.
    pub scaling_factor: f64,
    /// Whether decoding needs float32 where the other components are float16; only the upscaler's pipeline uses it.
    pub force_upcast: bool,
    /// Types of the encoder's blocks; only `DownEncoderBlock2D` is supported.
    pub down_block_types: Vec<String>,
    /// Types of the decoder's blocks; only `UpDecoderBlock2D` is supported.
    pub up_block_types: Vec<String>,
    /// Activation; only SiLU is supported.
    pub act_fn: String,
    /// Whether there is a 1x1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// Whether there is a 1x1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle block has attention.
    pub mid_block_add_attention: bool,
    /// Shift of the latents, which is not supported.
    pub shift_factor: Option<f64>,
    /// Means of the latents, which are not supported.
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviations of the latents, which are not supported.
    pub latents_std: Option<Vec<f64>>,
}

impl Default for AutoencoderKlConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            force_upcast: true,
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            act_fn: "silu".to_owned(),
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl AutoencoderKlConfig {
    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        let ensure = |valid, what: &str| config::ensure(valid, "vae/config.json", what);
        let blocks = self.block_out_channels.len();
        ensure((1..=8).contains(&blocks), "block_out_channels must have 1 to 8 entries")?;
        ensure(
            self.down_block_types.len() == blocks && self.up_block_types.len() == blocks,
            "down_block_types and up_block_types must be as long as block_out_channels",
        )?;
        let all_are = |types: &[String], plain: &str| types.iter().all(|found| found == plain);
        let supported = [
            (
                "down_block_types",
                all_are(&self.down_block_types, "DownEncoderBlock2D"),
            ),
            ("up_block_types", all_are(&self.up_block_types, "UpDecoderBlock2D")),
            ("act_fn", self.act_fn == "silu"),
            ("shift_factor", self.shift_factor.is_none()),
            ("latents_mean", self.latents_mean.is_none()),
            ("latents_std", self.latents_std.is_none()),
        ];
        config::check_supported("vae/config.json", &supported)?;
        let sizes = [self.in_channels, self.out_channels, self.latent_channels];
        let mut channels = self.block_out_channels.iter().chain(&sizes);
        ensure(
            channels.all(|n| (1..=1 << 16).contains(n)),
            "a channel count is out of range (1 to 65536)",
        )?;
        ensure(
            (1..=64).contains(&self.layers_per_block),
            "layers_per_block is out of range (1 to 64)",
        )?;
        ensure(
            self.scaling_factor.is_finite() && self.scaling_factor > 0.0,
            "scaling_factor must be a positive number",
        )
    }

    /// Returns the number of pixels per latent along each side.
    pub fn scale_factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Returns the channels of the outermost and the innermost block.
    pub fn ends(&self) -> (i64, i64) {
        config::ends(&self.block_out_channels)
    }
}
