//! Configurations, inferred from shapes.

use std::collections::BTreeMap;

use clap::ValueEnum;
use diffusion_core::{Error, Result};
use serde_json::{Value, json};

use super::key_map::KeyMap;
use super::types::{Component, Family};
use Component::{TextEncoder, Unet, Vae};

/// Configuration files, by their path in the folder.
pub type Configs = BTreeMap<&'static str, Value>;

/// Pixels per latent along a side, for every Stable Diffusion 1 and 2.
const VAE_SCALE: u32 = 8;
/// Channels of an attention head in OpenCLIP, in CLIP ViT-L and in the UNet of Stable Diffusion 2.
const HEAD: usize = 64;
/// Groups of every group norm.
const GROUPS: usize = 32;

/// What the UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Prediction {
    /// The noise.
    #[value(name = "epsilon")]
    Epsilon,
    /// A mixture of noise and image: Stable Diffusion 2 for 768 pixels.
    #[value(name = "v_prediction")]
    VPrediction,
}

/// Options of the user for what shapes do not determine.
#[derive(Clone, Copy, Debug)]
pub struct InferOptions {
    /// What the UNet predicts.
    pub prediction: Option<Prediction>,
    /// Pixels along a side.
    pub image_size: Option<u32>,
}

/// Infers the configurations of a folder.
///
/// # Errors
/// A tensor is missing that every model of the family has; the prediction type is not given; a size that no published
/// model has.
pub fn infer(key_map: &KeyMap, wanted: InferOptions) -> Result<Configs> {
    let prediction = match (key_map.family, wanted.prediction) {
        (_, Some(prediction)) => prediction,
        (Family::Sd1, None) => Prediction::Epsilon,
        (Family::Sd2, None) => {
            return Err(Error::invalid_argument(
                "the file does not say what its UNet predicts: give --prediction-type epsilon (Stable Diffusion 2 base, \
                 512 pixels, and inpainting) or --prediction-type v_prediction (768 pixels)",
            ));
        }
    };
    let size = wanted.image_size.unwrap_or(match prediction {
        Prediction::Epsilon => 512,
        Prediction::VPrediction => 768,
    });
    let unet = unet(key_map, size)?;
    let class = match unet["in_channels"].as_u64() {
        Some(4) => "StableDiffusionPipeline",
        Some(9) => "StableDiffusionInpaintPipeline",
        other => {
            return Err(Error::unsupported(format!(
                "the UNet has {} input channels; only text to image (4) and inpainting (9) are supported",
                other.unwrap_or_default()
            )));
        }
    };
    Ok(BTreeMap::from([
        ("model_index.json", model_index(class, prediction)),
        ("unet/config.json", unet),
        ("vae/config.json", vae(key_map, size)?),
        ("text_encoder/config.json", text_encoder(key_map)?),
        ("scheduler/scheduler_config.json", scheduler(prediction)),
    ]))
}

/// Returns one dimension of a tensor's shape.
fn dimension(key_map: &KeyMap, component: Component, name: &str, index: usize) -> Result<usize> {
    let shape = key_map.shape(component, name);
    shape.and_then(|shape| shape.get(index)).copied().ok_or_else(|| {
        Error::not_found(format!(
            "{}: tensor {name} is missing in the file, or has another rank",
            component.weights()
        ))
    })
}

/// Returns the first dimensions of the tensors `name`, with 0, 1, 2, ... in place of `{}`.
fn channels(key_map: &KeyMap, component: Component, name: &str) -> Result<Vec<usize>> {
    (0..key_map.count(component, name))
        .map(|index| dimension(key_map, component, &name.replace("{}", &index.to_string()), 0))
        .collect()
}

fn unet(key_map: &KeyMap, image_size: u32) -> Result<Value> {
    let channels = channels(key_map, Unet, "down_blocks.{}.resnets.0.conv1.weight")?;
    let block = |way: &str, plain: &'static str, crossed: &'static str| -> Vec<&'static str> {
        let has = |index: usize| {
            let name = format!("{way}_blocks.{index}.attentions.0.norm.weight");
            key_map.shape(Unet, &name).is_some()
        };
        let blocks = 0..channels.len();
        blocks.map(|index| if has(index) { crossed } else { plain }).collect()
    };
    let transformer = "mid_block.attentions.0.";
    let key = format!("{transformer}transformer_blocks.0.attn2.to_k.weight");
    let projection = key_map.shape(Unet, &format!("{transformer}proj_in.weight"));
    let linear = projection.is_some_and(|shape| shape.len() == 2);
    // Stable Diffusion 1 has 8 heads everywhere, 2 has heads of 64 channels. This key of diffusers is the number of
    // heads.
    let heads = if linear {
        fits(&channels, HEAD, "unet")?;
        json!(channels.iter().map(|n| n / HEAD).collect::<Vec<_>>())
    } else {
        json!(8)
    };
    fits(&channels, GROUPS, "unet")?;
    Ok(json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": dimension(key_map, Unet, &key, 1)?,
        "down_block_types": block("down", "DownBlock2D", "CrossAttnDownBlock2D"),
        "downsample_padding": 1,
        "dual_cross_attention": false,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": dimension(key_map, Unet, "conv_in.weight", 1)?,
        "layers_per_block": key_map.count(Unet, "down_blocks.0.resnets.{}.conv1.weight"),
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": GROUPS,
        "num_class_embeds": null,
        "only_cross_attention": false,
        "out_channels": dimension(key_map, Unet, "conv_out.weight", 0)?,
        "sample_size": image_size / VAE_SCALE,
        "up_block_types": block("up", "UpBlock2D", "CrossAttnUpBlock2D"),
        "use_linear_projection": linear,
    }))
}

fn vae(key_map: &KeyMap, image_size: u32) -> Result<Value> {
    let channels = channels(key_map, Vae, "encoder.down_blocks.{}.resnets.0.conv1.weight")?;
    fits(&channels, GROUPS, "vae")?;
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "in_channels": dimension(key_map, Vae, "encoder.conv_in.weight", 1)?,
        "latent_channels": dimension(key_map, Vae, "decoder.conv_in.weight", 1)?,
        "layers_per_block": key_map.count(Vae, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "norm_num_groups": GROUPS,
        "out_channels": dimension(key_map, Vae, "decoder.conv_out.weight", 0)?,
        "sample_size": image_size,
        "scaling_factor": 0.18215,
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
    }))
}

fn text_encoder(key_map: &KeyMap) -> Result<Value> {
    let tokens = "text_model.embeddings.token_embedding.weight";
    let hidden = dimension(key_map, TextEncoder, tokens, 1)?;
    fits(&[hidden], HEAD, "text_encoder")?;
    let positions = "text_model.embeddings.position_embedding.weight";
    let (act, projection) = match key_map.family {
        Family::Sd1 => ("quick_gelu", 768),
        Family::Sd2 => ("gelu", 512),
    };
    Ok(json!({
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": act,
        "hidden_size": hidden,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": dimension(key_map, TextEncoder, "text_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": dimension(key_map, TextEncoder, positions, 0)?,
        "model_type": "clip_text_model",
        "num_attention_heads": hidden / HEAD,
        "num_hidden_layers": key_map.count(TextEncoder, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        "pad_token_id": 1,
        "projection_dim": projection,
        "vocab_size": dimension(key_map, TextEncoder, tokens, 0)?,
    }))
}

/// Returns the scheduler of the published folders: PNDM, and DDIM for v-prediction.
fn scheduler(prediction: Prediction) -> Value {
    let mut config = json!({
        "_class_name": scheduler_class(prediction),
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    if prediction == Prediction::VPrediction {
        config["prediction_type"] = "v_prediction".into();
    }
    config
}

fn scheduler_class(prediction: Prediction) -> &'static str {
    match prediction {
        Prediction::Epsilon => "PNDMScheduler",
        Prediction::VPrediction => "DDIMScheduler",
    }
}

fn model_index(class: &str, prediction: Prediction) -> Value {
    json!({
        "_class_name": class,
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", scheduler_class(prediction)],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// Checks that channels are divisible into heads or groups, as in every published model.
fn fits(channels: &[usize], divisor: usize, component: &str) -> Result<()> {
    if !channels.is_empty() && channels.iter().all(|n| n % divisor == 0) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "{component}: expected channels that are multiples of {divisor}, as in Stable Diffusion 1 and 2, got {channels:?}; \
         give --config with a diffusers folder of the same model"
    )))
}

#[cfg(test)]
mod tests;
