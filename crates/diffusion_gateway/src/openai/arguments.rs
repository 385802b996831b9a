//! The arguments that generations and edits share.

use serde_json::{Map, Value, json};

use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::generation::ImageRequest;
use crate::samplers::class_of;
use crate::size::Size;

/// Arguments of OpenAI that change nothing here: hints for a model of OpenAI's, and the caller's user.
const WITHOUT_EFFECT: [&str; 5] = ["moderation", "quality", "style", "input_fidelity", "user"];

/// The arguments of a request.
#[derive(Debug, PartialEq)]
pub struct Arguments {
    /// The model's name.
    pub model: Option<String>,
    /// The size of the images.
    pub size: Option<Size>,
    /// The request, without its model, size and images.
    pub request: ImageRequest,
}

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
        let (model, lora) = match fields.text("model")? {
            Some(text) => match text.split_once(':') {
                Some((model, lora)) => (Some(model.to_owned()), Some(lora.to_owned())),
                None => (Some(text), None),
            },
            None => (None, None),
        };
        request.set("loras", lora.map(|name| json!([{ "name": name }])));
        request.set("num_images_per_prompt", fields.integer("n")?);
        let size = fields.text("size")?;
        let size = size.map_or(Ok(None), |text| Size::parse(&text))?;

        for name in ["num_inference_steps", "guidance_scale", "seed", "strength"] {
            request.set(name, fields.number(name)?);
        }
        request.set("scheduler", fields.text("scheduler")?.map(class_of));
        request.set("output_format", fields.text("output_format")?);
        request.set("quality", fields.number("output_compression")?);

        refuse_unsupported(&mut fields)?;
        for name in WITHOUT_EFFECT {
            fields.text(name)?;
        }
        fields.end()?;
        Ok(Self {
            model: model.filter(|model| !model.is_empty()),
            size,
            request,
        })
    }

    /// Returns the format of the images' files.
    pub fn output_format(gen_args: &Map<String, Value>) -> Value {
        gen_args.get("output_format").cloned().unwrap_or_else(|| "png".into())
    }
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
    if fields.boolean("stream")? == Some(true) {
        return Err(ApiError::argument(
            "stream",
            "expected false: responses are not streamed",
        ));
    }
    if fields.integer("partial_images")?.is_some_and(|count| count != 0) {
        return Err(ApiError::argument(
            "partial_images",
            "expected 0: there are no partial images",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn take(value: &Value) -> Result<Arguments> {
        Arguments::take(Fields::of_json(value.to_string().as_bytes())?)
    }

    #[test]
    fn openais_arguments_become_the_backends() {
        let arguments = take(&json!({
            "prompt": "a cat", "model": "sd_base:watercolor", "n": 2, "size": "64x128", "response_format": "b64_json",
            "output_format": "webp", "output_compression": 90, "quality": "high", "style": "vivid", "user": "me",
            "background": "auto", "moderation": "low", "stream": false, "partial_images": 0, "negative_prompt": "dogs",
            "num_inference_steps": 3, "guidance_scale": 2.5, "seed": 7, "strength": 0.5, "scheduler": "Euler a",
        }))
        .unwrap();
        assert_eq!(arguments.model.as_deref(), Some("sd_base"));
        assert_eq!(arguments.size, Size::parse("64x128").unwrap());
        assert_eq!(arguments.request.negative_prompt.as_deref(), Some("dogs"));
        let expected = json!({
            "loras": [{ "name": "watercolor" }], "num_images_per_prompt": 2, "num_inference_steps": 3,
            "guidance_scale": 2.5, "seed": 7, "strength": 0.5, "scheduler": "EulerAncestralDiscreteScheduler",
            "output_format": "webp", "quality": 90,
        });
        assert_eq!(Value::Object(arguments.request.gen_args), expected);
    }

    #[test]
    fn absent_arguments_are_the_models_to_choose() {
        let arguments = take(&json!({ "prompt": "a cat", "model": null, "n": null })).unwrap();
        assert_eq!((arguments.model, arguments.size), (None, None));
        assert!(arguments.request.gen_args.is_empty());
    }

    #[test]
    fn what_would_change_the_response_is_refused() {
        for (name, value) in [
            ("prompt", json!(7)),
            ("response_format", json!("url")),
            ("background", json!("transparent")),
            ("stream", json!(true)),
            ("partial_images", json!(2)),
            ("size", json!("big")),
            ("n", json!("two")),
            ("model", json!(["sd"])),
            ("user", json!(7)),
            ("seed", json!("7")),
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
