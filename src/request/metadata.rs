//! What a PNG says about how it was made.

use serde_json::{Map, Value, json};

use super::generate::GenerateRequest;

/// The parameters of one picture, which go into the text chunk of its PNG.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    prompt: String,
    negative_prompt: String,
    gen_args: Map<String, Value>,
    image_index: usize,
    model: String,
}

impl Metadata {
    /// The metadata of picture `image_index` (from 0) of a request. `scheduler` is the class name of the scheduler that
    /// was used, `model` the name under which Triton serves the model.
    pub fn new(
        request: &GenerateRequest,
        scheduler: &str,
        model: &str,
        image_index: usize,
    ) -> Self {
        Self {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            gen_args: request.gen_args(scheduler),
            image_index,
            model: model.to_owned(),
        }
    }

    /// The JSON object `{prompt, negative_prompt, gen_args, image_index, model, generator}`. Its `gen_args`, sent again
    /// with the two prompts, makes the same pictures, of which this is number `image_index`.
    pub fn to_json(&self) -> Value {
        json!({
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "gen_args": self.gen_args,
            "image_index": self.image_index,
            "model": self.model,
            "generator": concat!("triton-diffusion ", env!("CARGO_PKG_VERSION")),
        })
    }
}
