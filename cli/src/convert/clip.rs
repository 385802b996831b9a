//! Names of the text encoder: those of transformers in Stable Diffusion 1, of OpenCLIP in 2.

use super::types::{Mapping, TargetTensor, strip_index};

/// Layers of OpenCLIP's ViT-H/14 that Stable Diffusion 2 uses: all but the last (`layer: penultimate`).
const SD2_LAYERS: usize = 23;

const NOT_USED: &str = "not used to generate images, from the text encoder";

/// Maps a tensor of transformers' CLIP; `None` for one that it does not have.
pub fn map_tensor(name: &str, shape: &[usize]) -> Option<Mapping> {
    // Early programs wrote the names without their prefix.
    let begins = ["embeddings.", "encoder.", "final_layer_norm."];
    let own = match name.strip_prefix("text_model.") {
        Some(own) => own,
        None if begins.iter().any(|begin| name.starts_with(begin)) => name,
        // The projection compares texts with images.
        None if name == "text_projection.weight" => return Some(Mapping::Skipped(NOT_USED)),
        None => return None,
    };
    if own == "embeddings.position_ids" {
        // 0, 1, 2, ...: transformers computes them.
        return Some(Mapping::Skipped(NOT_USED));
    }
    let known = begins.iter().any(|begin| own.starts_with(begin));
    known.then(|| Mapping::Mapped(vec![TargetTensor::whole(format!("text_model.{own}"), shape)]))
}

/// Maps a tensor of OpenCLIP's text model; `None` for one that it does not have.
pub fn map_open_clip_tensor(name: &str, shape: &[usize]) -> Option<Mapping> {
    let whole = |name: String| Some(Mapping::Mapped(vec![TargetTensor::whole(name, shape)]));
    match name {
        "positional_embedding" => {
            return whole("text_model.embeddings.position_embedding.weight".into());
        }
        "token_embedding.weight" => {
            return whole("text_model.embeddings.token_embedding.weight".into());
        }
        "text_projection" | "logit_scale" | "attn_mask" => return Some(Mapping::Skipped(NOT_USED)),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("ln_final.") {
        return whole(format!("text_model.final_layer_norm.{rest}"));
    }
    let (layer, rest) = strip_index(name.strip_prefix("transformer.resblocks.")?)?;
    let layer_name = format!("text_model.encoder.layers.{layer}");
    let renamed = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
        ("attn.out_proj.", "self_attn.out_proj."),
    ];
    let fate = if let Some(end) = rest.strip_prefix("attn.in_proj_") {
        split_qkv(&layer_name, end, shape)?
    } else {
        let own = renamed
            .iter()
            .find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)))?;
        Mapping::Mapped(vec![TargetTensor::whole(format!("{layer_name}.{own}"), shape)])
    };
    Some(if layer < SD2_LAYERS {
        fate
    } else {
        Mapping::Skipped(NOT_USED)
    })
}

/// Splits query, key and value, which are stacked along the first dimension.
fn split_qkv(layer: &str, end: &str, shape: &[usize]) -> Option<Mapping> {
    let (lines, rest) = shape.split_first()?;
    if !matches!(end, "weight" | "bias") || lines % 3 != 0 {
        return None;
    }
    let shape: Vec<usize> = std::iter::once(lines / 3).chain(rest.iter().copied()).collect();
    let places = ["q_proj", "k_proj", "v_proj"].iter().zip(0..);
    Some(Mapping::Mapped(
        places
            .map(|(own, part)| TargetTensor {
                name: format!("{layer}.self_attn.{own}.{end}"),
                shape: shape.clone(),
                part: (part, 3),
            })
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn map_open_clip_tensor_skips_the_last_layer() {
        let mapping =
            |layer: usize| map_open_clip_tensor(&format!("transformer.resblocks.{layer}.ln_1.weight"), &[1024]);
        assert!(matches!(mapping(22), Some(Mapping::Mapped(_))));
        assert!(matches!(mapping(23), Some(Mapping::Skipped(_))));
    }

    #[test]
    fn map_tensor_accepts_names_of_early_programs() {
        let Some(Mapping::Mapped(places)) = map_tensor("encoder.layers.0.mlp.fc1.bias", &[4]) else {
            panic!("not mapped");
        };
        assert_eq!(places[0].name, "text_model.encoder.layers.0.mlp.fc1.bias");
    }
}
