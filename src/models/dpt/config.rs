//! `depth_estimator/config.json`.
//!
//! Source of names and defaults: transformers `models/dpt/configuration_dpt.py`.

use serde::Deserialize;
use serde_json::Value;

use super::bit_config::BitConfig;
use crate::models::config;
use crate::models::layers::unsigned;
use diffusion_core::Result;

/// The file of the configuration, for errors.
const FILE: &str = "depth_estimator/config.json";
/// The first two feature maps come from the convolutional backbone, the others from the transformer.
const BACKBONE_FEATURES: usize = 2;
/// Feature maps that the neck fuses.
const FEATURES: usize = 4;
/// Pixels along a side that become one token: the factor by which the backbone's three stages shrink an image.
const PATCH: i64 = 16;

/// The configuration of a [`super::DptForDepthEstimation`], with transformers' names and defaults.
///
/// Only DPT-Hybrid is supported, such as `Intel/dpt-hybrid-midas`, the estimator of Stable Diffusion 2.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct DptConfig {
    /// Whether the tokens come from a convolutional backbone; only `true` is supported.
    pub is_hybrid: bool,
    /// The convolutional backbone; the default is that of `Intel/dpt-hybrid-midas`.
    pub backbone_config: Option<BitConfig>,
    /// Name of a backbone to download, which is not supported.
    pub backbone: Option<Value>,
    /// A backbone from timm, which is not supported.
    pub use_timm_backbone: bool,
    /// Shape of the backbone's last feature map; only the channels are used.
    pub backbone_featmap_shape: Vec<i64>,
    /// Transformer layers whose results the neck uses. In a hybrid the first two come from the backbone and are ignored.
    pub backbone_out_indices: Vec<usize>,
    /// Channels of an image.
    pub num_channels: i64,
    /// Height and width of an image in pixels.
    pub image_size: i64,
    /// Pixels along a side that become one token.
    pub patch_size: i64,
    /// Size of a token.
    pub hidden_size: i64,
    /// Size between the two linear layers of a transformer layer.
    pub intermediate_size: i64,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Activation of the transformer and of the readout; only GELU is supported.
    pub hidden_act: String,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Use of the first token; only `project` is supported, as in transformers for a hybrid.
    pub readout_type: String,
    /// Resize factor of each feature map; for the last two only 1 and less are supported.
    pub reassemble_factors: Vec<f64>,
    /// Feature maps that are not reassembled; only those of the backbone are supported.
    pub neck_ignore_stages: Vec<usize>,
    /// Channels of each feature map.
    pub neck_hidden_sizes: Vec<i64>,
    /// Channels of the fused feature maps.
    pub fusion_hidden_size: i64,
    /// Whether the fusion has batch norms, which are not supported.
    pub use_batch_norm_in_fusion_residual: bool,
    /// Whether the fusion's convolutions have a bias; the default is `true`.
    pub use_bias_in_fusion_residual: Option<bool>,
    /// The fused feature map that the head uses; only the last is supported.
    pub head_in_index: i64,
    /// Whether there is a convolution before the head, which is not supported.
    pub add_projection: bool,
}

impl Default for DptConfig {
    /// Returns transformers' defaults (`DPTConfig`), which are not a hybrid.
    fn default() -> Self {
        Self {
            is_hybrid: false,
            backbone_config: None,
            backbone: None,
            use_timm_backbone: false,
            backbone_featmap_shape: vec![1, 1024, 24, 24],
            backbone_out_indices: vec![2, 5, 8, 11],
            num_channels: 3,
            image_size: 384,
            patch_size: PATCH,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            qkv_bias: true,
            readout_type: "project".to_owned(),
            reassemble_factors: vec![4.0, 2.0, 1.0, 0.5],
            neck_ignore_stages: vec![0, 1],
            neck_hidden_sizes: vec![96, 192, 384, 768],
            fusion_hidden_size: 256,
            use_batch_norm_in_fusion_residual: false,
            use_bias_in_fusion_residual: None,
            head_in_index: -1,
            add_projection: false,
        }
    }
}

impl DptConfig {
    /// Returns the number of values of the last fused map, which has half of the image's sides.
    pub fn fused_values(&self) -> u64 {
        unsigned(self.fusion_hidden_size) * unsigned(self.image_size / 2).pow(2)
    }

    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        self.check_supported()?;
        let ensure = |valid, what: &str| config::ensure(valid, FILE, what);
        let backbone = self.backbone();
        backbone.check()?;
        let sizes = [self.hidden_size, self.intermediate_size, self.fusion_hidden_size];
        let mut sizes = sizes.iter().chain(&self.neck_hidden_sizes);
        ensure(
            sizes.all(|n| (1..=1 << 16).contains(n)),
            "a size is out of range (1 to 65536)",
        )?;
        ensure(
            (PATCH..=2048).contains(&self.image_size) && self.image_size % PATCH == 0,
            "image_size must be a multiple of 16 from 16 to 2048",
        )?;
        ensure(
            (1..=1024).contains(&self.num_hidden_layers),
            "num_hidden_layers is out of range (1 to 1024)",
        )?;
        ensure(
            self.num_attention_heads > 0 && self.hidden_size % self.num_attention_heads == 0,
            "num_attention_heads does not divide hidden_size",
        )?;
        ensure(self.fusion_hidden_size >= 2, "fusion_hidden_size must be at least 2")?;
        let [_, _, first, second] = self.backbone_out_indices[..] else {
            return ensure(false, "backbone_out_indices must have 4 entries");
        };
        ensure(
            first < second && second < self.num_hidden_layers,
            "the last two of backbone_out_indices must ascend and be below num_hidden_layers",
        )?;
        let channels = backbone.stages().map(|(_, channels)| channels);
        ensure(
            self.neck_hidden_sizes.len() == FEATURES
                && self.neck_hidden_sizes[..BACKBONE_FEATURES] == channels[..BACKBONE_FEATURES],
            "neck_hidden_sizes must have 4 entries and begin with the backbone's first two hidden_sizes",
        )?;
        ensure(
            self.backbone_featmap_shape.get(1) == Some(&channels[2]),
            "backbone_featmap_shape must have the channels of the backbone's third stage",
        )?;
        ensure(
            self.reassemble_factors.len() == FEATURES,
            "reassemble_factors must have 4 entries",
        )
    }

    /// Checks the keys that have only one supported value.
    fn check_supported(&self) -> Result<()> {
        let factor_supported = |&factor: &f64| (1.0 / 16.0..=1.0).contains(&factor);
        let supported = [
            ("is_hybrid", self.is_hybrid),
            ("backbone", self.backbone.as_ref().is_none_or(Value::is_null)),
            ("use_timm_backbone", !self.use_timm_backbone),
            ("num_channels", self.num_channels == 3),
            ("patch_size", self.patch_size == PATCH),
            ("hidden_act", self.hidden_act == "gelu"),
            ("readout_type", self.readout_type == "project"),
            ("neck_ignore_stages", self.neck_ignore_stages == [0, 1]),
            (
                "reassemble_factors",
                self.reassemble_factors
                    .iter()
                    .skip(BACKBONE_FEATURES)
                    .all(factor_supported),
            ),
            (
                "use_batch_norm_in_fusion_residual",
                !self.use_batch_norm_in_fusion_residual,
            ),
            ("head_in_index", matches!(self.head_in_index, -1 | 3)),
            ("add_projection", !self.add_projection),
        ];
        config::check_supported(FILE, &supported)
    }

    /// Returns the configuration of the convolutional backbone.
    pub fn backbone(&self) -> BitConfig {
        self.backbone_config.clone().unwrap_or_else(BitConfig::of_dpt_hybrid)
    }

    /// Returns the number of tokens along each side of an image.
    pub fn grid(&self) -> i64 {
        self.image_size / PATCH
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use serde_json::json;

    use super::*;
    use diffusion_core::ErrorKind;

    /// Checks the configuration of `Intel/dpt-hybrid-midas` with one key changed.
    fn check_with(key: &str, value: Value) -> Result<()> {
        let mut config = json!({
            "is_hybrid": true,
            "neck_hidden_sizes": [256, 512, 768, 768],
            "reassemble_factors": [1, 1, 1, 0.5],
        });
        config[key] = value;
        serde_json::from_value::<DptConfig>(config).unwrap().check()
    }

    #[test]
    fn check_public_checkpoint_passes() {
        check_with("is_hybrid", json!(true)).unwrap();
        check_with("neck_ignore_stages", json!([0, 1])).unwrap();
        assert_eq!(DptConfig::default().grid(), 24);
        assert_eq!(DptConfig::default().backbone().stages().map(|(n, _)| n), [3, 4, 9]);
    }

    #[test]
    fn check_unsupported_value_names_the_key() {
        let cases = [
            ("is_hybrid", json!(false)),
            ("backbone", json!("resnet50")),
            ("use_timm_backbone", json!(true)),
            ("num_channels", json!(1)),
            ("patch_size", json!(8)),
            ("hidden_act", json!("relu")),
            ("readout_type", json!("add")),
            ("neck_ignore_stages", json!([])),
            ("reassemble_factors", json!([1, 1, 2, 0.5])),
            ("use_batch_norm_in_fusion_residual", json!(true)),
            ("head_in_index", json!(0)),
            ("add_projection", json!(true)),
        ];
        for (key, value) in cases {
            let error = check_with(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{key}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn check_invalid_value_names_the_key() {
        let cases = [
            ("image_size", json!(380)),
            ("image_size", json!(-16)),
            ("num_hidden_layers", json!(0)),
            ("num_attention_heads", json!(7)),
            ("fusion_hidden_size", json!(1)),
            ("hidden_size", json!(0)),
            ("backbone_out_indices", json!([2, 5, 8])),
            ("backbone_out_indices", json!([2, 5, 8, 12])),
            ("backbone_out_indices", json!([2, 5, 8, 8])),
            ("neck_hidden_sizes", json!([256, 256, 768, 768])),
            ("neck_hidden_sizes", json!([256, 512, 768])),
            ("backbone_featmap_shape", json!([1, 512, 24, 24])),
            ("backbone_featmap_shape", json!([1])),
            ("reassemble_factors", json!([1, 1, 1])),
        ];
        for (key, value) in cases {
            let error = check_with(key, value.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{key} {value}");
            let named = if key == "hidden_size" { "size" } else { key };
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
