//! Reads the tensors of a Triton request.

use triton_api::{DataType, Input, Request, decode_bytes};

use diffusion_core::config::TensorSpec;
use diffusion_core::{Error, Result};
use diffusion_request::{ElementInputs, GenerateRequest, RequestValidator};

/// Bytes before each element of a BYTES tensor, which say its length.
const LENGTH_PREFIX: usize = 4;

/// What a Triton request asks for.
pub enum Asked {
    /// Images, for one or more batch elements.
    Images(Vec<GenerateRequest>),
    /// The description of the model.
    Description,
}

/// Reads what a Triton request asks for: images, one image request per batch element, or the description of the model.
///
/// `inputs` are the tensors that the model takes; `max_batch_size` is the model's, 0 for a model
/// without a batch dimension. Every tensor has exactly one element per batch element.
///
/// # Errors
/// `InvalidArgument` naming the tensor and the limit.
pub fn decode(
    request: &Request<'_>,
    inputs: &[TensorSpec],
    max_batch_size: u32,
    validator: &RequestValidator,
) -> Result<Asked> {
    let given = request.inputs().map_err(from_triton)?;
    for input in &given {
        if !inputs.iter().any(|spec| spec.name == input.name()) {
            return Err(Error::invalid_argument(format!(
                "unknown input tensor; {} takes {}",
                validator.class(),
                inputs.iter().map(|spec| spec.name).collect::<Vec<_>>().join(", ")
            )));
        }
    }
    let find = |name: &str| given.iter().find(|input| input.name() == name);
    let Some(prompt) = find("prompt") else {
        return Err(Error::invalid_argument("input `prompt` is missing"));
    };
    let limits = validator.limits();
    let prompts = elements(prompt, max_batch_size, limits.max_prompt_bytes)?;
    let count = prompts.len();
    let optional = |name: &str, limit: usize| -> Result<Option<Vec<Vec<u8>>>> {
        let Some(input) = find(name) else {
            return Ok(None);
        };
        let elements = elements(input, max_batch_size, limit)?;
        if elements.len() != count {
            return Err(Error::invalid_argument(format!(
                "input `{name}` has {} batch element(s), `prompt` has {count}",
                elements.len()
            )));
        }
        Ok(Some(elements))
    };
    let negative_prompts = optional("negative_prompt", limits.max_prompt_bytes)?;
    let gen_args = optional("gen_args", limits.max_gen_args_bytes)?;
    let max_image_bytes = limits.max_image_bytes.unwrap_or(0);
    let images = optional("image", max_image_bytes)?;
    let mask_images = optional("mask_image", max_image_bytes)?;
    let depth_maps = optional("depth_map", max_image_bytes)?;
    fn at(elements: &Option<Vec<Vec<u8>>>, index: usize) -> Option<&[u8]> {
        elements
            .as_ref()
            .and_then(|elements| elements.get(index))
            .map(Vec::as_slice)
    }
    if count == 1 && validator.asks_for_description(at(&gen_args, 0))? {
        return Ok(Asked::Description);
    }
    let requests = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            let inputs = ElementInputs {
                prompt,
                negative_prompt: at(&negative_prompts, index),
                image: at(&images, index),
                mask_image: at(&mask_images, index),
                depth_map: at(&depth_maps, index),
                gen_args: at(&gen_args, index),
            };
            validator.validate(&inputs).map_err(|error| {
                if count == 1 {
                    error
                } else {
                    error.context(format_args!("batch element {index}"))
                }
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let images = |request: &GenerateRequest| request.num_images_per_prompt;
    if requests.windows(2).any(|pair| images(&pair[0]) != images(&pair[1])) {
        return Err(Error::invalid_argument(
            "gen_args: num_images_per_prompt must be the same in all batch elements of a request, because the output has one shape",
        ));
    }
    Ok(Asked::Images(requests))
}

/// Returns the elements of a tensor, one per batch element.
fn elements(input: &Input<'_>, max_batch_size: u32, max_element: usize) -> Result<Vec<Vec<u8>>> {
    let name = input.name();
    if input.datatype() != DataType::Bytes {
        return Err(Error::invalid_argument(format!(
            "input `{name}` must be of type BYTES (TYPE_STRING)"
        )));
    }
    let count = input.element_count().map_err(from_triton)?;
    let expected = if max_batch_size == 0 {
        1
    } else {
        input
            .shape()
            .first()
            .and_then(|&size| usize::try_from(size).ok())
            .unwrap_or(0)
    };
    if expected == 0 || (max_batch_size > 0 && expected > max_batch_size as usize) {
        return Err(Error::invalid_argument(format!(
            "input `{name}` must have 1 to {} batch element(s)",
            max_batch_size.max(1)
        )));
    }
    if count != expected {
        return Err(Error::invalid_argument(format!(
            "input `{name}` must have exactly one element per batch element; expected {expected}, got {count}"
        )));
    }
    let limit = max_element.saturating_add(LENGTH_PREFIX).saturating_mul(expected);
    if input.byte_size() > limit as u64 {
        return Err(Error::invalid_argument(format!(
            "input `{name}` must have at most {max_element} bytes per element"
        )));
    }
    let contents = input.contents(limit).map_err(from_triton)?;
    let elements = decode_bytes(&contents, expected)
        .map_err(|error| from_triton(error.into()).context(format_args!("input `{name}`")))?;
    Ok(elements.into_iter().map(<[u8]>::to_vec).collect())
}

/// Converts Triton's error. Its message has names and sizes, and no contents.
fn from_triton(error: triton_api::Error) -> Error {
    let message = error.message().to_owned();
    match error.code() {
        _ if error.is_out_of_memory() => Error::OutOfMemory(message),
        triton_api::ErrorCode::InvalidArg => Error::InvalidArgument(message),
        triton_api::ErrorCode::Unsupported => Error::Unsupported(message),
        triton_api::ErrorCode::NotFound => Error::NotFound(message),
        triton_api::ErrorCode::Unavailable => Error::Unavailable(message),
        triton_api::ErrorCode::Cancelled => Error::Cancelled(message),
        _ => Error::Internal(message),
    }
}
