//! From a request for images to Triton's tensors and back.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::error::{ApiError, Result};
use crate::triton::{InferError, ModelInferRequest, ModelInferResponse, ParameterChoice, Servers, elements, input};
use diffusion_core::config::OUTPUT_NAME;

/// How much longer than the time limit of a request the gateway waits for the backend's own answer.
const GRACE: Duration = Duration::from_secs(5);

/// A request for images, in the words of the backend's inputs.
#[derive(Debug, Default, PartialEq)]
pub struct ImageRequest {
    /// The model's name in Triton.
    pub model: String,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// An image file in base64.
    pub image: Option<String>,
    /// A mask in base64: white is repainted.
    pub mask_image: Option<String>,
    /// The arguments. An absent one has the model's default.
    pub gen_args: Map<String, Value>,
}

/// What the backend returned.
#[derive(Debug, PartialEq)]
pub struct Generated {
    /// Image files in base64.
    pub images: Vec<String>,
    /// The response's parameters: the seed, and what else the backend tells.
    pub parameters: Map<String, Value>,
}

impl ImageRequest {
    /// Sets an argument if there is a value.
    pub fn set(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.gen_args.insert(name.to_owned(), value.into());
        }
    }

    /// Sends the request and waits for its images. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Those of the backend; NOT_FOUND for a model that is not ready; UNAVAILABLE if no server answers; a gateway
    /// timeout after `time_limit`.
    pub async fn run(mut self, servers: &Servers, id: &str, time_limit: Duration) -> Result<Generated> {
        let started = Instant::now();
        let milliseconds = u64::try_from(time_limit.as_millis()).unwrap_or(u64::MAX);
        self.set("timeout_ms", Some(milliseconds));
        let answer = tokio::time::timeout(time_limit + GRACE, servers.infer(self.into_triton(id))).await;
        let too_late = || {
            let seconds = time_limit.as_secs();
            let message = format!("the time limit of the gateway, {seconds} s, passed before the images were ready");
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
        };
        match answer {
            Ok(Ok(response)) => Generated::read(response),
            Ok(Err(InferError::NotReady)) => Err(ApiError::model_not_found()),
            Ok(Err(InferError::Unreachable)) => Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no Triton with this model answers",
            )),
            // The backend has no code for a time limit.
            Ok(Err(InferError::Failed(status))) if started.elapsed() >= time_limit => Err(ApiError {
                status: StatusCode::GATEWAY_TIMEOUT.as_u16(),
                ..ApiError::of_triton(&status)
            }),
            Ok(Err(InferError::Failed(status))) => Err(ApiError::of_triton(&status)),
            Err(_) => Err(too_late()),
        }
    }

    fn into_triton(self, id: &str) -> ModelInferRequest {
        let gen_args = Value::Object(self.gen_args).to_string();
        let texts = [
            ("prompt", Some(self.prompt)),
            ("negative_prompt", self.negative_prompt),
            ("image", self.image),
            ("mask_image", self.mask_image),
            ("gen_args", Some(gen_args)),
        ];
        let given = texts.into_iter().filter_map(|(name, text)| Some((name, text?)));
        let (inputs, raw_input_contents) = given.map(|(name, text)| input(name, text.as_bytes())).unzip();
        ModelInferRequest {
            model_name: self.model,
            id: id.to_owned(),
            inputs,
            raw_input_contents,
        }
    }
}

impl Generated {
    fn read(response: ModelInferResponse) -> Result<Self> {
        let output = response
            .outputs
            .iter()
            .position(|output| output.name == OUTPUT_NAME)
            .and_then(|index| response.raw_output_contents.get(index));
        let images = output.and_then(|raw| elements(raw)).ok_or_else(|| {
            ApiError::internal(format!("the model's response has no output `{OUTPUT_NAME}` of texts"))
        })?;
        let images = images.into_iter().map(str::to_owned).collect();
        let value = |choice: ParameterChoice| match choice {
            ParameterChoice::Bool(value) => value.into(),
            ParameterChoice::Int64(value) => value.into(),
            ParameterChoice::Uint64(value) => value.into(),
            ParameterChoice::Double(value) => value.into(),
            ParameterChoice::String(value) => Value::String(value),
        };
        let parameters = response.parameters.into_iter();
        let parameters = parameters.filter_map(|(name, parameter)| Some((name, value(parameter.parameter_choice?))));
        Ok(Self {
            images,
            parameters: parameters.collect(),
        })
    }

    /// Returns the seed that was used.
    pub fn seed(&self) -> Option<&Value> {
        self.parameters.get("seed")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::triton::InferParameter;

    #[test]
    fn triton_gets_only_the_inputs_that_are_given() {
        let mut request = ImageRequest {
            model: "sd".into(),
            prompt: "a cat".into(),
            ..ImageRequest::default()
        };
        request.set("seed", Some(7));
        request.set("strength", None::<f64>);
        let sent = request.into_triton("id");
        let names: Vec<_> = sent.inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["prompt", "gen_args"]);
        assert_eq!(elements(&sent.raw_input_contents[1]), Some(vec![r#"{"seed":7}"#]));
        assert_eq!((sent.model_name.as_str(), sent.id.as_str()), ("sd", "id"));
    }

    #[test]
    fn response_has_images_and_parameters() {
        let (header, raw) = input(OUTPUT_NAME, b"AAE=");
        let seed = InferParameter {
            parameter_choice: Some(ParameterChoice::Int64(7)),
        };
        let response = ModelInferResponse {
            parameters: [("seed".to_owned(), seed)].into(),
            outputs: vec![header],
            raw_output_contents: vec![raw],
        };
        let generated = Generated::read(response.clone()).unwrap();
        assert_eq!(generated.images, ["AAE="]);
        assert_eq!(generated.seed(), Some(&Value::from(7)));
        for damaged in [
            ModelInferResponse {
                raw_output_contents: vec![vec![9]],
                ..response.clone()
            },
            ModelInferResponse {
                outputs: vec![],
                ..response
            },
        ] {
            assert_eq!(Generated::read(damaged).unwrap_err().status, 500);
        }
    }
}
