//! What the backend returns: the progress of a request, and its images.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::error::{ApiError, Result};
use crate::triton::{ModelInferResponse, ParameterChoice, elements};
use diffusion_core::config::OUTPUT_NAME;

/// Triton's own parameter of a response in a stream.
const FINAL_RESPONSE: &str = "triton_final_response";

/// A response of the backend.
#[derive(Debug, PartialEq)]
pub enum Update {
    /// The request waits or runs.
    Progress(Progress),
    /// The images are ready. Nothing comes after it.
    Completed(Generated),
}

/// How far a request is.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Progress {
    /// Steps that are taken.
    pub step: u64,
    /// Steps that there will be.
    pub steps: u64,
    /// Milliseconds until the last step; not known before the first one.
    pub eta_ms: Option<u64>,
    /// Requests that come before this one, while it waits.
    pub queue_position: Option<u64>,
    /// Previews, image files in base64: none, or as many as there will be images.
    pub images: Vec<String>,
}

/// The images of a request.
#[derive(Debug, PartialEq)]
pub struct Generated {
    /// Image files in base64.
    pub images: Vec<String>,
    /// The response's parameters: the seed, and what else the backend tells.
    pub parameters: Map<String, Value>,
}

impl Update {
    /// Reads a response. `None` is one without contents, with which Triton may end a stream.
    ///
    /// # Errors
    /// The output is not of texts.
    pub fn read(response: ModelInferResponse) -> Result<Option<Self>> {
        let images = images(&response)?;
        let parameters = parameters(response.parameters);
        let number = |name: &str| parameters.get(name).and_then(Value::as_u64);
        if let Some(step) = number("step") {
            return Ok(Some(Self::Progress(Progress {
                step,
                steps: number("steps").unwrap_or_default(),
                eta_ms: number("eta_ms"),
                queue_position: number("queue_position"),
                images: images.unwrap_or_default(),
            })));
        }
        Ok(images.map(|images| Self::Completed(Generated { images, parameters })))
    }
}

impl Generated {
    /// Returns the seed that was used.
    pub fn seed(&self) -> Option<&Value> {
        self.parameters.get("seed")
    }
}

/// Returns the texts of the output; `None` without an output.
fn images(response: &ModelInferResponse) -> Result<Option<Vec<String>>> {
    let Some(index) = response.outputs.iter().position(|output| output.name == OUTPUT_NAME) else {
        return Ok(None);
    };
    let raw = response.raw_output_contents.get(index);
    let texts = raw.and_then(|raw| elements(raw)).ok_or_else(|| {
        ApiError::internal(format!(
            "the output `{OUTPUT_NAME}` of the model's response is not of texts"
        ))
    })?;
    Ok(Some(texts.into_iter().map(str::to_owned).collect()))
}

/// Returns the parameters of a response, without Triton's own.
pub fn parameters(parameters: HashMap<String, crate::triton::InferParameter>) -> Map<String, Value> {
    let value = |choice: ParameterChoice| match choice {
        ParameterChoice::Bool(value) => value.into(),
        ParameterChoice::Int64(value) => value.into(),
        ParameterChoice::Uint64(value) => value.into(),
        ParameterChoice::Double(value) => value.into(),
        ParameterChoice::String(value) => Value::String(value),
    };
    let parameters = parameters.into_iter().filter(|(name, _)| name != FINAL_RESPONSE);
    parameters
        .filter_map(|(name, parameter)| Some((name, value(parameter.parameter_choice?))))
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::triton::{InferParameter, input};

    fn response(parameters: &[(&str, ParameterChoice)], image: Option<&str>) -> ModelInferResponse {
        let parameter = |(name, choice): &(&str, ParameterChoice)| {
            let parameter_choice = Some(choice.clone());
            ((*name).to_owned(), InferParameter { parameter_choice })
        };
        let (outputs, raw_output_contents) = image
            .map(|text| input(OUTPUT_NAME, text.as_bytes()))
            .into_iter()
            .unzip();
        ModelInferResponse {
            parameters: parameters.iter().map(parameter).collect(),
            outputs,
            raw_output_contents,
        }
    }

    #[test]
    fn response_with_images_and_without_a_step_is_the_last() {
        let last = [
            ("seed", ParameterChoice::Int64(7)),
            (FINAL_RESPONSE, ParameterChoice::Bool(true)),
        ];
        let update = Update::read(response(&last, Some("AAE="))).unwrap().unwrap();
        let parameters = Map::from_iter([("seed".to_owned(), Value::from(7))]);
        let images = vec!["AAE=".to_owned()];
        assert_eq!(update, Update::Completed(Generated { images, parameters }));
    }

    #[test]
    fn response_with_a_step_is_progress_with_a_preview_or_without() {
        let [step, steps, eta] = [3, 20, 900].map(ParameterChoice::Int64);
        let numbers = [("step", step), ("steps", steps), ("eta_ms", eta)];
        for image in [None, Some("AAE=")] {
            let expected = Progress {
                step: 3,
                steps: 20,
                eta_ms: Some(900),
                queue_position: None,
                images: image.map(str::to_owned).into_iter().collect(),
            };
            let update = Update::read(response(&numbers, image)).unwrap();
            assert_eq!(update, Some(Update::Progress(expected)));
        }
        let waits = [
            ("step", ParameterChoice::Int64(0)),
            ("queue_position", ParameterChoice::Int64(2)),
        ];
        let expected = Progress {
            queue_position: Some(2),
            ..Progress::default()
        };
        assert_eq!(
            Update::read(response(&waits, None)),
            Ok(Some(Update::Progress(expected)))
        );
    }

    #[test]
    fn response_without_contents_is_nothing_and_a_damaged_one_an_error() {
        let flag = [(FINAL_RESPONSE, ParameterChoice::Bool(true))];
        assert_eq!(Update::read(response(&flag, None)), Ok(None));
        let mut damaged = response(&[], Some("AAE="));
        damaged.raw_output_contents = vec![vec![9]];
        assert_eq!(Update::read(damaged.clone()).unwrap_err().status, 500);
        damaged.raw_output_contents = vec![];
        assert_eq!(Update::read(damaged).unwrap_err().status, 500);
    }
}
