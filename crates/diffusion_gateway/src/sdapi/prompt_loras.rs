//! LoRAs in a prompt, as stable-diffusion-webui writes them: `<lora:NAME:SCALE>`.
//!
//! Source: stable-diffusion-webui, `extensions-builtin/Lora/extra_networks_lora.py`: the first number is for the text
//! encoder and the UNet, a second one for the UNet alone.

use serde_json::{Value, json};

use crate::error::{ApiError, Result};

const START: &str = "<lora:";

/// Takes the LoRAs out of a prompt. Returns the rest of the prompt, and the argument `loras`.
///
/// # Errors
/// A LoRA has no end, or a scale is not a number.
pub fn take(prompt: &str) -> Result<(String, Vec<Value>)> {
    let mut rest = String::new();
    let mut loras = Vec::new();
    let mut remaining = prompt;
    while let Some((before, after)) = remaining.split_once(START) {
        let (inside, after) = after
            .split_once('>')
            .ok_or_else(|| ApiError::argument("prompt", "a <lora: has no > after it"))?;
        rest.push_str(before);
        loras.push(lora(inside)?);
        remaining = after;
    }
    rest.push_str(remaining);
    Ok((rest, loras))
}

fn lora(inside: &str) -> Result<Value> {
    let wrong = || {
        ApiError::argument(
            "prompt",
            "expected <lora:NAME>, <lora:NAME:SCALE> or <lora:NAME:SCALE:SCALE>",
        )
    };
    let mut parts = inside.split(':');
    let name = parts.next().unwrap_or_default();
    let scales = parts.map(|text| text.trim().parse::<f64>().ok().filter(|scale| scale.is_finite()));
    let scales: Vec<f64> = scales.collect::<Option<_>>().ok_or_else(wrong)?;
    match scales[..] {
        [] => Ok(json!({ "name": name })),
        [scale] => Ok(json!({ "name": name, "scale": scale })),
        [text_encoder, unet] => Ok(json!({ "name": name, "scale": unet, "text_encoder_scale": text_encoder })),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loras_are_taken_out_of_the_prompt() {
        assert_eq!(take("a cat"), Ok(("a cat".into(), vec![])));
        let (rest, loras) = take("a <lora:one>cat<lora:two:0.5>, <lora:three:0.1:-2>red").unwrap_or_default();
        assert_eq!(rest, "a cat, red");
        assert_eq!(
            Value::Array(loras),
            json!([
                { "name": "one" },
                { "name": "two", "scale": 0.5 },
                { "name": "three", "scale": -2.0, "text_encoder_scale": 0.1 },
            ])
        );
    }

    #[test]
    fn a_broken_lora_is_an_error() {
        for prompt in [
            "<lora:a",
            "<lora:a:zanzibar>",
            "<lora:a:1:2:3>",
            "<lora:a:inf>",
            "<lora:a:>",
        ] {
            let error = take(prompt).map_err(|error| (error.status, error.param));
            assert_eq!(error, Err((400, Some("prompt"))), "{prompt}");
        }
    }
}
