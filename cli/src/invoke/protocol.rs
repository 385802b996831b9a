//! The bodies of the KServe protocol, version 2, as Triton speaks it.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::OUTPUT_NAME;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{InvokeError, Result};
use crate::inputs::Row;

/// Dimensions of each input that the model takes.
pub type Ranks = BTreeMap<String, usize>;

/// The model's inputs, from its metadata.
///
/// # Errors
/// The answer is no metadata.
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

/// The request's body: each input is one element, with or without a batch dimension, as the model has it.
///
/// # Errors
/// The model does not take one of the inputs.
pub fn body(row: &Row, ranks: &Ranks) -> Result<Vec<u8>> {
    let mut inputs = Vec::new();
    for (name, element) in &row.inputs {
        let rank = ranks.get(*name).ok_or_else(|| InvokeError::Input {
            given: name,
            taken: ranks.keys().cloned().collect::<Vec<_>>().join(", "),
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

/// What the server answers.
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
    /// It has no images in base64.
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
        let output = output.ok_or_else(|| InvokeError::Answer(format!("no output `{OUTPUT_NAME}`")))?;
        let images = output
            .data
            .iter()
            .map(|text| {
                let bytes = BASE64_STANDARD.decode(text);
                bytes.map_err(|error| InvokeError::Answer(format!("`{OUTPUT_NAME}`: {error}")))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            parameters: response.parameters,
            images,
        })
    }
}

fn parse<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| InvokeError::Answer(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_request_has_the_shapes_that_the_model_has() {
        let metadata = br#"{"name": "sd", "inputs": [
            {"name": "prompt", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "gen_args", "datatype": "BYTES", "shape": [1]}]}"#;
        let ranks = ranks(metadata).unwrap();
        let mut row = Row {
            inputs: vec![("prompt", "a cat".into()), ("gen_args", "{}".into())],
        };
        let sent: Value = serde_json::from_slice(&body(&row, &ranks).unwrap()).unwrap();
        assert_eq!(sent["inputs"][0]["shape"], json!([1, 1]));
        assert_eq!(sent["inputs"][0]["data"], json!(["a cat"]));
        assert_eq!(sent["inputs"][1]["shape"], json!([1]));
        row.inputs.push(("image", String::new()));
        let error = body(&row, &ranks).unwrap_err().to_string();
        assert_eq!(error, "the model takes no input `image`; it takes gen_args, prompt");
    }

    #[test]
    fn answers_are_read_and_others_refused() {
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
