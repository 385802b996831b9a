//! `vae/config.json`.

use serde::Deserialize;

use diffusion_core::{Error, Result};

/// The configuration of a [`super::AutoencoderKl`], with diffusers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the image.
    pub in_channels: i64,
    /// Channels of the decoded image.
    pub out_channels: i64,
    /// Channels of each block, outermost first; there is one halving fewer than blocks.
    pub block_out_channels: Vec<i64>,
    /// Resnets in a block of the encoder; the decoder's have one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of the group norms.
    pub norm_num_groups: i64,
    /// What latents are multiplied by before the UNet sees them.
    pub scaling_factor: f64,
    /// Whether decoding needs float32 where the other parts are float16; only the upscaler's pipeline asks.
    pub force_upcast: bool,
    /// Block types; only diffusers' plain ones are supported.
    pub down_block_types: Vec<String>,
    /// Block types; only diffusers' plain ones are supported.
    pub up_block_types: Vec<String>,
    /// Activation; only SiLU is supported.
    pub act_fn: String,
    /// A 1x1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in the middle block.
    pub mid_block_add_attention: bool,
    /// A shift of the latents, which no Stable Diffusion 1 or 2 has.
    pub shift_factor: Option<f64>,
    /// Statistics of the latents, which no Stable Diffusion 1 or 2 has.
    pub latents_mean: Option<Vec<f64>>,
    /// Statistics of the latents, which no Stable Diffusion 1 or 2 has.
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
    /// Checks that the parts fit each other and that nothing is asked for that we do not do.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::invalid_argument(format!("vae/config.json: {what}")));
        let unsupported = |key: &str| {
            Err(Error::unsupported(format!(
                "vae/config.json: {key} is set to a value that is not supported"
            )))
        };
        let blocks = self.block_out_channels.len();
        if !(1..=8).contains(&blocks) {
            return invalid("block_out_channels must have 1 to 8 entries");
        }
        if self.down_block_types.len() != blocks || self.up_block_types.len() != blocks {
            return invalid("down_block_types and up_block_types must be as long as block_out_channels");
        }
        if self.down_block_types.iter().any(|t| t != "DownEncoderBlock2D") {
            return unsupported("down_block_types");
        }
        if self.up_block_types.iter().any(|t| t != "UpDecoderBlock2D") {
            return unsupported("up_block_types");
        }
        if self.act_fn != "silu" {
            return unsupported("act_fn");
        }
        if self.shift_factor.is_some() {
            return unsupported("shift_factor");
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return unsupported("latents_mean");
        }
        let sizes = [self.in_channels, self.out_channels, self.latent_channels];
        if self
            .block_out_channels
            .iter()
            .chain(&sizes)
            .any(|&n| !(1..=1 << 16).contains(&n))
        {
            return invalid("a channel count is out of range (1 to 65536)");
        }
        if !(1..=64).contains(&self.layers_per_block) {
            return invalid("layers_per_block is out of range (1 to 64)");
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return invalid("scaling_factor must be a positive number");
        }
        Ok(())
    }

    /// Pixels per latent, along each side.
    pub fn scale_factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels of the outermost and of the innermost block.
    pub fn ends(&self) -> (i64, i64) {
        let first = self.block_out_channels.first().copied().unwrap_or_default();
        (first, self.block_out_channels.last().copied().unwrap_or(first))
    }
}
