//! The prompts of a request, encoded.

use tch::Tensor;

use super::DiffusionPipeline;
use crate::adapters::JobAdapters;
use crate::models::unet::AddedCondition;
use crate::pipelines::prompt_encoder_xl::XlPromptEmbeds;
use crate::torch::Stream;
use diffusion_core::Result;
use diffusion_request::{GenerateRequest, TimeIds, XlInputs};

impl DiffusionPipeline {
    /// Encodes the prompts of a request.
    pub(super) fn prompt_embeds(
        &mut self,
        request: &GenerateRequest,
        images: i64,
        adapters: &JobAdapters,
    ) -> Result<EncodedPrompts> {
        let guided = request.do_classifier_free_guidance();
        let clip_skip = request.clip_skip.unwrap_or(0);
        if let (Some(encoder), Some(xl)) = (&mut self.xl_prompt_encoder, &request.xl) {
            let embeds = encoder.encode(&request.prompts, xl, guided, clip_skip, &self.stream)?;
            return xl_prompts(embeds, xl, images, &self.stream);
        }
        let embeds = self
            .prompt_encoder
            .encode(&request.prompts, guided, clip_skip, adapters, &self.stream)?;
        Ok(EncodedPrompts {
            prompt_embeds: joined(embeds.negative.as_ref(), &embeds.prompt, images)?,
            added: None,
            truncated: embeds.truncated,
        })
    }
}

/// The prompts of a request, as the UNet takes them.
pub(super) struct EncodedPrompts {
    /// `[batch size, tokens, size]`, the entries without the prompt first.
    pub prompt_embeds: Tensor,
    /// What Stable Diffusion XL takes besides.
    pub added: Option<AddedCondition>,
    /// Whether a prompt was truncated.
    pub truncated: bool,
}

/// Repeats the tensors of one image, `[1, ...]`, for each image: those without the prompt first, if there are any.
fn joined(negative: Option<&Tensor>, prompt: &Tensor, images: i64) -> Result<Tensor> {
    let mut repeats = vec![1; prompt.dim()];
    if let Some(first) = repeats.first_mut() {
        *first = images;
    }
    let prompt = prompt.f_repeat(&repeats)?;
    match negative {
        Some(negative) => Ok(Tensor::f_cat(&[negative.f_repeat(&repeats)?, prompt], 0)?),
        None => Ok(prompt),
    }
}

fn xl_prompts(embeds: XlPromptEmbeds, xl: &XlInputs, images: i64, stream: &Stream) -> Result<EncodedPrompts> {
    let XlPromptEmbeds {
        prompt,
        negative,
        truncated,
    } = embeds;
    let kind = prompt.states.kind();
    let ids = |ids: &TimeIds| -> Result<Tensor> {
        let ids = ids.map(|number| number as f32);
        // In the model's dtype, as in diffusers.
        stream.to_device(&Tensor::f_from_slice(&ids)?.f_to_kind(kind)?.f_unsqueeze(0)?)
    };
    let negative_ids = negative.as_ref().map(|_| ids(&xl.negative_time_ids)).transpose()?;
    let pooled = negative.as_ref().map(|negative| &negative.pooled);
    let states = negative.as_ref().map(|negative| &negative.states);
    Ok(EncodedPrompts {
        prompt_embeds: joined(states, &prompt.states, images)?,
        added: Some(AddedCondition {
            text_embeds: joined(pooled, &prompt.pooled, images)?,
            time_ids: joined(negative_ids.as_ref(), &ids(&xl.time_ids)?, images)?,
        }),
        truncated,
    })
}
