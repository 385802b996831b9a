//! Requests and responses of the KServe protocol, version 2.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::OUTPUT_NAME;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{InvokeError, Result};
use crate::inputs::ElementInputs;

/// The number of dimensions of each input of the model.
pub type Ranks = BTreeMap<String, usize>;

/// Reads the inputs from the model's metadata.
///
/// # Errors
/// The response is not metadata.
pub fn ranks(metadata: &[u8]) -> Result<Ranks> {
    #[derive(Deserialize)]
    struct Metadata {
        inputs: Vec<Input>,
    }
    #[derive(Deserialize)]
    struct Input {
        name: String,
        shape: Vec<i64>,
    }
    let metadata: Metadata = parse(metadata)?;
    let inputs = metadata.inputs.into_iter();
    Ok(inputs.map(|input| (input.name, input.shape.len())).collect())
}

/// Makes the body of the request: one element for each input, with a batch dimension if the model has one.
///
/// # Errors
/// The model does not have one of the inputs.
pub fn body(element: &ElementInputs, ranks: &Ranks) -> Result<Vec<u8>> {
    let mut inputs = Vec::new();
    for (name, element) in &element.inputs {
        let rank = ranks.get(*name).ok_or_else(|| InvokeError::Input {
            given: name,
            expected: ranks.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        inputs.push(json!({
            "name": name,
            "shape": vec![1; *rank],
            "datatype": "BYTES",
            "data": [element],
        }));
    }
    let body = json!({ "inputs": inputs, "outputs": [{ "name": OUTPUT_NAME }] });
    Ok(body.to_string().into_bytes())
}

/// The response of the server.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The response's parameters, sorted.
    pub parameters: Map<String, Value>,
    /// The image files.
    pub images: Vec<Vec<u8>>,
}

impl Answer {
    /// Reads the body of a response.
    ///
    /// # Errors
    /// The body has no images in base64.
    pub fn read(answer: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Response {
            #[serde(default)]
            parameters: Map<String, Value>,
            outputs: Vec<Output>,
        }
        #[derive(Deserialize)]
        struct Output {
            name: String,
            data: Vec<String>,
        }
        let response: Response = parse(answer)?;
        let output = response.outputs.into_iter().find(|output| output.name == OUTPUT_NAME);
        let output = output.ok_or_else(|| InvokeError::Response(format!("no output `{OUTPUT_NAME}`")))?;
        let images = output
            .data
            .iter()
            .map(|text| {
                let bytes = BASE64_STANDARD.decode(text);
                bytes.map_err(|error| InvokeError::Response(format!("`{OUTPUT_NAME}`: {error}")))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            parameters: response.parameters,
            images,
        })
    }
}

fn parse<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| InvokeError::Response(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn body_has_the_shapes_of_the_model() {
        let metadata = br#"{"name": "sd", "inputs": [
            {"name": "prompt", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "gen_args", "datatype": "BYTES", "shape": [1]}]}"#;
        let ranks = ranks(metadata).unwrap();
        let mut element = ElementInputs {
            inputs: vec![("prompt", "a cat".into()), ("gen_args", "{}".into())],
        };
        let sent: Value = serde_json::from_slice(&body(&element, &ranks).unwrap()).unwrap();
        assert_eq!(sent["inputs"][0]["shape"], json!([1, 1]));
        assert_eq!(sent["inputs"][0]["data"], json!(["a cat"]));
        assert_eq!(sent["inputs"][1]["shape"], json!([1]));
        element.inputs.push(("image", String::new()));
        let error = body(&element, &ranks).unwrap_err().to_string();
        assert_eq!(
            error,
            "the model has no input `image`, expected one of gen_args, prompt"
        );
    }

    #[test]
    fn read_refuses_responses_without_images() {
        let answer = br#"{"model_name": "sd", "parameters": {"seed": 7},
            "outputs": [{"name": "generated_image", "datatype": "BYTES", "shape": [1, 2], "data": ["AAE=", "Ag=="]}]}"#;
        let answer = Answer::read(answer).unwrap();
        assert_eq!(answer.images, [vec![0, 1], vec![2]]);
        assert_eq!(answer.parameters["seed"], 7);
        for bad in [
            "",
            "{}",
            r#"{"outputs": []}"#,
            r#"{"outputs": [{"name": "generated_image", "data": ["?"]}]}"#,
        ] {
            assert!(Answer::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
