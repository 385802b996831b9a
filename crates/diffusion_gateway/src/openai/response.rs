//! The response of generations and edits.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::stream::{Described, Route, now, stream};
use crate::error::{ApiError, Result};
use crate::http::{Gateway, RequestId};
use crate::update::Generated;

/// Runs a request and makes OpenAI's response, or its stream of events.
///
/// # Errors
/// Those of the backend.
pub async fn respond(gateway: &Gateway, arguments: Arguments, route: Route, id: &RequestId) -> Result<Response> {
    let Arguments {
        model,
        size,
        quality,
        watch,
        mut request,
    } = arguments;
    let (model, lora) = gateway.find_with_lora(model).await?;
    if let Some(name) = lora {
        if request.gen_args.contains_key("loras") {
            return Err(ApiError::argument("loras", "expected none with a LoRA in `model`"));
        }
        request.set("loras", Some(json!([{ "name": name }])));
    }
    let output_format = request.gen_args.get("output_format").cloned();
    let output_format = output_format.unwrap_or_else(|| "png".into());
    let Some(watch) = watch else {
        let generated = gateway.generation(model, request, id).images().await?;
        return Ok(Json(whole(&generated, &output_format)).into_response());
    };
    watch.ask(&model, &mut request).await;
    let described = Described {
        route,
        id: id.as_str().to_owned(),
        output_format,
        quality,
        size: size.map(|size| format!("{}x{}", size.width, size.height)),
        watch,
    };
    stream(described, gateway.generation(model, request, id)).await
}

/// `seed` and `parameters`, what the backend tells, are not OpenAI's.
fn whole(generated: &Generated, output_format: &Value) -> Value {
    let images = generated.images.iter();
    let data: Vec<_> = images.map(|image| json!({ "b64_json": image })).collect();
    json!({
        "created": now(),
        "data": data,
        "output_format": output_format,
        "seed": generated.seed(),
        "parameters": generated.parameters,
    })
}
