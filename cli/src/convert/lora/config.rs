//! The configuration of a LoRA, as diffusers writes it into a file's metadata.
//!
//! Sources: diffusers `loaders/lora_base.py` (`_save_lora_weights`, `_pack_dict_with_prefix`), `utils/peft_utils.py`
//! (`get_peft_kwargs`); peft `tuners/lora/config.py` (`LoraConfig`).

use std::collections::BTreeMap;

use diffusion_core::{Error, Result};
use serde_json::{Map, Value, json};
use triton_diffusion::adapters::{AdaptedComponent, FileLayer};

/// Larger integers may lie between two floats.
const MAX_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Returns the text of `lora_adapter_metadata`: the `LoraConfig` of each component, which gives each layer the rank and the
/// scale that it has.
///
/// # Errors
/// `Unsupported` if no `LoraConfig` gives the layers of a component their scales.
pub fn metadata(layers: &[FileLayer]) -> Result<String> {
    let mut all = Map::new();
    for component in [AdaptedComponent::Unet, AdaptedComponent::TextEncoder] {
        let own: Vec<&FileLayer> = layers.iter().filter(|layer| layer.component == component).collect();
        if !own.is_empty() {
            let config = config(component, &own)?;
            all.extend(
                config
                    .into_iter()
                    .map(|(key, value)| (format!("{}.{key}", component.name()), value)),
            );
        }
    }
    serde_json::to_string_pretty(&Value::Object(all))
        .map_err(|error| Error::internal(format!("the configuration: {error}")))
}

/// Returns the `LoraConfig` of a component. Each pattern is the whole name of a layer, which every version of peft finds.
fn config(component: AdaptedComponent, layers: &[&FileLayer]) -> Result<Map<String, Value>> {
    let name = |layer: &FileLayer| component.module_name(&layer.name);
    let ranks: BTreeMap<String, i64> = layers.iter().map(|layer| (name(layer), layer.rank)).collect();
    let alphas: BTreeMap<String, u64> = layers
        .iter()
        .map(|layer| (name(layer), layer.scale.alpha.to_bits()))
        .collect();
    let rank = most_frequent(ranks.values().copied()).unwrap_or_default();
    let alpha = most_frequent(alphas.values().copied()).unwrap_or_default();
    let pattern = |others: Vec<(&String, Value)>| -> Value {
        let others = others.into_iter().map(|(name, value)| (name.clone(), value));
        Value::Object(others.collect())
    };
    let other_ranks = ranks.iter().filter(|(_, own)| **own != rank);
    let other_alphas = alphas.iter().filter(|(_, own)| **own != alpha);
    let config = json!({
        "alpha_pattern": pattern(other_alphas.map(|(name, own)| (name, number(*own))).collect()),
        "lora_alpha": number(alpha),
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern(other_ranks.map(|(name, own)| (name, json!(own))).collect()),
        "target_modules": ranks.keys().collect::<Vec<_>>(),
        "use_rslora": use_rslora(component, layers)?,
    });
    match config {
        Value::Object(config) => Ok(config),
        _ => Err(Error::internal("the configuration is no object")),
    }
}

/// Returns whether the scales are `alpha / sqrt(rank)`, and not `alpha / rank`.
fn use_rslora(component: AdaptedComponent, layers: &[&FileLayer]) -> Result<bool> {
    let all = |divisor: fn(f64) -> f64| {
        let mut layers = layers.iter();
        layers.all(|layer| layer.scale.divisor.to_bits() == divisor(layer.rank as f64).to_bits())
    };
    if all(|rank| rank) {
        return Ok(false);
    }
    if all(f64::sqrt) {
        return Ok(true);
    }
    Err(Error::unsupported(format!(
        "{}: `use_rslora` counts for some layers, and others have an `alpha` of their own; a configuration of peft has one of \
         the two",
        component.name()
    )))
}

/// Returns the value that occurs most often; of several, the smallest.
fn most_frequent<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts
        .into_iter()
        .find_map(|(value, count)| (count == most).then_some(value))
}

/// Returns a number from the bits of a float, as an integer if it is one: peft declares `lora_alpha` as such.
fn number(bits: u64) -> Value {
    let number = f64::from_bits(bits);
    if number.fract() == 0.0 && number.abs() < MAX_INTEGER {
        json!(number as i64)
    } else {
        json!(number)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use triton_diffusion::adapters::{FileMatrix, LayerScale, Scaling};

    use super::*;

    fn layer(name: &str, rank: i64, scale: (f64, f64)) -> FileLayer {
        let matrix = FileMatrix {
            tensor: String::new(),
            shape: Vec::new(),
        };
        FileLayer {
            component: AdaptedComponent::TextEncoder,
            name: name.into(),
            rank,
            scale: LayerScale {
                alpha: scale.0,
                divisor: scale.1,
            },
            down: matrix.clone(),
            up: matrix,
        }
    }

    /// What the server and diffusers read.
    fn round_trip(layers: &[FileLayer]) {
        let scaling = Scaling::from_metadata(&metadata(layers).unwrap()).unwrap();
        for layer in layers {
            let read = scaling.of(layer.component, &layer.name, layer.rank, None);
            assert_eq!(read, layer.scale, "{}", layer.name);
        }
    }

    #[test]
    fn every_scale_comes_back() {
        let thirds = f64::from(1f32 / 3.0);
        round_trip(&[
            layer("a.q", 4, (thirds, 4.0)),
            layer("b.a.q", 4, (2.0, 4.0)),
            layer("c.q", 8, (-0.7, 8.0)),
            layer("d.q", 8, (1e300, 8.0)),
            layer("e.q", 1, (0.0, 1.0)),
        ]);
        round_trip(&[layer("a.q", 3, (6.0, 3f64.sqrt())), layer("b.q", 1, (6.0, 1.0))]);
    }

    #[test]
    fn configuration_has_the_form_of_diffusers() {
        let layers = [
            layer("a", 4, (2.0, 4.0)),
            layer("b", 4, (2.0, 4.0)),
            layer("c", 8, (0.5, 8.0)),
        ];
        let read: Value = serde_json::from_str(&metadata(&layers).unwrap()).unwrap();
        let expected = json!({
            "text_encoder.alpha_pattern": {"text_model.c": 0.5},
            "text_encoder.lora_alpha": 2,
            "text_encoder.peft_type": "LORA",
            "text_encoder.r": 4,
            "text_encoder.rank_pattern": {"text_model.c": 8},
            "text_encoder.target_modules": ["text_model.a", "text_model.b", "text_model.c"],
            "text_encoder.use_rslora": false,
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn two_kinds_of_scales_in_a_component_are_refused() {
        let layers = [layer("a", 4, (2.0, 4.0)), layer("b", 4, (2.0, 2.0))];
        let error = metadata(&layers).unwrap_err().to_string();
        assert!(
            error.starts_with("text_encoder: `use_rslora` counts for some layers"),
            "{error}"
        );
    }
}
