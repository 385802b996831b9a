//! How an adapter's products are scaled: `alpha / rank`, or as its configuration says.
//!
//! Sources: peft `tuners/lora/config.py` (`LoraConfig`), `tuners/lora/layer.py` (`update_layer`, `set_scale`), diffusers
//! `loaders/lora_base.py` (`LORA_ADAPTER_METADATA_KEY`).

use std::collections::HashMap;
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
    alpha_pattern: HashMap<String, f64>,
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
    pub alpha: f64,
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
        ];
        match unsupported.into_iter().find(|(set, _)| *set) {
            Some((_, what)) => Err(Error::unsupported(format!("{what} is not supported"))),
            None => Ok(self),
        }
    }

    fn scale(&self, layer: &str, rank: i64) -> LayerScale {
        // As a regular expression, a name matches itself where it ends a longer one (peft's `get_pattern_key`).
        let is_named = |name: &str| {
            layer
                .strip_suffix(name)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let pattern = self.alpha_pattern.iter().find(|(name, _)| is_named(name));
        let rank = rank as f64;
        LayerScale {
            alpha: pattern.map(|(_, alpha)| *alpha).or(self.lora_alpha).unwrap_or(rank),
            divisor: if self.use_rslora { rank.sqrt() } else { rank },
        }
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
        for component in ["unet", "text_encoder"] {
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
        let name = match component {
            AdaptedComponent::Unet => "unet",
            AdaptedComponent::TextEncoder => "text_encoder",
        };
        let config = self.metadata.get(name).or(self.peft.as_ref());
        match (config, alpha) {
            (_, Some(alpha)) => LayerScale {
                alpha,
                divisor: rank as f64,
            },
            (Some(config), None) => config.scale(layer, rank),
            (None, None) => LayerScale {
                alpha: rank as f64,
                divisor: rank as f64,
            },
        }
    }
}
