//! `vae_tiny/config.json`.

use serde::Deserialize;

use crate::models::config;
use diffusion_core::Result;

const FILE: &str = "vae_tiny/config.json";

/// The configuration of an [`super::AutoencoderTiny`], with diffusers' names and defaults. Keys of the encoder are not
/// read.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderTinyConfig {
    /// The class of diffusers; only `AutoencoderTiny` is supported.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Channels of the decoded image.
    pub out_channels: i64,
    /// Channels of each stage of the decoder; all must be equal, as in diffusers.
    pub decoder_block_out_channels: Vec<i64>,
    /// Activation; only ReLU is supported.
    pub act_fn: String,
    /// How a stage is enlarged; only `nearest` is supported.
    pub upsample_fn: String,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Factor by which each stage but the last enlarges.
    pub upsampling_scaling_factor: i64,
    /// Blocks in each stage of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Factor of the latents in the UNet.
    pub scaling_factor: f64,
    /// Shift of the latents; only 0 is supported.
    pub shift_factor: Option<f64>,
}

impl Default for AutoencoderTinyConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            class_name: String::new(),
            out_channels: 3,
            decoder_block_out_channels: vec![64; 4],
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            num_decoder_blocks: vec![3, 3, 3, 1],
            scaling_factor: 1.0,
            shift_factor: None,
        }
    }
}

impl AutoencoderTinyConfig {
    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        let ensure = |valid, what: &str| config::ensure(valid, FILE, what);
        let supported = [
            ("_class_name", self.class_name == "AutoencoderTiny"),
            ("act_fn", self.act_fn == "relu"),
            ("upsample_fn", self.upsample_fn == "nearest"),
            ("shift_factor", self.shift_factor.is_none_or(|shift| shift == 0.0)),
        ];
        config::check_supported(FILE, &supported)?;
        let stages = self.decoder_block_out_channels.len();
        ensure(
            (1..=8).contains(&stages),
            "decoder_block_out_channels must have 1 to 8 entries",
        )?;
        ensure(
            self.num_decoder_blocks.len() == stages,
            "num_decoder_blocks must be as long as decoder_block_out_channels",
        )?;
        ensure(
            self.num_decoder_blocks.iter().all(|blocks| (0..=64).contains(blocks)),
            "num_decoder_blocks is out of range (0 to 64)",
        )?;
        ensure(
            self.decoder_block_out_channels
                .iter()
                .all(|&channels| channels == self.channels()),
            "decoder_block_out_channels must be equal",
        )?;
        let sizes = [self.out_channels, self.latent_channels, self.channels()];
        ensure(
            sizes.iter().all(|n| (1..=1 << 16).contains(n)),
            "a channel count is out of range (1 to 65536)",
        )?;
        ensure(
            (1..=8).contains(&self.upsampling_scaling_factor),
            "upsampling_scaling_factor is out of range (1 to 8)",
        )?;
        ensure(
            self.scaling_factor.is_finite() && self.scaling_factor > 0.0,
            "scaling_factor must be a positive number",
        )
    }

    /// Checks that the decoder can replace that of a VAE with these latents and images.
    ///
    /// # Errors
    /// `InvalidArgument` that names the key.
    pub fn check_replaces(&self, vae: &super::AutoencoderKlConfig) -> Result<()> {
        let fits = [
            ("latent_channels", self.latent_channels, vae.latent_channels),
            ("out_channels", self.out_channels, vae.out_channels),
            (
                "upsampling_scaling_factor to the power of the enlarging stages",
                self.scale_factor(),
                vae.scale_factor(),
            ),
        ];
        fits.into_iter().try_for_each(|(what, tiny, vae)| {
            config::ensure(tiny == vae, FILE, &format!("{what} is {tiny}, but the vae has {vae}"))
        })
    }

    /// Returns the number of pixels per latent along each side.
    pub fn scale_factor(&self) -> i64 {
        let enlarging = self.decoder_block_out_channels.len().saturating_sub(1);
        self.upsampling_scaling_factor
            .saturating_pow(u32::try_from(enlarging).unwrap_or(u32::MAX))
    }

    /// Returns the channels of all stages.
    pub fn channels(&self) -> i64 {
        config::ends(&self.decoder_block_out_channels).0
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::models::vae::AutoencoderKlConfig;

    fn config(json: &str) -> AutoencoderTinyConfig {
        serde_json::from_str(json).unwrap()
    }

    /// The file of `madebyollin/taesd`.
    const TAESD: &str = r#"{"_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu",
        "block_out_channels": [64, 64, 64, 64], "decoder_block_out_channels": [64, 64, 64, 64],
        "encoder_block_out_channels": [64, 64, 64, 64], "force_upcast": false, "in_channels": 3, "latent_channels": 4,
        "latent_magnitude": 3, "latent_shift": 0.5, "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3], "out_channels": 3, "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2}"#;

    #[test]
    fn check_published_file_is_accepted() {
        let taesd = config(TAESD);
        taesd.check().unwrap();
        assert_eq!((taesd.scale_factor(), taesd.channels()), (8, 64));
        let vae = AutoencoderKlConfig {
            block_out_channels: vec![128, 256, 512, 512],
            ..AutoencoderKlConfig::default()
        };
        taesd.check_replaces(&vae).unwrap();
        let upscaler = AutoencoderKlConfig {
            block_out_channels: vec![128, 256, 512],
            ..vae.clone()
        };
        let error = taesd.check_replaces(&upscaler).unwrap_err().to_string();
        assert!(error.contains("is 8, but the vae has 4"), "{error}");
        let sd3 = AutoencoderKlConfig {
            latent_channels: 16,
            ..vae
        };
        let error = taesd.check_replaces(&sd3).unwrap_err().to_string();
        assert!(error.contains("latent_channels is 4, but the vae has 16"), "{error}");
    }

    #[test]
    fn check_wrong_values_name_the_key() {
        for (from, to, named) in [
            ("\"AutoencoderTiny\"", "\"AutoencoderKL\"", "_class_name"),
            ("\"relu\"", "\"gelu\"", "act_fn"),
            ("\"act_fn\"", "\"shift_factor\": 0.1, \"act_fn\"", "shift_factor"),
            ("\"act_fn\"", "\"upsample_fn\": \"bilinear\", \"act_fn\"", "upsample_fn"),
            (
                "\"decoder_block_out_channels\": [64",
                "\"decoder_block_out_channels\": [32",
                "decoder_block_out_channels",
            ),
            ("[3, 3, 3, 1]", "[3, 3, 3]", "num_decoder_blocks"),
            ("[3, 3, 3, 1]", "[3, 3, 3, 65]", "num_decoder_blocks"),
            ("factor\": 2", "factor\": 0", "upsampling_scaling_factor"),
            ("\"scaling_factor\": 1.0", "\"scaling_factor\": 0", "scaling_factor"),
            ("\"latent_channels\": 4", "\"latent_channels\": 0", "channel count"),
        ] {
            let text = TAESD.replace(from, to);
            assert_ne!(text, TAESD, "{from}");
            let error = config(&text).check().unwrap_err().to_string();
            assert!(error.starts_with(FILE) && error.contains(named), "{error}");
        }
        assert!(config("{}").check().is_err(), "no class");
    }
}
