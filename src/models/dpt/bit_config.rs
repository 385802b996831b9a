//! `backbone_config` of `depth_estimator/config.json`.
//!
//! Source of names and defaults: transformers `models/bit/configuration_bit.py`.

use serde::Deserialize;

use crate::models::config;
use diffusion_core::Result;

/// The configuration in errors.
const FILE: &str = "depth_estimator/config.json: backbone_config";
/// Stages of the backbone; each has a feature map.
const STAGES: usize = 3;

/// The configuration of a BiT backbone ("Big Transfer"), with transformers' names and defaults.
///
/// Only the backbone of DPT-Hybrid is supported.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct BitConfig {
    /// The kind of backbone; only `bit` is supported.
    pub model_type: String,
    /// Channels of an image.
    pub num_channels: i64,
    /// Channels behind the first convolution.
    pub embedding_size: i64,
    /// Channels of each stage; further values are ignored.
    pub hidden_sizes: Vec<i64>,
    /// Layers of each stage.
    pub depths: Vec<usize>,
    /// Kind of layer; only `bottleneck` is supported.
    pub layer_type: String,
    /// Activation; only ReLU is supported.
    pub hidden_act: String,
    /// Padding of the convolutions; only TensorFlow's `SAME` is supported.
    pub global_padding: Option<String>,
    /// Groups of the norms.
    pub num_groups: i64,
    /// Whether the first pooling pads as TensorFlow does; only `true` is supported.
    pub embedding_dynamic_padding: bool,
    /// Largest factor by which the stages shrink an image before they dilate instead; only 16 and more are supported.
    pub output_stride: i64,
    /// Factor of all channels; only 1 is supported.
    pub width_factor: f64,
    /// The feature maps that are returned; only those of stages 1 to 3 are supported.
    pub out_features: Option<Vec<String>>,
    /// `out_features` as numbers.
    pub out_indices: Option<Vec<i64>>,
}

impl Default for BitConfig {
    /// Returns transformers' defaults (`BitConfig`), which are no backbone of a DPT-Hybrid.
    fn default() -> Self {
        Self {
            model_type: "bit".to_owned(),
            num_channels: 3,
            embedding_size: 64,
            hidden_sizes: vec![256, 512, 1024, 2048],
            depths: vec![3, 4, 6, 3],
            layer_type: "preactivation".to_owned(),
            hidden_act: "relu".to_owned(),
            global_padding: None,
            num_groups: 32,
            embedding_dynamic_padding: false,
            output_stride: 32,
            width_factor: 1.0,
            out_features: None,
            out_indices: None,
        }
    }
}

impl BitConfig {
    /// Returns the default backbone of a DPT-Hybrid (`DPTConfig.__init__`).
    pub fn of_dpt_hybrid() -> Self {
        Self {
            depths: vec![3, 4, 9],
            layer_type: "bottleneck".to_owned(),
            global_padding: Some("same".to_owned()),
            embedding_dynamic_padding: true,
            out_indices: Some(vec![1, 2, 3]),
            ..Self::default()
        }
    }

    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        self.check_supported()?;
        let ensure = |valid, what: &str| config::ensure(valid, FILE, what);
        ensure(
            self.hidden_sizes.len() >= STAGES,
            "hidden_sizes must have at least 3 entries",
        )?;
        let channels = self.stages().map(|(_, channels)| channels);
        ensure(
            channels.iter().all(|n| (8..=1 << 16).contains(n) && n % 8 == 0),
            "hidden_sizes must be multiples of 8 from 8 to 65536",
        )?;
        ensure(
            (1..=1 << 16).contains(&self.embedding_size),
            "embedding_size is out of range (1 to 65536)",
        )?;
        ensure(
            self.depths.iter().all(|n| (1..=1024).contains(n)),
            "a stage's number of layers in depths is out of range (1 to 1024)",
        )?;
        let mut normed = channels
            .into_iter()
            .flat_map(|n| [n, Self::bottleneck(n)])
            .chain([self.embedding_size]);
        ensure(
            self.num_groups > 0 && normed.all(|n| n % self.num_groups == 0),
            "num_groups does not divide the channels of every layer",
        )
    }

    /// Checks the keys that have only one supported value.
    fn check_supported(&self) -> Result<()> {
        let stages = ["stage1", "stage2", "stage3"];
        let features = self
            .out_features
            .as_ref()
            .map(|features| features.iter().eq(stages.iter()));
        let indices = self
            .out_indices
            .as_ref()
            .map(|indices| indices.iter().eq([1, 2, 3].iter()));
        let padding = self.global_padding.as_deref().unwrap_or_default();
        let supported = [
            ("model_type", self.model_type == "bit"),
            ("num_channels", self.num_channels == 3),
            ("depths", self.depths.len() == STAGES),
            ("layer_type", self.layer_type == "bottleneck"),
            ("hidden_act", self.hidden_act == "relu"),
            ("global_padding", padding.eq_ignore_ascii_case("same")),
            ("embedding_dynamic_padding", self.embedding_dynamic_padding),
            ("output_stride", self.output_stride >= 16),
            ("width_factor", self.width_factor == 1.0),
            // transformers uses either key, and without both the last stage only.
            ("out_features", features.or(indices).unwrap_or(false)),
            ("out_indices", indices.unwrap_or(true)),
        ];
        config::check_supported(FILE, &supported)
    }

    /// Returns the number of layers and channels of each stage; missing values are 0.
    pub fn stages(&self) -> [(usize, i64); STAGES] {
        std::array::from_fn(|stage| {
            let depth = self.depths.get(stage).copied().unwrap_or_default();
            let channels = self.hidden_sizes.get(stage).copied().unwrap_or_default();
            (depth, channels)
        })
    }

    /// Channels inside a layer of `channels`: a quarter, to the nearest multiple of 8 that is at least
    /// 8 and loses no tenth (`make_div` in `modeling_bit.py`).
    pub fn bottleneck(channels: i64) -> i64 {
        let quarter = channels / 4;
        let divisible = ((quarter + 4) / 8 * 8).max(8);
        if divisible * 10 < quarter * 9 {
            divisible + 8
        } else {
            divisible
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use serde_json::{Value, json};

    use super::*;
    use diffusion_core::ErrorKind;

    /// Checks the `backbone_config` of `Intel/dpt-hybrid-midas` with one key changed.
    fn check_with(key: &str, value: Value) -> Result<()> {
        let mut config = json!({
            "depths": [3, 4, 9],
            "layer_type": "bottleneck",
            "global_padding": "SAME",
            "embedding_dynamic_padding": true,
            "out_features": ["stage1", "stage2", "stage3"],
        });
        config[key] = value;
        serde_json::from_value::<BitConfig>(config).unwrap().check()
    }

    #[test]
    fn check_public_backbone_passes() {
        check_with("model_type", json!("bit")).unwrap();
        check_with("out_indices", json!([1, 2, 3])).unwrap();
        BitConfig::of_dpt_hybrid().check().unwrap();
    }

    #[test]
    fn check_unsupported_value_names_the_key() {
        let cases = [
            ("model_type", json!("swinv2")),
            ("num_channels", json!(1)),
            ("depths", json!([3, 4, 6, 3])),
            ("layer_type", json!("preactivation")),
            ("hidden_act", json!("gelu")),
            ("global_padding", json!("VALID")),
            ("global_padding", json!(null)),
            ("embedding_dynamic_padding", json!(false)),
            ("output_stride", json!(8)),
            ("width_factor", json!(2)),
            ("out_features", json!(["stage1", "stage3"])),
            ("out_features", json!(null)),
            ("out_indices", json!([0, 1, 2])),
        ];
        for (key, value) in cases {
            let error = check_with(key, value.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{key} {value}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn check_invalid_value_names_the_key() {
        let cases = [
            ("hidden_sizes", json!([256, 512])),
            ("hidden_sizes", json!([256, 512, 1020])),
            ("hidden_sizes", json!([256, 512, 0])),
            ("embedding_size", json!(0)),
            ("depths", json!([3, 0, 9])),
            ("num_groups", json!(0)),
            ("num_groups", json!(48)),
        ];
        for (key, value) in cases {
            let error = check_with(key, value.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{key} {value}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    /// Expected values are those of `make_div(0.25 * channels)`.
    #[test]
    fn bottleneck_is_divisible_by_8() {
        let cases = [(8, 8), (40, 16), (48, 16), (72, 24), (256, 64), (1024, 256)];
        for (channels, inner) in cases {
            assert_eq!(BitConfig::bottleneck(channels), inner, "{channels}");
        }
    }
}
