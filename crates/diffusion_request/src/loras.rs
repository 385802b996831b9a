//! The LoRAs that a request asks for.

use std::ops::RangeInclusive;

use diffusion_core::quote::is_file_name;
use serde_json::{Value, json};

/// Most LoRAs of a request.
pub const MAX_LORAS: usize = 8;
const SCALES: RangeInclusive<f64> = -10.0..=10.0;

/// A LoRA that a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraRequest {
    /// The name: 1 to 128 letters, digits, `.`, `_` and `-`. It does not begin with a point, so it is no path.
    pub name: String,
    /// The scale in the UNet, -10 to 10.
    pub scale: f64,
    /// The scale in the text encoder, -10 to 10.
    pub text_encoder_scale: f64,
}

impl LoraRequest {
    /// Reads a list of 1 to [`MAX_LORAS`] objects with different names; `None` for any other value.
    pub(crate) fn list(value: &Value) -> Option<Vec<Self>> {
        let list = value.as_array().filter(|list| list.len() <= MAX_LORAS)?;
        let loras: Vec<Self> = list.iter().map(Self::read).collect::<Option<_>>()?;
        let is_first = |(index, lora): (usize, &Self)| loras.iter().take(index).all(|other| other.name != lora.name);
        loras.iter().enumerate().all(is_first).then_some(loras)
    }

    fn read(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        if object
            .keys()
            .any(|key| !["name", "scale", "text_encoder_scale"].contains(&key.as_str()))
        {
            return None;
        }
        let scale = |key: &str, default: f64| match object.get(key) {
            None | Some(Value::Null) => Some(default),
            Some(value) => value.as_f64().filter(|scale| SCALES.contains(scale)),
        };
        let name = object.get("name")?.as_str().filter(|name| is_file_name(name))?;
        let unet = scale("scale", 1.0)?;
        Some(Self {
            name: name.to_owned(),
            scale: unet,
            text_encoder_scale: scale("text_encoder_scale", unet)?,
        })
    }

    /// Returns the object that asks for this LoRA.
    pub(crate) fn to_json(&self) -> Value {
        json!({"name": self.name, "scale": self.scale, "text_encoder_scale": self.text_encoder_scale})
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn scales_have_defaults() {
        let loras = LoraRequest::list(&json!([{"name": "a"}, {"name": "b-1.x", "scale": 0.5}])).unwrap();
        assert_eq!((loras[0].scale, loras[0].text_encoder_scale), (1.0, 1.0));
        assert_eq!((loras[1].scale, loras[1].text_encoder_scale), (0.5, 0.5));
        let again = LoraRequest::list(&json!([loras[0].to_json(), loras[1].to_json()])).unwrap();
        assert_eq!(again, loras);
        assert_eq!(LoraRequest::list(&json!([])).unwrap(), []);
    }

    #[test]
    fn other_values_are_refused() {
        let long = "a".repeat(129);
        for value in [
            json!({"name": "a"}),
            json!([1]),
            json!([{}]),
            json!([{"name": "../a"}]),
            json!([{"name": "a/b"}]),
            json!([{"name": ".a"}]),
            json!([{"name": ""}]),
            json!([{"name": long}]),
            json!([{"name": "a", "scale": 11}]),
            json!([{"name": "a", "scale": "1"}]),
            json!([{"name": "a", "weight": 1}]),
            json!([{"name": "a"}, {"name": "a"}]),
            Value::Array(vec![json!({"name": "a"}); 9]),
        ] {
            assert_eq!(LoraRequest::list(&value), None, "{value}");
        }
    }
}
