//! The networks of Stable Diffusion XL, one at a time.

use serde::Deserialize;
use tch::Tensor;
use triton_diffusion::models::clip::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use triton_diffusion::models::layers::BatchSplit;
use triton_diffusion::models::unet::{AddedCondition, TimeInput, UNet2DConditionModel, UNetInput};
use triton_diffusion::weights::read_json;

use crate::support::{Goldens, checkpoint, weights};

const FAMILY: &str = "sdxl_base";

#[derive(Deserialize)]
struct Texts {
    name: String,
    encoder: usize,
    clip_skip: usize,
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    batch_size: i64,
    sample: String,
    output: String,
}

#[derive(Deserialize)]
struct Manifest {
    texts: Vec<Texts>,
    cases: Vec<Case>,
}

#[test]
fn text_encoders_and_unet_match() {
    let mut goldens = Goldens::open("sdxl_networks");
    let manifest: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in manifest.texts {
        let (component, tokenizer) = match case.encoder {
            1 => ("text_encoder", "tokenizer"),
            _ => ("text_encoder_2", "tokenizer_2"),
        };
        let config: ClipTextConfig = read_json(&checkpoint(FAMILY).join(component).join("config.json")).unwrap();
        let tokenizer = ClipTokenizer::open(&checkpoint(FAMILY).join(tokenizer), 77, config.vocab_size).unwrap();
        let weights = weights(FAMILY, component, "model");
        let model = match case.encoder {
            1 => ClipTextModel::new(config, weights),
            _ => ClipTextModel::with_projection(config, weights),
        };
        let model = model.unwrap();
        let encode = |text: &String| {
            let ids = Tensor::from_slice(&tokenizer.encode(text).unwrap().ids).unsqueeze(0);
            model
                .forward_penultimate(&ids, None, case.clip_skip, BatchSplit::Joint)
                .unwrap()
        };
        let encoded: Vec<_> = case.texts.iter().map(encode).collect();
        let states: Vec<_> = encoded.iter().map(|encoded| &encoded.states).collect();
        goldens.compare(&case.name, &Tensor::cat(&states, 0));
        let pooled: Vec<_> = encoded.iter().filter_map(|encoded| encoded.pooled.as_ref()).collect();
        assert_eq!(pooled.is_empty(), case.encoder == 1);
        if !pooled.is_empty() {
            goldens.compare(&format!("{}/pooled", case.name), &Tensor::cat(&pooled, 0));
        }
    }
    let config = read_json(&checkpoint(FAMILY).join("unet/config.json")).unwrap();
    let model = UNet2DConditionModel::new(config, weights(FAMILY, "unet", "diffusion_pytorch_model")).unwrap();
    model.config().check().unwrap();
    for case in manifest.cases {
        let first = |name: &str| goldens.tensor(name).narrow(0, 0, case.batch_size);
        let added = AddedCondition {
            text_embeds: first("unet/text_embeds"),
            time_ids: first("unet/time_ids"),
        };
        let time = TimeInput {
            timesteps: &first("unet/timestep"),
            class_labels: None,
            timestep_cond: None,
            added: Some(&added),
        };
        let text = first("unet/encoder_hidden_states");
        let input = UNetInput {
            sample: &first(&case.sample),
            time_shifts: &model.time_shifts(&time, BatchSplit::Joint).unwrap(),
            text: &model.project_text(&text, BatchSplit::Joint).unwrap(),
        };
        let ours = model.forward(&input, BatchSplit::Joint, None).unwrap();
        goldens.compare(&case.output, &ours);
    }
    goldens.report();
}

#[test]
fn xl_images_match() {
    crate::images::compare("sdxl");
}

#[test]
fn fast_xl_images_are_close_and_the_same_in_company() {
    crate::images::compare_fast("sdxl");
}
