//! The arguments that generations and edits share.

use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::image_request::ImageRequest;
use crate::samplers::class_of;
use crate::size::Size;
use crate::watch::{PREVIEWS, Watch};

/// Arguments of OpenAI that change nothing here: hints for a model of OpenAI's, and the caller's user.
const WITHOUT_EFFECT: [&str; 4] = ["moderation", "style", "input_fidelity", "user"];
/// Most partial images of a request.
const MAX_PARTIAL_IMAGES: u32 = 100;

/// The arguments of a request.
#[derive(Debug, PartialEq)]
pub struct Arguments {
    /// The model's name, or `NAME:LORA`.
    pub model: Option<String>,
    /// The size of the images.
    pub size: Option<Size>,
    /// A hint for a model of OpenAI's. Events repeat it.
    pub quality: &'static str,
    /// What the client wants to see before; `None` for a response that is not streamed.
    pub watch: Option<Watch>,
    /// The request, without its model, size and images.
    pub request: ImageRequest,
}

/// Arguments that the backend gets as they are: numbers, texts and arrays.
const NUMBERS: [&str; 10] = [
    "clip_skip",
    "deep_cache",
    "eta",
    "guidance_rescale",
    "guidance_scale",
    "noise_level",
    "num_inference_steps",
    "padding_mask_crop",
    "seed",
    "strength",
];
const TEXTS: [&str; 4] = ["decoder", "negative_prompt_2", "prompt_2", "prompt_syntax"];
const ARRAYS: [&str; 7] = [
    "crops_coords_top_left",
    "loras",
    "negative_crops_coords_top_left",
    "negative_original_size",
    "negative_target_size",
    "original_size",
    "target_size",
];

impl Arguments {
    /// Takes the arguments, and checks that nothing is left over.
    ///
    /// # Errors
    /// An argument has a wrong type or value, is not supported, or is not known.
    pub fn take(mut fields: Fields) -> Result<Self> {
        let prompt = fields.text("prompt")?;
        let mut request = ImageRequest {
            prompt: prompt.ok_or_else(|| ApiError::argument("prompt", "expected a string, got none"))?,
            negative_prompt: fields.text("negative_prompt")?,
            ..ImageRequest::default()
        };
        let model = fields.text("model")?;
        request.set("num_images_per_prompt", fields.integer("n")?);
        let size = fields.text("size")?;
        let size = size.map_or(Ok(None), |text| Size::parse(&text))?;

        request.set("keep_unmasked", fields.boolean("keep_unmasked")?);
        for name in NUMBERS {
            request.set(name, fields.number(name)?);
        }
        for name in TEXTS {
            request.set(name, fields.text(name)?);
        }
        for name in ARRAYS {
            request.set(name, fields.array(name)?);
        }
        request.set("scheduler", fields.text("scheduler")?.map(class_of));
        request.set("output_format", fields.text("output_format")?);
        request.set("quality", fields.number("output_compression")?);

        let quality = fields.text("quality")?;
        let watch = watch(&mut fields)?;
        refuse_unsupported(&mut fields)?;
        for name in WITHOUT_EFFECT {
            fields.text(name)?;
        }
        fields.end()?;
        Ok(Self {
            model: model.filter(|model| !model.is_empty()),
            size,
            quality: known_quality(quality.as_deref()),
            watch,
            request,
        })
    }
}

/// Returns the quality if it is one of OpenAI's.
fn known_quality(quality: Option<&str>) -> &'static str {
    let known = ["low", "medium", "high", "standard", "hd"];
    known
        .into_iter()
        .find(|known| Some(*known) == quality)
        .unwrap_or("auto")
}

/// Takes what is about a stream; `None` without one.
fn watch(fields: &mut Fields) -> Result<Option<Watch>> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let partial_images = fields.integer("partial_images")?.unwrap_or(0);
    let partial_images = u32::try_from(partial_images)
        .ok()
        .filter(|count| *count <= MAX_PARTIAL_IMAGES);
    let watch = Watch {
        partial_images: partial_images.ok_or_else(|| {
            let message = format!("expected 0 to {MAX_PARTIAL_IMAGES}");
            ApiError::argument("partial_images", message)
        })?,
        preview: fields.choice("preview", &PREVIEWS)?,
        progress: fields.boolean("progress")?.unwrap_or(false),
    };
    if stream {
        return Ok(Some(watch));
    }
    for (name, is_there) in [
        ("partial_images", watch.partial_images > 0),
        ("preview", watch.preview.is_some()),
        ("progress", watch.progress),
    ] {
        if is_there {
            return Err(ApiError::argument(name, "expected none without `stream`: true"));
        }
    }
    Ok(None)
}

/// Refuses values that would change the response.
fn refuse_unsupported(fields: &mut Fields) -> Result<()> {
    if fields.choice("response_format", &["b64_json", "url"])? == Some("url") {
        let message = "expected b64_json: the gateway keeps no images, so there is no URL to give";
        return Err(ApiError::argument("response_format", message));
    }
    if fields.choice("background", &["auto", "opaque", "transparent"])? == Some("transparent") {
        return Err(ApiError::argument(
            "background",
            "expected auto or opaque: images have no transparency",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::{Value, json};

    fn take(value: &Value) -> Result<Arguments> {
        Arguments::take(Fields::of_json(value.to_string().as_bytes())?)
    }

    #[test]
    fn openais_arguments_become_the_backends() {
        let arguments = take(&json!({
            "prompt": "a cat", "model": "sd_base:watercolor", "n": 2, "size": "64x128", "response_format": "b64_json",
            "output_format": "webp", "output_compression": 90, "quality": "high", "style": "vivid", "user": "me",
            "background": "auto", "moderation": "low", "stream": true, "partial_images": 2, "negative_prompt": "dogs",
            "preview": "vae",
            "num_inference_steps": 3, "guidance_scale": 2.5, "seed": 7, "strength": 0.5, "scheduler": "Euler a",
            "noise_level": 20, "prompt_syntax": "weighted", "keep_unmasked": false, "loras": [{ "name": "one" }],
            "prompt_2": "a hat", "target_size": [512, 768], "clip_skip": 1,
        }))
        .unwrap();
        // The name of the LoRA is split off when the models are known.
        assert_eq!(arguments.model.as_deref(), Some("sd_base:watercolor"));
        assert_eq!(arguments.quality, "high");
        let watch = Watch {
            partial_images: 2,
            preview: Some("vae"),
            progress: false,
        };
        assert_eq!(arguments.watch, Some(watch));
        assert_eq!(arguments.size, Size::parse("64x128").unwrap());
        assert_eq!(arguments.request.negative_prompt.as_deref(), Some("dogs"));
        let expected = json!({
            "num_images_per_prompt": 2, "num_inference_steps": 3,
            "guidance_scale": 2.5, "seed": 7, "strength": 0.5, "scheduler": "EulerAncestralDiscreteScheduler",
            "output_format": "webp", "quality": 90, "noise_level": 20, "prompt_syntax": "weighted", "keep_unmasked": false,
            "loras": [{ "name": "one" }], "prompt_2": "a hat", "target_size": [512, 768], "clip_skip": 1,
        });
        assert_eq!(Value::Object(arguments.request.gen_args), expected);
    }

    #[test]
    fn absent_arguments_are_the_models_to_choose() {
        let arguments = take(&json!({ "prompt": "a cat", "model": null, "n": null })).unwrap();
        assert_eq!((arguments.model, arguments.size, arguments.watch), (None, None, None));
        assert_eq!(arguments.quality, "auto");
        assert!(arguments.request.gen_args.is_empty());
    }

    #[test]
    fn what_would_change_the_response_is_refused() {
        for (name, value) in [
            ("prompt", json!(7)),
            ("response_format", json!("url")),
            ("background", json!("transparent")),
            ("stream", json!(1)),
            ("partial_images", json!(2)),
            ("partial_images", json!(-1)),
            ("partial_images", json!(101)),
            ("partial_images", json!(1_i64 << 40)),
            ("preview", json!("linear")),
            ("preview", json!("big")),
            ("progress", json!(true)),
            ("size", json!("big")),
            ("n", json!("two")),
            ("model", json!(["sd"])),
            ("user", json!(7)),
            ("seed", json!("7")),
            ("loras", json!("one")),
            ("keep_unmasked", json!(1)),
        ] {
            let mut body = json!({ "prompt": "a cat" });
            body[name] = value;
            let error = take(&body).unwrap_err();
            assert_eq!((error.status, error.param), (400, Some(name)));
        }
        assert_eq!(take(&json!({})).unwrap_err().param, Some("prompt"));
        assert!(
            take(&json!({ "prompt": "", "sede": 7 }))
                .unwrap_err()
                .message
                .contains("`sede`")
        );
    }
}
