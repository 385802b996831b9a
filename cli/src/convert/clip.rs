//! The text encoder's names: transformers' own in Stable Diffusion 1, OpenCLIP's in 2.

use super::layout::{Fate, Place};
use super::unet::indexed;

/// Layers of OpenCLIP's ViT-H/14 that Stable Diffusion 2 uses: all but the last (`layer: penultimate`).
const SD2_LAYERS: usize = 23;

const NOT_USED: &str = "of the text encoder, which images do not use";

/// Where a tensor of transformers' CLIP goes; `None` for one that it does not have.
pub fn fate(name: &str, shape: &[usize]) -> Option<Fate> {
    // Early programs wrote the names without their first part.
    let begins = ["embeddings.", "encoder.", "final_layer_norm."];
    let own = match name.strip_prefix("text_model.") {
        Some(own) => own,
        None if begins.iter().any(|begin| name.starts_with(begin)) => name,
        // The projection is for comparing texts with images.
        None if name == "text_projection.weight" => return Some(Fate::LeftOut(NOT_USED)),
        None => return None,
    };
    if own == "embeddings.position_ids" {
        // 0, 1, 2, ...: transformers makes them itself.
        return Some(Fate::LeftOut(NOT_USED));
    }
    let known = begins.iter().any(|begin| own.starts_with(begin));
    known.then(|| Fate::Kept(vec![Place::whole(format!("text_model.{own}"), shape)]))
}

/// Where a tensor of OpenCLIP's text model goes; `None` for one that it does not have.
pub fn open_clip_fate(name: &str, shape: &[usize]) -> Option<Fate> {
    let whole = |name: String| Some(Fate::Kept(vec![Place::whole(name, shape)]));
    match name {
        "positional_embedding" => {
            return whole("text_model.embeddings.position_embedding.weight".into());
        }
        "token_embedding.weight" => {
            return whole("text_model.embeddings.token_embedding.weight".into());
        }
        "text_projection" | "logit_scale" | "attn_mask" => return Some(Fate::LeftOut(NOT_USED)),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("ln_final.") {
        return whole(format!("text_model.final_layer_norm.{rest}"));
    }
    let (layer, rest) = indexed(name.strip_prefix("transformer.resblocks.")?)?;
    let layer_name = format!("text_model.encoder.layers.{layer}");
    let renamed = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
        ("attn.out_proj.", "self_attn.out_proj."),
    ];
    let fate = if let Some(end) = rest.strip_prefix("attn.in_proj_") {
        thirds(&layer_name, end, shape)?
    } else {
        let own = renamed
            .iter()
            .find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)))?;
        Fate::Kept(vec![Place::whole(format!("{layer_name}.{own}"), shape)])
    };
    Some(if layer < SD2_LAYERS {
        fate
    } else {
        Fate::LeftOut(NOT_USED)
    })
}

/// Query, key and value, which lie one below the other.
fn thirds(layer: &str, end: &str, shape: &[usize]) -> Option<Fate> {
    let (rows, rest) = shape.split_first()?;
    if !matches!(end, "weight" | "bias") || rows % 3 != 0 {
        return None;
    }
    let shape: Vec<usize> = std::iter::once(rows / 3).chain(rest.iter().copied()).collect();
    let places = ["q_proj", "k_proj", "v_proj"].iter().zip(0..);
    Some(Fate::Kept(
        places
            .map(|(own, part)| Place {
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
    fn the_layer_that_stable_diffusion_2_does_not_use_is_left_out() {
        let fate = |layer: usize| open_clip_fate(&format!("transformer.resblocks.{layer}.ln_1.weight"), &[1024]);
        assert!(matches!(fate(22), Some(Fate::Kept(_))));
        assert!(matches!(fate(23), Some(Fate::LeftOut(_))));
    }

    #[test]
    fn names_of_early_programs_are_known() {
        let Some(Fate::Kept(places)) = fate("encoder.layers.0.mlp.fc1.bias", &[4]) else {
            panic!("not kept");
        };
        assert_eq!(places[0].name, "text_model.encoder.layers.0.mlp.fc1.bias");
    }
}
