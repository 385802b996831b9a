//! The description of a model, for clients that show what a user can choose.

use serde_json::{Value, json};

use crate::pipelines::{Components, EmbeddingPool, LoraPool};
use diffusion_core::Result;
use diffusion_request::RequestValidator;

/// Describes a model: its pipelines with their arguments, its limits, and the adapters that are in its folders now.
/// `is_decoupled` says whether a request may have several responses.
///
/// # Errors
/// Those of [`RequestValidator::describe`].
pub fn description(validator: &RequestValidator, components: &Components, is_decoupled: bool) -> Result<Value> {
    let mut description = validator.describe(components.scheduler_name())?;
    if !is_decoupled && let Some(pipelines) = description.get_mut("pipelines").and_then(Value::as_object_mut) {
        for arguments in pipelines
            .values_mut()
            .filter_map(|pipeline| pipeline.get_mut("arguments"))
        {
            if let Some(arguments) = arguments.as_object_mut() {
                arguments.remove("progress_every");
                arguments.remove("preview");
            }
        }
    }
    let loras = components.loras().map(LoraPool::names).unwrap_or_default();
    let embeddings = components.embeddings().map(EmbeddingPool::words).unwrap_or_default();
    description.insert("loras".into(), json!(loras));
    description.insert("embeddings".into(), json!(embeddings));
    description.insert("decoupled".into(), json!(is_decoupled));
    Ok(Value::Object(description))
}
