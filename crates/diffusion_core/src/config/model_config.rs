//! Completion and validation of a Triton model configuration, as pure functions on its JSON.
//!
//! Triton prints every scalar field of a `config.pbtxt`: an absent `max_batch_size` is 0, an absent list `[]` and an
//! absent type `TYPE_INVALID`. A backend may only change inputs, outputs and `max_batch_size`.

use serde_json::{Map, Value, json};

use super::PipelineClass;
use crate::error::{Error, Result};
use crate::quote::is_plain_name;
use crate::suggest::did_you_mean;

/// The output of every pipeline: base64 of the encoded images, `[batch, num_images_per_prompt]`.
pub const OUTPUT_NAME: &str = "generated_image";

/// `max_batch_size` of a model whose configuration lists neither inputs nor outputs.
pub const DEFAULT_MAX_BATCH_SIZE: i64 = 8;

const TYPE: &str = "TYPE_STRING";

/// An input of a pipeline: `TYPE_STRING`, with one value for each batch element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the tensor.
    pub name: &'static str,
    /// True if a request may omit the input.
    pub optional: bool,
}

const fn required(name: &'static str) -> TensorSpec {
    TensorSpec { name, optional: false }
}

const fn optional(name: &'static str) -> TensorSpec {
    TensorSpec { name, optional: true }
}

/// Returns the inputs of a model folder of that class.
///
/// A `StableDiffusionPipeline` folder also serves image to image (if a request has an `image`) and inpainting (if it
/// also has a `mask_image`): the three pipelines have the same components.
pub const fn inputs_of(class: PipelineClass) -> &'static [TensorSpec] {
    const NEGATIVE: TensorSpec = optional("negative_prompt");
    const GEN_ARGS: TensorSpec = optional("gen_args");
    const PROMPT: TensorSpec = required("prompt");
    const IMAGE: TensorSpec = required("image");
    match class {
        PipelineClass::StableDiffusion | PipelineClass::StableDiffusionXl => {
            &const {
                let (image, mask) = (optional("image"), optional("mask_image"));
                [PROMPT, NEGATIVE, image, mask, GEN_ARGS]
            }
        }
        PipelineClass::LatentConsistency => &[PROMPT, NEGATIVE, GEN_ARGS],
        PipelineClass::Img2Img | PipelineClass::Img2ImgXl | PipelineClass::Upscale => {
            &[PROMPT, NEGATIVE, IMAGE, GEN_ARGS]
        }
        PipelineClass::Depth2Img => &const { [PROMPT, NEGATIVE, IMAGE, optional("depth_map"), GEN_ARGS] },
        PipelineClass::Inpaint | PipelineClass::InpaintXl => {
            &const { [PROMPT, NEGATIVE, IMAGE, required("mask_image"), GEN_ARGS] }
        }
    }
}

/// Returns the configuration with missing values filled in, or `None` if nothing is missing.
///
/// - A missing list of inputs or outputs becomes the pipeline's list.
/// - A known tensor without type or dims gets `TYPE_STRING` and `[1]`. The output gets `[-1]`, because a batch element
///   has `num_images_per_prompt` images.
/// - If both lists are missing, a `max_batch_size` of 0 becomes [`DEFAULT_MAX_BATCH_SIZE`]. With a listed tensor, 0 means
///   that the model has no batch dimension.
///
/// Nothing else changes. [`validate_model_config`] rejects wrong values.
pub fn complete_model_config(config: &Value, inputs: &[TensorSpec]) -> Option<Value> {
    let mut completed = config.as_object()?.clone();
    let is_empty = |key: &str| match completed.get(key) {
        None | Some(Value::Null) => true,
        Some(list) => list.as_array().is_some_and(Vec::is_empty),
    };
    let (no_input, no_output) = (is_empty("input"), is_empty("output"));
    if no_input && no_output && max_batch_size(&completed) == 0 {
        completed.insert("max_batch_size".into(), DEFAULT_MAX_BATCH_SIZE.into());
    }
    if no_input {
        let tensors = inputs.iter().map(|spec| {
            let mut tensor = json!({"name": spec.name, "data_type": TYPE, "dims": [1]});
            if spec.optional {
                tensor["optional"] = true.into();
            }
            tensor
        });
        completed.insert("input".into(), tensors.collect());
    }
    if no_output {
        let tensor = json!({"name": OUTPUT_NAME, "data_type": TYPE, "dims": [-1]});
        completed.insert("output".into(), json!([tensor]));
    }
    for (list, dim) in [("input", 1), ("output", -1)] {
        let tensors = completed.get_mut(list).and_then(Value::as_array_mut);
        for tensor in tensors.into_iter().flatten().filter_map(Value::as_object_mut) {
            let known = tensor.get("name").is_some_and(|name| match list {
                "input" => inputs.iter().any(|spec| name == spec.name),
                _ => name == OUTPUT_NAME,
            });
            if known {
                complete_tensor(tensor, dim);
            }
        }
    }
    let completed = Value::Object(completed);
    (completed != *config).then_some(completed)
}

fn complete_tensor(tensor: &mut Map<String, Value>, dim: i64) {
    if matches!(
        tensor.get("data_type").and_then(Value::as_str),
        None | Some("TYPE_INVALID")
    ) {
        tensor.insert("data_type".into(), TYPE.into());
    }
    let no_dims = tensor
        .get("dims")
        .is_none_or(|dims| dims.as_array().is_some_and(Vec::is_empty));
    if no_dims {
        tensor.insert("dims".into(), json!([dim]));
    }
}

fn max_batch_size(config: &Map<String, Value>) -> i64 {
    config.get("max_batch_size").and_then(Value::as_i64).unwrap_or(0)
}

/// Checks a completed configuration against the inputs of the pipeline.
///
/// A tensor has one dim, 1 or -1. Without a batch dimension (`max_batch_size` 0) a second one is allowed, so a client may
/// send `[1,1]`. Optional inputs may be missing from the list; Triton then rejects them in requests.
///
/// # Errors
/// `InvalidArgument` with the name of the tensor; `Unsupported` for decoupled models, sequence batching and reshaped
/// tensors.
pub fn validate_model_config(config: &Value, inputs: &[TensorSpec]) -> Result<()> {
    let config = config
        .as_object()
        .ok_or_else(|| Error::invalid_argument("expected a JSON object as the model configuration"))?;
    if config.get("sequence_batching").is_some_and(|s| !s.is_null()) {
        return Err(Error::unsupported(
            "sequence_batching is not supported; requests are independent",
        ));
    }
    let max_dims = if max_batch_size(config) > 0 { 1 } else { 2 };

    let input_names: Vec<&str> = inputs.iter().map(|spec| spec.name).collect();
    let listed = validate_list(config, "input", &input_names, max_dims)?;
    if let Some(missing) = inputs
        .iter()
        .find(|spec| !spec.optional && !listed.contains(&spec.name))
    {
        return Err(Error::invalid_argument(format!(
            "input `{}` is missing from the model configuration",
            missing.name
        )));
    }
    let listed = validate_list(config, "output", &[OUTPUT_NAME], max_dims)?;
    if listed.is_empty() {
        return Err(Error::invalid_argument(format!(
            "output `{OUTPUT_NAME}` is missing from the model configuration"
        )));
    }
    Ok(())
}

/// Checks the tensors of `list`, "input" or "output", and returns their names.
fn validate_list<'a>(
    config: &Map<String, Value>,
    list: &str,
    known: &[&'a str],
    max_dims: usize,
) -> Result<Vec<&'a str>> {
    let tensors = match config.get(list) {
        None | Some(Value::Null) => &Vec::new(),
        Some(Value::Array(tensors)) => tensors,
        Some(_) => {
            return Err(Error::invalid_argument(format!(
                "expected a list as `{list}` of the model configuration"
            )));
        }
    };
    let mut seen = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let given = tensor.get("name").and_then(Value::as_str).unwrap_or("");
        let Some(name) = known.iter().copied().find(|name| *name == given) else {
            let what = if is_plain_name(given) {
                format!("unknown {list} `{given}`")
            } else {
                format!("unknown {list}")
            };
            return Err(Error::invalid_argument(format!(
                "{what}; expected {}{}",
                known.join(", "),
                did_you_mean(given, known.iter().copied())
            )));
        };
        let wrong = |what: String| Error::invalid_argument(format!("{list} `{name}` {what}"));
        if seen.contains(&name) {
            return Err(wrong("is listed twice".into()));
        }
        seen.push(name);
        if tensor.get("data_type").and_then(Value::as_str) != Some(TYPE) {
            return Err(wrong(format!("must have data_type {TYPE}")));
        }
        let dims = tensor.get("dims").and_then(Value::as_array);
        let good = dims.is_some_and(|dims| {
            (1..=max_dims).contains(&dims.len()) && dims.iter().all(|dim| matches!(dim_size(dim), Some(1 | -1)))
        });
        if !good {
            return Err(wrong(if max_dims == 1 {
                "must have dims [1] or [-1]".into()
            } else {
                "must have one or two dims, each 1 or -1, when max_batch_size is 0".into()
            }));
        }
        if tensor.get("reshape").is_some_and(|r| !r.is_null()) {
            return Err(Error::unsupported(format!("{list} `{name}`: reshape is not supported")));
        }
    }
    Ok(seen)
}

/// Reads a dim: a number from Triton, a string in protobuf's JSON form.
fn dim_size(dim: &Value) -> Option<i64> {
    dim.as_i64().or_else(|| dim.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests;
