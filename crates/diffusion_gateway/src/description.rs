//! What a model tells about itself.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::image_request::ImageRequest;
use crate::triton::ReadyModel;
use crate::update::parameters;

/// How long a model may take to describe itself. It does not wait for images that are computed.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The backend's description of a model.
#[derive(Debug, PartialEq)]
pub struct Description(Map<String, Value>);

impl Description {
    /// Asks a model for its description; `None` if it gives none, as other backends and earlier versions do.
    ///
    /// A task asks: a client that goes away does not drop the short stream of a decoupled model at its end, for the
    /// reason that [`Responses::end`](crate::triton::Responses::end) has.
    pub async fn of(model: &ReadyModel) -> Option<Self> {
        let mut request = ImageRequest::default();
        request.set("describe", Some(true));
        let request = request.into_triton(&model.name, "");
        let model = model.clone();
        let response = tokio::spawn(async move {
            let answer = async {
                let mut responses = model.infer(request).await.ok()?;
                let response = responses.next().await.ok()?;
                responses.end();
                response
            };
            tokio::time::timeout(TIME_LIMIT, answer).await.ok()?
        });
        let description = parameters(response.await.ok()??.parameters).remove("description")?;
        serde_json::from_str(description.as_str()?).ok().map(Self)
    }

    /// Makes the description of its JSON object.
    #[cfg(test)]
    pub fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    /// Returns the JSON object.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Returns the names of the LoRAs that a request can use.
    pub fn loras(&self) -> Vec<&str> {
        let names = self.0.get("loras").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Returns whether a pipeline of the model has an argument.
    pub fn has_argument(&self, name: &str) -> bool {
        self.arguments(name).next().is_some()
    }

    /// Returns whether the model sends previews of this kind.
    pub fn has_preview(&self, kind: &str) -> bool {
        self.arguments("preview").any(|schema| {
            let kinds = schema.get("enum").and_then(Value::as_array);
            kinds.is_some_and(|kinds| kinds.iter().any(|other| other == kind))
        })
    }

    /// Returns the kind of previews of a request that names none; of the first pipeline, if they differ.
    pub fn default_preview(&self) -> Option<&str> {
        self.arguments("preview")
            .find_map(|schema| schema.get("default")?.as_str())
    }

    /// Returns the steps of a request that names no number; of the first pipeline, if they differ.
    pub fn default_steps(&self) -> Option<f64> {
        self.arguments("num_inference_steps")
            .find_map(|schema| schema.get("default")?.as_f64())
    }

    /// Returns the schema of an argument in each pipeline that has it.
    fn arguments(&self, name: &str) -> impl Iterator<Item = &Value> {
        let pipelines = self.0.get("pipelines").and_then(Value::as_object);
        let pipelines = pipelines.into_iter().flat_map(Map::values);
        pipelines.filter_map(move |pipeline| pipeline.get("arguments")?.get(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn description(value: Value) -> Description {
        Description(value.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn pipelines_tell_previews_and_steps() {
        let arguments = json!({
            "num_inference_steps": { "type": "integer", "default": 25 },
            "preview": { "type": "string", "enum": ["linear", "vae"] },
        });
        let told = description(json!({
            "pipelines": { "A": { "arguments": {} }, "B": { "arguments": arguments } }, "loras": ["one", "two"],
        }));
        assert_eq!(told.loras(), ["one", "two"]);
        assert!(told.has_preview("vae") && !told.has_preview("tiny"));
        assert!(told.has_argument("preview") && !told.has_argument("prompt_syntax"));
        assert_eq!(told.default_steps(), Some(25.0));
    }

    #[test]
    fn what_is_not_there_is_none() {
        for value in [
            json!({}),
            json!({ "pipelines": [], "loras": "one" }),
            json!({ "pipelines": { "A": 1 } }),
        ] {
            let told = description(value);
            assert_eq!((told.loras(), told.default_steps()), (vec![], None));
            assert!(!told.has_preview("linear"));
        }
    }
}
