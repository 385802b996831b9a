//! The tokenizer and the networks, one at a time.

use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use triton_diffusion::models::clip::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use triton_diffusion::models::layers::BatchSplit;
use triton_diffusion::models::unet::{TimeInput, UNet2DConditionModel, UNetInput, guidance_scale_embedding};
use triton_diffusion::models::vae::AutoencoderKl;
use triton_diffusion::weights::read_json;

use crate::support::{Cases, Goldens, checkpoint, golden_folder, manifest, weights};

fn text_config(name: &str) -> ClipTextConfig {
    read_json(&checkpoint(name).join("text_encoder/config.json")).unwrap()
}

fn tokenizer(name: &str) -> ClipTokenizer {
    let config = text_config(name);
    ClipTokenizer::open(&checkpoint(name).join("tokenizer"), 77, config.vocab_size).unwrap()
}

#[test]
fn tokenizer_texts_give_the_ids_of_transformers() {
    #[derive(Deserialize)]
    struct Text {
        text: String,
        ids: Vec<i64>,
        truncated: bool,
    }
    let all: Map<String, Value> = manifest(&golden_folder(), "tokens");
    let mut compared = 0;
    for (name, texts) in all {
        let texts: Vec<Text> = serde_json::from_value(texts).unwrap();
        let tokenizer = tokenizer(&name);
        for Text { text, ids, truncated } in texts {
            let ours = tokenizer.encode(&text).unwrap();
            assert_eq!(ours.ids, ids, "{name}: {text:?}");
            assert_eq!(ours.truncated, truncated, "{name}: {text:?}");
            compared += 1;
        }
    }
    println!("tokens: {compared} texts equal");
    assert!(compared > 40);
}

#[test]
fn text_encoder_embeddings_match() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        checkpoint: String,
        clip_skip: Option<usize>,
        texts: Vec<String>,
    }
    let mut goldens = Goldens::open("text");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let model = ClipTextModel::new(
            text_config(&case.checkpoint),
            weights(&case.checkpoint, "text_encoder", "model"),
        )
        .unwrap();
        let tokenizer = tokenizer(&case.checkpoint);
        let embeddings: Vec<Tensor> = case
            .texts
            .iter()
            .map(|text| {
                let ids = Tensor::from_slice(&tokenizer.encode(text).unwrap().ids).unsqueeze(0);
                model.forward(&ids, case.clip_skip.unwrap_or(0)).unwrap()
            })
            .collect();
        goldens.compare(&case.name, &Tensor::cat(&embeddings, 0));
    }
    goldens.report();
}

#[test]
fn unet_predictions_match() {
    #[derive(Deserialize)]
    struct Case {
        checkpoint: String,
        batch_size: i64,
        sample: String,
        timestep: String,
        encoder_hidden_states: String,
        class_labels: Option<String>,
        timestep_cond: Option<String>,
        output: String,
    }
    #[derive(Deserialize)]
    struct GuidanceEmbedding {
        weights: String,
        embedding_dim: i64,
        output: String,
    }
    #[derive(Deserialize)]
    struct Manifest {
        cases: Vec<Case>,
        guidance_embeddings: Vec<GuidanceEmbedding>,
    }
    let mut goldens = Goldens::open("unet");
    let cases: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let config = read_json(&checkpoint(&case.checkpoint).join("unet/config.json")).unwrap();
        let weights = weights(&case.checkpoint, "unet", "diffusion_pytorch_model");
        let model = UNet2DConditionModel::new(config, weights).unwrap();
        model.config().check().unwrap();
        let first = |name: &str| goldens.tensor(name).narrow(0, 0, case.batch_size);
        let labels = case.class_labels.as_deref().map(first);
        let cond = case.timestep_cond.as_deref().map(first);
        let time = TimeInput {
            timesteps: &first(&case.timestep),
            class_labels: labels.as_ref(),
            timestep_cond: cond.as_ref(),
            added: None,
        };
        let text = first(&case.encoder_hidden_states);
        let input = UNetInput {
            sample: &first(&case.sample),
            time_shifts: &model.time_shifts(&time, BatchSplit::Joint).unwrap(),
            text: &model.project_text(&text, BatchSplit::Joint).unwrap(),
        };
        let ours = model.forward(&input, BatchSplit::Joint, None).unwrap();
        goldens.compare(&case.output, &ours);
    }
    for case in cases.guidance_embeddings {
        let weights = goldens.tensor(&case.weights);
        let ours = guidance_scale_embedding(&weights, case.embedding_dim, Kind::Float).unwrap();
        goldens.compare_sines(&case.output, &ours);
    }
    goldens.report();
}

#[test]
fn vae_encode_and_decode_match() {
    #[derive(Deserialize)]
    struct Case {
        checkpoint: String,
        kind: String,
        input: String,
        output: String,
    }
    let mut goldens = Goldens::open("vae");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let config = read_json(&checkpoint(&case.checkpoint).join("vae/config.json")).unwrap();
        let weights = weights(&case.checkpoint, "vae", "diffusion_pytorch_model");
        let model = AutoencoderKl::new(config, weights).unwrap();
        model.config().check().unwrap();
        let input = goldens.tensor(&case.input);
        let ours = match case.kind.as_str() {
            "decode" => model.decode(&input).unwrap(),
            "encode" => model.encode(&input).unwrap(),
            other => panic!("unknown kind {other}"),
        };
        goldens.compare(&case.output, &ours);
    }
    goldens.report();
}
