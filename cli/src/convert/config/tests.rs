//! Configurations of the published sizes, from the shapes of their files.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::*;

/// The tensors from which configurations are read, in the layout of the original code.
fn tensors(in_channels: usize, sd2: bool) -> Vec<(String, Vec<usize>)> {
    let unet = [320, 640, 1280, 1280];
    let (text, layers) = if sd2 { (1024, 24) } else { (768, 12) };
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    let model = "model.diffusion_model";
    add(format!("{model}.input_blocks.0.0.weight"), &[320, in_channels, 3, 3]);
    add(format!("{model}.out.2.weight"), &[4, 320, 3, 3]);
    for (block, &n) in unet.iter().enumerate() {
        for layer in 0..2 {
            let place = format!("{model}.input_blocks.{}", 1 + block * 3 + layer);
            add(format!("{place}.0.in_layers.2.weight"), &[n, n, 3, 3]);
            if block < 3 {
                add(format!("{place}.1.norm.weight"), &[n]);
            }
        }
        if block < 3 {
            add(
                format!("{model}.input_blocks.{}.0.op.weight", 3 + block * 3),
                &[n, n, 3, 3],
            );
        }
        for layer in 0..3 {
            let place = format!("{model}.output_blocks.{}", block * 3 + layer);
            add(format!("{place}.0.in_layers.2.weight"), &[n, n, 3, 3]);
            if block > 0 {
                add(format!("{place}.1.norm.weight"), &[n]);
            }
        }
    }
    let linear: &[usize] = if sd2 { &[1280, 1280] } else { &[1280, 1280, 1, 1] };
    add(format!("{model}.middle_block.1.proj_in.weight"), linear);
    add(
        format!("{model}.middle_block.1.transformer_blocks.0.attn2.to_k.weight"),
        &[1280, text],
    );
    let vae = "first_stage_model";
    add(format!("{vae}.encoder.conv_in.weight"), &[128, 3, 3, 3]);
    add(format!("{vae}.decoder.conv_in.weight"), &[512, 4, 3, 3]);
    add(format!("{vae}.decoder.conv_out.weight"), &[3, 128, 3, 3]);
    for (block, n) in [128, 256, 512, 512].into_iter().enumerate() {
        for layer in 0..2 {
            add(
                format!("{vae}.encoder.down.{block}.block.{layer}.conv1.weight"),
                &[n, n, 3, 3],
            );
        }
    }
    for layer in 0..layers {
        if sd2 {
            let name = format!("cond_stage_model.model.transformer.resblocks.{layer}.mlp.c_fc.weight");
            add(name, &[text * 4, text]);
        } else {
            let name = format!("cond_stage_model.transformer.text_model.encoder.layers.{layer}.mlp.fc1.weight");
            add(name, &[text * 4, text]);
        }
    }
    let (tokens, positions) = if sd2 {
        ("model.token_embedding.weight", "model.positional_embedding")
    } else {
        (
            "transformer.text_model.embeddings.token_embedding.weight",
            "transformer.text_model.embeddings.position_embedding.weight",
        )
    };
    add(format!("cond_stage_model.{tokens}"), &[49408, text]);
    add(format!("cond_stage_model.{positions}"), &[77, text]);
    all
}

fn inferred(tensors: &[(String, Vec<usize>)], wanted: InferOptions) -> Result<Configs> {
    let infos: Vec<(&str, TensorInfo)> = tensors
        .iter()
        .map(|(name, shape)| {
            let info = TensorInfo {
                dtype: Dtype::F16,
                shape: shape.clone(),
                data_offsets: (0, shape.iter().product::<usize>() * 2),
            };
            (name.as_str(), info)
        })
        .collect();
    let infos: Vec<(&str, &TensorInfo)> = infos.iter().map(|(name, info)| (*name, info)).collect();
    infer(&KeyMap::from_tensors(&infos)?, wanted)
}

const NOTHING: InferOptions = InferOptions {
    prediction: None,
    image_size: None,
};

/// Checks keys against what the published folder has.
fn has(config: &Value, expected: Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(config.get(key).expect(key), value, "{key}");
    }
}

#[test]
fn infer_of_stable_diffusion_1_5_gives_its_configs() {
    let configs = inferred(&tensors(4, false), NOTHING).unwrap();
    has(
        &configs["unet/config.json"],
        json!({
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 768,
            "down_block_types": [
                "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"
            ],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "sample_size": 64,
            "use_linear_projection": false,
        }),
    );
    has(
        &configs["vae/config.json"],
        json!({
            "block_out_channels": [128, 256, 512, 512],
            "latent_channels": 4,
            "layers_per_block": 2,
            "sample_size": 512,
        }),
    );
    has(
        &configs["text_encoder/config.json"],
        json!({
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "max_position_embeddings": 77,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "vocab_size": 49408,
        }),
    );
    assert_eq!(configs["scheduler/scheduler_config.json"]["prediction_type"], "epsilon");
    assert_eq!(configs["model_index.json"]["_class_name"], "StableDiffusionPipeline");
}

#[test]
fn infer_of_stable_diffusion_2_1_gives_its_configs() {
    let wanted = InferOptions {
        prediction: Some(Prediction::VPrediction),
        image_size: None,
    };
    let configs = inferred(&tensors(4, true), wanted).unwrap();
    has(
        &configs["unet/config.json"],
        json!({
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "sample_size": 96,
            "use_linear_projection": true,
        }),
    );
    has(
        &configs["text_encoder/config.json"],
        json!({
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
        }),
    );
    has(
        &configs["scheduler/scheduler_config.json"],
        json!({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}),
    );
    let error = inferred(&tensors(4, true), NOTHING).unwrap_err().to_string();
    assert!(error.contains("--prediction-type"), "{error}");
}

#[test]
fn infer_accepts_nine_channels_for_inpainting_and_refuses_eight() {
    let configs = inferred(&tensors(9, false), NOTHING).unwrap();
    assert_eq!(
        configs["model_index.json"]["_class_name"],
        "StableDiffusionInpaintPipeline"
    );
    let error = inferred(&tensors(8, false), NOTHING).unwrap_err().to_string();
    assert!(error.contains("has 8 input channels"), "{error}");
}

#[test]
fn from_tensors_names_the_model_of_an_unsupported_file() {
    let with = |name: &str| {
        let mut all = tensors(4, false);
        all.push((name.to_owned(), vec![1]));
        inferred(&all, NOTHING).unwrap_err().to_string()
    };
    for (name, words) in [
        ("conditioner.embedders.0.transformer.x", "Stable Diffusion XL"),
        ("control_model.x", "a ControlNet"),
        ("model.diffusion_model.label_emb.weight", "the upscaler"),
        ("model.diffusion_model.input_blocks.1.0.gate", "unexpected tensor"),
        ("first_stage_model.encoder.mid.attn_1.gate", "unexpected tensor"),
        ("cond_stage_model.model.ln_final.bias", "Stable Diffusion 1 and of 2"),
    ] {
        let error = with(name);
        assert!(error.contains(words), "{name}: {error}");
    }
    let mut lora = tensors(4, false);
    lora.retain(|(name, _)| !name.starts_with("first_stage_model"));
    let error = inferred(&lora, NOTHING).unwrap_err().to_string();
    assert!(error.contains("no VAE"), "{error}");
}
