//! A request for images, and Triton's tensors of it.

use serde_json::{Map, Value};

use crate::triton::{ModelInferRequest, input};

/// A request for images, in the words of the backend's inputs.
#[derive(Debug, Default, PartialEq)]
pub struct ImageRequest {
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

impl ImageRequest {
    /// Sets an argument if there is a value.
    pub fn set(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.gen_args.insert(name.to_owned(), value.into());
        }
    }

    /// Returns an argument that is a number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.gen_args.get(name).and_then(Value::as_f64)
    }

    /// Makes the request with the id `id` to the model `model`.
    pub fn into_triton(self, model: &str, id: &str) -> ModelInferRequest {
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
            model_name: model.to_owned(),
            id: id.to_owned(),
            inputs,
            raw_input_contents,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::triton::elements;

    #[test]
    fn triton_gets_only_the_inputs_that_are_given() {
        let mut request = ImageRequest {
            prompt: "a cat".into(),
            ..ImageRequest::default()
        };
        request.set("seed", Some(7));
        request.set("strength", None::<f64>);
        assert_eq!((request.number("seed"), request.number("strength")), (Some(7.0), None));
        let sent = request.into_triton("sd", "id");
        let names: Vec<_> = sent.inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["prompt", "gen_args"]);
        assert_eq!(elements(&sent.raw_input_contents[1]), Some(vec![r#"{"seed":7}"#]));
        assert_eq!((sent.model_name.as_str(), sent.id.as_str()), ("sd", "id"));
    }
}
