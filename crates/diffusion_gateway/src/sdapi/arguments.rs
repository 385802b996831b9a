//! The arguments that txt2img and img2img share.

use serde_json::{Map, Value};

use super::prompt_loras;
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::image_request::ImageRequest;
use crate::samplers::class_of;
use crate::size::Size;

/// The size of images in stable-diffusion-webui if a request has none.
const DEFAULT_SIDE: u32 = 512;

/// The arguments of a request.
#[derive(Debug, PartialEq)]
pub struct Arguments {
    /// The model's name.
    pub model: Option<String>,
    /// The size of the images.
    pub size: Size,
    /// Whether the response has the images.
    pub send_images: bool,
    /// The request, without its model, size and images.
    pub request: ImageRequest,
}

impl Arguments {
    /// Takes the arguments. Unlike OpenAI's, others may be left over: clients send dozens that change nothing.
    ///
    /// # Errors
    /// An argument has a wrong type or value, or asks for what would change the images and is not supported.
    pub fn take(fields: &mut Fields) -> Result<Self> {
        refuse_unsupported(fields)?;
        let mut overrides = fields.object("override_settings")?;
        let (prompt, loras) = prompt_loras::take(&fields.text("prompt")?.unwrap_or_default())?;
        let mut request = ImageRequest {
            prompt,
            negative_prompt: fields.text("negative_prompt")?.filter(|text| !text.is_empty()),
            ..ImageRequest::default()
        };
        // Brackets have weights there.
        request.set("prompt_syntax", Some("weighted"));
        request.set("loras", Some(loras).filter(|loras| !loras.is_empty()));
        request.set("num_inference_steps", fields.number("steps")?);
        request.set("guidance_scale", fields.number("cfg_scale")?);
        request.set("eta", fields.number("eta")?);
        // -1 is a random seed.
        request.set("seed", fields.integer("seed")?.filter(|seed| *seed != -1));
        request.set("num_images_per_prompt", images(fields)?);
        request.set("clip_skip", clip_skip(fields, &mut overrides)?);
        let sampler = fields.text("sampler_name")?.or(fields.text("sampler_index")?);
        let sampler = sampler.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("automatic"));
        request.set("scheduler", sampler.map(class_of));
        Ok(Self {
            model: checkpoint(overrides)?,
            size: Size::new("width", side(fields, "width")?, side(fields, "height")?)?,
            send_images: fields.boolean("send_images")?.unwrap_or(true),
            request,
        })
    }
}

/// Refuses what would change the images.
fn refuse_unsupported(fields: &mut Fields) -> Result<()> {
    for name in ["enable_hr", "restore_faces", "tiling"] {
        if fields.boolean(name)? == Some(true) {
            return Err(ApiError::argument(name, "expected false: this is not supported"));
        }
    }
    for name in ["script_name", "refiner_checkpoint"] {
        if fields.text(name)?.is_some_and(|text| !text.is_empty()) {
            return Err(ApiError::argument(name, "expected none: this is not supported"));
        }
    }
    if !fields.object("alwayson_scripts")?.is_empty() {
        return Err(ApiError::argument(
            "alwayson_scripts",
            "expected none: scripts are not supported",
        ));
    }
    let scheduler = fields.text("scheduler")?.unwrap_or_default();
    if !scheduler.is_empty() && !scheduler.eq_ignore_ascii_case("automatic") {
        let message = "expected automatic: the spacing of noise levels is that of the checkpoint";
        return Err(ApiError::argument("scheduler", message));
    }
    Ok(())
}

fn images(fields: &mut Fields) -> Result<Option<i64>> {
    let (batch_size, n_iter) = (fields.integer("batch_size")?, fields.integer("n_iter")?);
    let count = match (batch_size, n_iter) {
        (None, None) => return Ok(None),
        (batch_size, n_iter) => batch_size.unwrap_or(1).checked_mul(n_iter.unwrap_or(1)),
    };
    count
        .map(Some)
        .ok_or_else(|| ApiError::argument("batch_size", "expected a smaller number of images"))
}

/// 1 there is diffusers' 0: the last layer of the text encoder.
fn clip_skip(fields: &mut Fields, overrides: &mut Map<String, Value>) -> Result<Option<i64>> {
    let name = "CLIP_stop_at_last_layers";
    let layers = match (fields.integer("clip_skip")?, overrides.remove(name)) {
        (Some(layers), _) => layers,
        (None, None | Some(Value::Null)) => return Ok(None),
        (None, Some(value)) => value
            .as_i64()
            .ok_or_else(|| ApiError::argument("override_settings", "CLIP_stop_at_last_layers: expected an integer"))?,
    };
    Ok(layers.checked_sub(1).filter(|skip| *skip > 0))
}

fn checkpoint(mut overrides: Map<String, Value>) -> Result<Option<String>> {
    match overrides.remove("sd_model_checkpoint") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name).filter(|name| !name.is_empty())),
        Some(_) => Err(ApiError::argument(
            "override_settings",
            "sd_model_checkpoint: expected a string",
        )),
    }
}

fn side(fields: &mut Fields, name: &'static str) -> Result<u32> {
    let side = fields
        .integer(name)?
        .map_or(Some(DEFAULT_SIDE), |side| u32::try_from(side).ok());
    side.ok_or_else(|| ApiError::argument(name, "expected a number of pixels"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::json;

    fn take(value: &Value) -> Result<Arguments> {
        Arguments::take(&mut Fields::of_json(value.to_string().as_bytes())?)
    }

    #[test]
    fn webuis_arguments_become_the_backends() {
        let arguments = take(&json!({
            "prompt": "a (red) cat <lora:one:0.5>", "negative_prompt": "", "steps": 20, "cfg_scale": 7, "seed": -1,
            "width": 64, "height": 128, "sampler_name": "Euler", "scheduler": "Automatic", "batch_size": 2, "n_iter": 3,
            "restore_faces": false, "enable_hr": false, "save_images": true, "send_images": true, "hr_scale": 2,
            "override_settings": { "sd_model_checkpoint": "sd_base", "CLIP_stop_at_last_layers": 2, "sd_vae": null },
        }))
        .unwrap();
        assert_eq!(arguments.model.as_deref(), Some("sd_base"));
        assert_eq!(arguments.size, Size::new("width", 64, 128).unwrap());
        assert_eq!(arguments.request.prompt, "a (red) cat ");
        assert_eq!(arguments.request.negative_prompt, None);
        let expected = json!({
            "prompt_syntax": "weighted", "loras": [{ "name": "one", "scale": 0.5 }], "num_inference_steps": 20,
            "guidance_scale": 7, "num_images_per_prompt": 6, "clip_skip": 1, "scheduler": "EulerDiscreteScheduler",
        });
        assert_eq!(Value::Object(arguments.request.gen_args), expected);
    }

    #[test]
    fn an_empty_request_has_the_default_size_and_the_models_arguments() {
        let arguments = take(&json!({})).unwrap();
        assert_eq!(
            arguments.size,
            Size {
                width: 512,
                height: 512
            }
        );
        assert_eq!(
            Value::Object(arguments.request.gen_args),
            json!({ "prompt_syntax": "weighted" })
        );
        assert!(arguments.send_images);
    }

    #[test]
    fn what_would_change_the_images_is_refused() {
        for (name, value) in [
            ("enable_hr", json!(true)),
            ("restore_faces", json!(true)),
            ("tiling", json!(true)),
            ("script_name", json!("x")),
            ("refiner_checkpoint", json!("x")),
            ("alwayson_scripts", json!({ "x": {} })),
            ("scheduler", json!("Karras")),
            ("width", json!(-1)),
            ("width", json!(0)),
            ("height", json!(1_i64 << 40)),
            ("steps", json!("20")),
            ("batch_size", json!(1.5)),
            ("override_settings", json!([])),
            ("override_settings", json!({ "sd_model_checkpoint": 1 })),
            ("override_settings", json!({ "CLIP_stop_at_last_layers": "x" })),
        ] {
            let error = take(&json!({ name: value })).unwrap_err();
            assert_eq!((error.status, error.param), (400, Some(name)), "{name}");
        }
        let many = json!({ "batch_size": i64::MAX, "n_iter": 2 });
        assert_eq!(take(&many).unwrap_err().param, Some("batch_size"));
        assert_eq!(
            take(&json!({ "clip_skip": i64::MIN })).map(|a| a.request.gen_args.len()),
            Ok(1)
        );
    }
}
