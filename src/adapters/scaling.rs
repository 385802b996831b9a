//! How an adapter's products are scaled: `alpha / rank`, or as its configuration says.
//!
//! Sources: peft `tuners/lora/config.py` (`LoraConfig`), `tuners/lora/layer.py` (`update_layer`, `set_scale`), diffusers
//! `loaders/lora_base.py` (`LORA_ADAPTER_METADATA_KEY`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;

use super::keys::AdaptedComponent;
use crate::weights::read_json;
use diffusion_core::{Context, Error, Result};

/// The settings of an adapter in peft's `adapter_config.json`, and in the metadata that diffusers writes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeftConfig {
    peft_type: Option<String>,
    lora_alpha: Option<f64>,
    /// In the order in which peft and diffusers write it: the first that matches a layer counts.
    alpha_pattern: BTreeMap<String, f64>,
    use_rslora: bool,
    use_dora: bool,
    lora_bias: bool,
    fan_in_fan_out: bool,
}

/// Where the scales of an adapter's layers come from, besides its tensors.
#[derive(Debug, Default)]
pub struct Scaling {
    /// For both components, from `adapter_config.json`.
    peft: Option<PeftConfig>,
    /// For single components, from the metadata.
    metadata: HashMap<&'static str, PeftConfig>,
}

/// The scale of a layer: a request's scale times `alpha`, divided by `divisor`, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerScale {
    /// `alpha`.
    pub alpha: f64,
    /// The rank, or its square root with `use_rslora`.
    pub divisor: f64,
}

impl LayerScale {
    /// Returns the scale of the layer for a request's scale.
    pub fn of(self, scale: f64) -> f64 {
        scale * self.alpha / self.divisor
    }
}

impl PeftConfig {
    fn check(self) -> Result<Self> {
        let kind = self.peft_type.as_deref().filter(|kind| *kind != "LORA");
        let unsupported = [
            (kind.is_some(), "a `peft_type` other than LORA"),
            (self.use_dora, "DoRA (`use_dora`)"),
            (self.lora_bias, "`lora_bias`"),
            (self.fan_in_fan_out, "`fan_in_fan_out`"),
            (
                self.alpha_pattern.keys().any(|pattern| !is_name(pattern)),
                "`alpha_pattern` with regular expressions",
            ),
        ];
        match unsupported.into_iter().find(|(set, _)| *set) {
            Some((_, what)) => Err(Error::unsupported(format!("{what} is not supported"))),
            None => Ok(self),
        }
    }

    fn scale(&self, layer: &str, rank: i64) -> LayerScale {
        let pattern = self.alpha_pattern.iter().find(|(pattern, _)| is_named(layer, pattern));
        let rank = rank as f64;
        LayerScale {
            alpha: pattern.map(|(_, alpha)| *alpha).or(self.lora_alpha).unwrap_or(rank),
            divisor: if self.use_rslora { rank.sqrt() } else { rank },
        }
    }
}

/// Returns whether a pattern is the name of layers, or its end, and no other regular expression.
fn is_name(pattern: &str) -> bool {
    let name = pattern.strip_prefix('^').unwrap_or(pattern);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    !name.is_empty() && name.replace("\\.", ".").chars().all(is_plain)
}

/// Returns whether a name as a pattern matches a layer: where it ends the layer's name, or with `^` if it is that name
/// (peft's `get_pattern_key`).
fn is_named(layer: &str, pattern: &str) -> bool {
    let pattern = pattern.replace("\\.", ".");
    match pattern.strip_prefix('^') {
        Some(name) => layer == name,
        None => layer
            .strip_suffix(pattern.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    }
}

impl Scaling {
    /// Reads peft's `adapter_config.json`.
    ///
    /// # Errors
    /// A file that is no such configuration, and settings that are not supported; both name the file.
    pub fn from_peft(path: &Path) -> Result<Self> {
        let config: PeftConfig = read_json(path)?;
        Ok(Self {
            peft: Some(config.check().context(|| path.display().to_string())?),
            metadata: HashMap::new(),
        })
    }

    /// Reads the text that diffusers writes as `lora_adapter_metadata`: an object whose keys begin with the component.
    ///
    /// # Errors
    /// Another JSON value, and settings that are not supported.
    pub fn from_metadata(text: &str) -> Result<Self> {
        let invalid = |_| Error::invalid_argument("`lora_adapter_metadata` is not the configuration of an adapter");
        let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(invalid)?;
        let mut metadata = HashMap::new();
        for component in [AdaptedComponent::Unet, AdaptedComponent::TextEncoder].map(AdaptedComponent::name) {
            let own = all.iter().filter_map(|(key, value)| {
                let key = key.strip_prefix(component)?.strip_prefix('.')?;
                (!value.is_null()).then(|| (key.to_owned(), value.clone()))
            });
            let own: serde_json::Map<String, serde_json::Value> = own.collect();
            if !own.is_empty() {
                let config: PeftConfig = serde_json::from_value(own.into()).map_err(invalid)?;
                metadata.insert(component, config.check()?);
            }
        }
        Ok(Self { peft: None, metadata })
    }

    /// Returns the scale of a layer whose file has that `alpha`. Without any, it is 1.
    pub fn of(&self, component: AdaptedComponent, layer: &str, rank: i64, alpha: Option<f64>) -> LayerScale {
        let config = self.metadata.get(component.name()).or(self.peft.as_ref());
        match (config, alpha) {
            (_, Some(alpha)) => LayerScale {
                alpha,
                divisor: rank as f64,
            },
            (Some(config), None) => config.scale(&component.module_name(layer), rank),
            (None, None) => LayerScale {
                alpha: rank as f64,
                divisor: rank as f64,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use AdaptedComponent::{TextEncoder, Unet};

    fn alpha(metadata: &str, component: AdaptedComponent, layer: &str) -> f64 {
        let scaling = Scaling::from_metadata(metadata).unwrap();
        scaling.of(component, layer, 4, None).alpha
    }

    #[test]
    fn alpha_pattern_counts_for_the_layers_that_peft_finds() {
        let metadata = r#"{"unet.lora_alpha": 1, "unet.alpha_pattern":
            {"^mid.to_q": 2, "attn1.to_q": 3, "attn2\\.to_q": 4, "to_q": 5}}"#;
        for (layer, expected) in [
            ("mid.to_q", 2.0),
            ("down.mid.to_q", 5.0),
            ("down.attn1.to_q", 3.0),
            ("down.attn2.to_q", 4.0),
            ("down.attn3.to_q", 5.0),
            ("down.into_q", 1.0),
        ] {
            assert_eq!(
                alpha(metadata, Unet, layer).to_bits(),
                f64::to_bits(expected),
                "{layer}"
            );
        }
    }

    #[test]
    fn alpha_pattern_names_layers_of_the_text_encoder_as_transformers_does() {
        let name = "encoder.layers.0.mlp.fc1";
        for pattern in [format!("text_model.{name}"), name.to_owned(), "fc1".to_owned()] {
            let metadata =
                format!(r#"{{"text_encoder.lora_alpha": 1, "text_encoder.alpha_pattern": {{"{pattern}": 3}}}}"#);
            assert_eq!(
                alpha(&metadata, TextEncoder, name).to_bits(),
                3f64.to_bits(),
                "{pattern}"
            );
        }
    }

    #[test]
    fn regular_expression_in_alpha_pattern_is_refused() {
        for pattern in ["", "^", ".*to_q", "to_(q|k)", "to_q$", "attn\\\\d"] {
            let metadata = format!(r#"{{"unet.alpha_pattern": {{"{pattern}": 3}}}}"#);
            let error = Scaling::from_metadata(&metadata).unwrap_err().to_string();
            assert_eq!(
                error, "`alpha_pattern` with regular expressions is not supported",
                "{pattern}"
            );
        }
    }
}
