//! The parameters that an image file records.

use serde_json::{Map, Value, json};

use crate::GenerateRequest;

/// The parameters of a request, for its image files. Holds no images, unlike the request.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    prompt: String,
    /// `None` if its absence means something else than an empty one.
    negative_prompt: Option<String>,
    /// Without the scheduler, which is known when the images are.
    gen_args: Map<String, Value>,
    model: String,
}

impl Metadata {
    /// Creates the metadata of a request. `model` is the name under which Triton serves the model.
    pub fn new(request: &GenerateRequest, model: &str) -> Self {
        Self {
            prompt: request.prompts.prompt.clone(),
            negative_prompt: request
                .xl
                .as_ref()
                .is_none_or(|xl| xl.has_negative_prompt)
                .then(|| request.prompts.negative_prompt.clone()),
            gen_args: request.gen_args(),
            model: model.to_owned(),
        }
    }

    /// Returns the JSON object `{prompt, negative_prompt, gen_args, image_index, model, generator}` of image `image_index`
    /// (from 0). `scheduler` is the class name of the scheduler that was used. A request with these prompts and
    /// `gen_args` gives the same images.
    pub fn of_image(&self, scheduler: &str, image_index: usize) -> Value {
        let mut gen_args = self.gen_args.clone();
        gen_args.insert("scheduler".to_owned(), scheduler.into());
        json!({
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "gen_args": gen_args,
            "image_index": image_index,
            "model": self.model,
            "generator": concat!("triton-diffusion ", env!("CARGO_PKG_VERSION")),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::{ElementInputs, ModelInfo, RequestValidator};
    use diffusion_core::config::{ModelParameters, PipelineClass};

    const SCHEDULERS: &[&str] = &["DDIMScheduler", "PNDMScheduler"];

    fn validator() -> RequestValidator {
        let model = ModelInfo {
            class: PipelineClass::StableDiffusion,
            default_height: 64,
            default_width: 64,
            vae_scale_factor: 8,
            num_text_layers: 12,
            guidance_embedding: false,
            max_noise_level: 0,
            tiny_decoder: false,
            safety_checker: false,
            schedulers: SCHEDULERS,
        };
        RequestValidator::new(model, &ModelParameters::default()).unwrap()
    }

    fn request() -> GenerateRequest {
        let args = br#"{"seed": 11, "guidance_scale": 5.5, "num_images_per_prompt": 2}"#;
        let prompt = "a \"naïve\" 猫\0\n".as_bytes();
        let inputs = ElementInputs {
            prompt,
            negative_prompt: Some(b"fog"),
            gen_args: Some(args),
            ..ElementInputs::default()
        };
        validator().validate(&inputs).unwrap()
    }

    fn metadata() -> Value {
        Metadata::new(&request(), "sd_base").of_image("PNDMScheduler", 1)
    }

    #[test]
    fn metadata_holds_the_request() {
        let text = metadata();
        assert_eq!(text["prompt"], "a \"naïve\" 猫\0\n");
        assert_eq!(text["negative_prompt"], "fog");
        assert_eq!(text["image_index"], 1);
        assert_eq!(text["model"], "sd_base");
        let generator = text["generator"].as_str().unwrap();
        assert!(generator.starts_with("triton-diffusion 0."), "{generator}");
        assert_eq!(text["gen_args"]["scheduler"], "PNDMScheduler");
    }

    #[test]
    fn metadata_sent_again_gives_the_same_request() {
        let text: Value = serde_json::from_str(&metadata().to_string()).unwrap();
        let gen_args = text["gen_args"].to_string();
        let inputs = ElementInputs {
            prompt: text["prompt"].as_str().unwrap().as_bytes(),
            negative_prompt: Some(text["negative_prompt"].as_str().unwrap().as_bytes()),
            gen_args: Some(gen_args.as_bytes()),
            ..ElementInputs::default()
        };
        let again = validator().validate(&inputs).unwrap();
        let expected = GenerateRequest {
            scheduler: Some("PNDMScheduler".into()),
            ..request()
        };
        assert_eq!(again, expected);
    }
}
