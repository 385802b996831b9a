//! `POST /sdapi/v1/txt2img` and `POST /sdapi/v1/img2img`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::progress::images;
use crate::description::Description;
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::http::client::ClientAddress;
use crate::http::{Gateway, RequestId, Shared};
use crate::images::{apart, inverted, resized};
use crate::watch::Watch;

/// What `progress` tells. The number is for previews that are not cheap, which a model can have by default.
const WATCH: Watch = Watch {
    partial_images: 10,
    preview: None,
    progress: true,
};

/// Text to image.
///
/// # Errors
/// The arguments are wrong, and those of the backend.
pub async fn txt2img(
    State(gateway): State<Shared>,
    Extension(id): Extension<RequestId>,
    client: ClientAddress,
    body: Bytes,
) -> Result<Json<Value>> {
    let mut arguments = Arguments::take(&mut Fields::of_json(&body)?)?;
    drop(body);
    with_size(&mut arguments);
    response(&gateway, arguments, &id, client).await
}

/// Image to image, and inpainting with a mask: white is repainted.
///
/// # Errors
/// The arguments are wrong, an image is damaged, and those of the backend.
pub async fn img2img(
    State(gateway): State<Shared>,
    Extension(id): Extension<RequestId>,
    client: ClientAddress,
    body: Bytes,
) -> Result<Json<Value>> {
    let mut fields = Fields::of_json(&body)?;
    drop(body);
    let image = init_image(&mut fields)?;
    let mask = fields.text("mask")?;
    let invert = fields.integer("inpainting_mask_invert")?.unwrap_or(0) != 0;
    let mut arguments = Arguments::take(&mut fields)?;
    let strength = fields.number("denoising_strength")?;
    arguments.request.set("strength", strength);
    if let Some(mask) = mask {
        with_size(&mut arguments);
        arguments.request.image = Some(image);
        let mask = if invert {
            apart(move || inverted(&mask)).await?
        } else {
            mask
        };
        arguments.request.mask_image = Some(mask);
    } else {
        let size = arguments.size;
        let image = apart(move || resized(image, size.width, size.height)).await?;
        arguments.request.image = Some(image);
    }
    response(&gateway, arguments, &id, client).await
}

fn with_size(arguments: &mut Arguments) {
    arguments.request.set("width", Some(arguments.size.width));
    arguments.request.set("height", Some(arguments.size.height));
}

fn init_image(fields: &mut Fields) -> Result<String> {
    match fields.value("init_images") {
        Some(Value::Array(images)) => match <[Value; 1]>::try_from(images) {
            Ok([Value::String(image)]) => Some(image),
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(|| ApiError::argument("init_images", "expected an array of one image in base64"))
}

/// Runs a request. The response has what clients read of stable-diffusion-webui's.
async fn response(
    gateway: &Gateway,
    arguments: Arguments,
    id: &RequestId,
    ClientAddress(client): ClientAddress,
) -> Result<Json<Value>> {
    let Arguments {
        model,
        mut request,
        send_images,
        ..
    } = arguments;
    let model = gateway.find(model).await?;
    let description = Description::of(&model).await;
    if description.is_some_and(|description| !description.has_argument("prompt_syntax")) {
        // Stable Diffusion XL has plain prompts.
        request.gen_args.remove("prompt_syntax");
    }
    let info = json!({
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt.as_deref().unwrap_or_default(),
        "sd_model_name": model.name,
    });
    let parameters = json!(request.gen_args);
    let generated = match client {
        None => gateway.generation(model, request, id).images().await?,
        // Nobody else can ask for the progress.
        Some(client) => {
            let running = gateway.running.begin(client);
            WATCH.ask(&model, &mut request).await;
            images(gateway.generation(model, request, id), running.job()).await?
        }
    };
    let mut info = info;
    info["seed"] = json!(generated.seed());
    // All images of a request have one seed.
    info["all_seeds"] = json!(vec![generated.seed(); generated.images.len()]);
    let images = if send_images { generated.images } else { Vec::new() };
    // `info` is a text there too.
    Ok(Json(
        json!({ "images": images, "parameters": parameters, "info": info.to_string() }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_images_is_an_array_of_one_text() {
        let take = |value: &Value| {
            let mut fields = Fields::of_json(json!({ "init_images": value }).to_string().as_bytes())?;
            init_image(&mut fields)
        };
        assert_eq!(take(&json!(["AAE="])), Ok("AAE=".into()));
        for wrong in [json!(null), json!([]), json!(["a", "b"]), json!("a"), json!([1])] {
            let error = take(&wrong).map_err(|error| (error.status, error.param));
            assert_eq!(error, Err((400, Some("init_images"))), "{wrong}");
        }
    }
}
