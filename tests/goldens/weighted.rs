//! Prompts with weighted words.

use diffusion_request::{PromptSyntax, Prompts};
use serde::Deserialize;
use triton_diffusion::pipelines::{Components, Device, JobAdapters, MAX_CHUNKS, Stream};

use crate::support::{Cases, Goldens, checkpoint, exact};

#[test]
fn prompt_encoder_weighted_embeddings_match() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        checkpoint: String,
        prompt: String,
        negative_prompt: Option<String>,
        clip_skip: Option<usize>,
        truncated: bool,
    }
    let mut goldens = Goldens::open("weighted");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let mut chunks = std::collections::BTreeSet::new();
    for case in cases.cases {
        let folder = checkpoint(&case.checkpoint);
        let (components, _) = Components::load(&folder, &exact(), Device::Cpu).unwrap();
        let guided = case.negative_prompt.is_some();
        let negative_prompt = case.negative_prompt.unwrap_or_default();
        let prompts = Prompts::parse(PromptSyntax::Weighted, case.prompt, negative_prompt).unwrap();
        let embeds = components
            .prompt_encoder()
            .encode(
                &prompts,
                guided,
                case.clip_skip.unwrap_or(0),
                &JobAdapters::default(),
                &Stream::cpu(),
            )
            .unwrap();
        assert_eq!(embeds.truncated, case.truncated, "{}", case.name);
        goldens.compare(&format!("{}/prompt", case.name), &embeds.prompt);
        let negative = format!("{}/negative", case.name);
        assert_eq!(embeds.negative.is_some(), goldens.has(&negative), "{negative}");
        if let Some(ours) = &embeds.negative {
            goldens.compare(&negative, ours);
        }
        chunks.insert(embeds.prompt.size()[1] / 77);
    }
    goldens.report();
    assert!(chunks.into_iter().eq(1..=MAX_CHUNKS as i64));
}
