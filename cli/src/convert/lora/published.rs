//! The layers of the published models, Stable Diffusion 1 and 2.
//!
//! Sources: diffusers `models/unets/unet_2d_condition.py` and `unet_2d_blocks.py`, transformers
//! `models/clip/modeling_clip.py`, and the configurations of stable-diffusion-v1-5 and stable-diffusion-2-1.

use std::sync::Arc;

use triton_diffusion::adapters::AdaptableLayers;
use triton_diffusion::weights::LayerShapes;

/// ResNet blocks of a down block; an up block has one more.
const RESNETS: usize = 2;
/// Channels of latents.
const LATENT_CHANNELS: i64 = 4;

/// The sizes of a UNet.
struct UnetSizes {
    /// Channels of the four levels. All levels but the last have attention.
    channels: [i64; 4],
    /// Width of the encoded text.
    text: i64,
    /// Whether the projections around a transformer are matrices; else they are 1x1 convolutions.
    linear_projection: bool,
}

/// The sizes of a text encoder.
struct TextSizes {
    layers: usize,
    hidden: i64,
    intermediate: i64,
}

/// Returns the published models and their layers.
pub fn models() -> [(&'static str, AdaptableLayers); 2] {
    let channels = [320, 640, 1280, 1280];
    let model = |text, linear_projection, layers, intermediate| {
        let unet = unet(&UnetSizes {
            channels,
            text,
            linear_projection,
        });
        let text_encoder = text_encoder(&TextSizes {
            layers,
            hidden: text,
            intermediate,
        });
        AdaptableLayers::of_shapes(&unet, &text_encoder)
    };
    [
        ("Stable Diffusion 1", model(768, false, 12, 3072)),
        ("Stable Diffusion 2", model(1024, true, 23, 4096)),
    ]
}

/// Collects layers by their names.
#[derive(Default)]
struct Layers(LayerShapes);

impl Layers {
    fn add(&mut self, path: &str, name: &str, shape: &[i64]) {
        self.0.insert(Arc::from(format!("{path}{name}")), shape.to_vec());
    }

    /// `ResnetBlock2D`.
    fn add_resnet(&mut self, path: &str, (inputs, outputs): (i64, i64), time: i64) {
        self.add(path, "conv1", &[outputs, inputs, 3, 3]);
        self.add(path, "time_emb_proj", &[outputs, time]);
        self.add(path, "conv2", &[outputs, outputs, 3, 3]);
        if inputs != outputs {
            self.add(path, "conv_shortcut", &[outputs, inputs, 1, 1]);
        }
    }

    /// `Transformer2DModel` with one `BasicTransformerBlock`.
    fn add_transformer(&mut self, path: &str, channels: i64, sizes: &UnetSizes) {
        for projection in ["proj_in", "proj_out"] {
            match sizes.linear_projection {
                true => self.add(path, projection, &[channels, channels]),
                false => self.add(path, projection, &[channels, channels, 1, 1]),
            }
        }
        let block = format!("{path}transformer_blocks.0.");
        for (attention, context) in [("attn1", channels), ("attn2", sizes.text)] {
            for (name, inputs) in [
                ("to_q", channels),
                ("to_k", context),
                ("to_v", context),
                ("to_out.0", channels),
            ] {
                self.add(&block, &format!("{attention}.{name}"), &[channels, inputs]);
            }
        }
        // GEGLU: the gate has a half of the outputs.
        self.add(&block, "ff.net.0.proj", &[8 * channels, channels]);
        self.add(&block, "ff.net.2", &[channels, 4 * channels]);
    }
}

/// Returns the layers of a `UNet2DConditionModel`.
fn unet(sizes: &UnetSizes) -> LayerShapes {
    let mut layers = Layers::default();
    let [first, .., last] = sizes.channels;
    let time = 4 * first;
    layers.add("", "conv_in", &[first, LATENT_CHANNELS, 3, 3]);
    layers.add("", "conv_out", &[LATENT_CHANNELS, first, 3, 3]);
    layers.add("time_embedding.", "linear_1", &[time, first]);
    layers.add("time_embedding.", "linear_2", &[time, time]);

    let deepest = sizes.channels.len() - 1;
    // The channels of the features that up blocks take from down blocks.
    let mut skipped = vec![first];
    let mut channels = first;
    for (level, &outputs) in sizes.channels.iter().enumerate() {
        let path = format!("down_blocks.{level}.");
        for index in 0..RESNETS {
            layers.add_resnet(&format!("{path}resnets.{index}."), (channels, outputs), time);
            channels = outputs;
            if level < deepest {
                layers.add_transformer(&format!("{path}attentions.{index}."), channels, sizes);
            }
            skipped.push(channels);
        }
        if level < deepest {
            layers.add(&path, "downsamplers.0.conv", &[channels, channels, 3, 3]);
            skipped.push(channels);
        }
    }

    for index in 0..2 {
        layers.add_resnet(&format!("mid_block.resnets.{index}."), (last, last), time);
    }
    layers.add_transformer("mid_block.attentions.0.", last, sizes);

    for (level, &outputs) in sizes.channels.iter().rev().enumerate() {
        let path = format!("up_blocks.{level}.");
        for index in 0..=RESNETS {
            let inputs = channels + skipped.pop().unwrap_or_default();
            layers.add_resnet(&format!("{path}resnets.{index}."), (inputs, outputs), time);
            channels = outputs;
            if level > 0 {
                layers.add_transformer(&format!("{path}attentions.{index}."), channels, sizes);
            }
        }
        if level < deepest {
            layers.add(&path, "upsamplers.0.conv", &[channels, channels, 3, 3]);
        }
    }
    layers.0
}

/// Returns the layers of a `CLIPTextModel`.
fn text_encoder(sizes: &TextSizes) -> LayerShapes {
    let mut layers = Layers::default();
    let (hidden, intermediate) = (sizes.hidden, sizes.intermediate);
    for index in 0..sizes.layers {
        let path = format!("encoder.layers.{index}.");
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            layers.add(&path, &format!("self_attn.{name}"), &[hidden, hidden]);
        }
        layers.add(&path, "mlp.fc1", &[intermediate, hidden]);
        layers.add(&path, "mlp.fc2", &[hidden, intermediate]);
    }
    layers.0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use test_support::checkpoint;
    use triton_diffusion::adapters::AdaptedComponent::{TextEncoder, Unet};

    use super::*;

    #[test]
    fn layers_are_those_of_folders_of_both_families() {
        for (name, linear_projection) in [("sd1", false), ("sd2_base", true)] {
            let folder = AdaptableLayers::of_folder(&checkpoint(name)).unwrap();
            let unet = unet(&UnetSizes {
                channels: [16, 16, 24, 24],
                text: 32,
                linear_projection,
            });
            assert_eq!(unet, *folder.shapes(Unet), "{name}");
            let layers = folder.shapes(TextEncoder).len() / 6;
            let text_encoder = text_encoder(&TextSizes {
                layers,
                hidden: 32,
                intermediate: 128,
            });
            assert_eq!(text_encoder, *folder.shapes(TextEncoder), "{name}");
        }
    }

    #[test]
    fn layers_of_published_models_have_names_that_differ_with_underscores() {
        for (model, layers) in models() {
            for (component, expected) in [(Unet, 282), (TextEncoder, if model.ends_with('1') { 72 } else { 138 })] {
                let names = layers.shapes(component).keys().map(|name| name.replace('.', "_"));
                let names: std::collections::BTreeSet<String> = names.collect();
                assert_eq!(names.len(), expected, "{model}");
                assert_eq!(layers.shapes(component).len(), expected, "{model}");
            }
        }
    }
}
