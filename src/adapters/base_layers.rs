//! The layers of a model that is not loaded: those of a diffusers folder.

use std::path::Path;

use super::lora::AdaptableLayers;
use crate::weights::{Component, LayerShapes, TensorFile};
use diffusion_core::Result;

impl AdaptableLayers {
    /// Reads the layers of a diffusers folder from the headers of its weight files.
    ///
    /// # Errors
    /// Those of [`Component::open`] for `unet` and `text_encoder`.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let unet = Component::open(&folder.join("unet"), "diffusion_pytorch_model")?;
        let text_encoder = Component::open(&folder.join("text_encoder"), "model")?;
        // Other tensors are no layers that an adapter changes.
        let in_encoder = |name: &str| {
            let name = name.strip_prefix("text_model.").unwrap_or(name);
            name.starts_with("encoder.").then(|| name.to_owned())
        };
        Ok(Self::of_shapes(
            &layers(&unet, |name| Some(name.to_owned())),
            &layers(&text_encoder, in_encoder),
        ))
    }
}

/// Returns the layers with a matrix or a kernel. `rename` returns the name in the model, or `None` if it has none.
fn layers(component: &Component, rename: impl Fn(&str) -> Option<String>) -> LayerShapes {
    let tensors = component.files().iter().flat_map(named_shapes);
    let layers = tensors.filter_map(|(tensor, shape)| {
        let layer = rename(tensor.strip_suffix(".weight")?)?;
        // Tables of embeddings are matrices too.
        let is_layer = matches!(shape.len(), 2 | 4) && !layer.ends_with("_embedding");
        is_layer.then(|| (layer.into(), shape))
    });
    layers.collect()
}

fn named_shapes(file: &TensorFile) -> Vec<(String, Vec<i64>)> {
    let names = file.names().into_iter();
    let shapes = names.filter_map(|name| {
        let sides = file.info(&name)?.shape.iter();
        let shape = sides.map(|&side| i64::try_from(side)).collect::<Result<_, _>>();
        Some((name, shape.ok()?))
    });
    shapes.collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use tch::{Device, Kind};

    use super::*;
    use crate::adapters::AdaptedComponent;
    use crate::models::clip::ClipTextModel;
    use crate::models::unet::UNet2DConditionModel;
    use crate::weights::{load_component, read_json};

    #[test]
    fn of_folder_has_the_layers_of_the_loaded_models() {
        for family in ["sd1", "sd2_base", "x4_upscaler", "lcm"] {
            let folder = test_support::checkpoint(family);
            let found = AdaptableLayers::of_folder(&folder).unwrap();
            let load =
                |name: &str, stem: &str| load_component(&folder.join(name), stem, Device::Cpu, Kind::Float).unwrap();
            let config = |name: &str| folder.join(name).join("config.json");
            let unet = load("unet", "diffusion_pytorch_model");
            let unet = UNet2DConditionModel::new(read_json(&config("unet")).unwrap(), unet).unwrap();
            assert_eq!(found.shapes(AdaptedComponent::Unet), unet.layers(), "{family}");
            let text = load("text_encoder", "model");
            let text = ClipTextModel::new(read_json(&config("text_encoder")).unwrap(), text).unwrap();
            assert_eq!(found.shapes(AdaptedComponent::TextEncoder), text.layers(), "{family}");
        }
    }
}
