//! What a request asks for so that it can be watched: progress and previews of a decoupled model.

use crate::description::Description;
use crate::image_request::ImageRequest;
use crate::triton::ReadyModel;

/// The kinds of previews.
pub const PREVIEWS: [&str; 3] = ["linear", "tiny", "vae"];
/// What asks for no previews.
const OFF: &str = "off";
/// The preview that costs next to nothing.
const CHEAP: &str = "linear";
/// Steps of a request if neither it nor the model tells a number: diffusers' default.
const STEPS: f64 = 50.0;
/// Largest `progress_every` of the backend.
const MAX_EVERY: f64 = 1000.0;

/// What a client wants to see before the images are ready.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Watch {
    /// Most previews of an image.
    pub partial_images: u32,
    /// The kind of previews. Without one they are those of the model's default, else linear, and left out if the model has
    /// none.
    pub preview: Option<&'static str>,
    /// Whether the client wants to know the steps.
    pub progress: bool,
}

impl Watch {
    /// Sets the arguments of a request for progress and previews. A model that is not decoupled has none.
    pub async fn ask(&self, model: &ReadyModel, request: &mut ImageRequest) {
        if !model.is_decoupled || (self.partial_images == 0 && !self.progress) {
            return;
        }
        let description = if self.partial_images > 0 {
            Description::of(model).await
        } else {
            None
        };
        self.set(description.as_ref(), request);
    }

    fn set(&self, description: Option<&Description>, request: &mut ImageRequest) {
        let mut every = 1.0;
        if self.partial_images > 0 {
            let preview = self.preview.or_else(|| default_preview(description?));
            request.set("preview", preview);
            // A preview of the other kinds can take as long as a step, so there are no more than the client wants.
            if preview.is_some_and(|preview| preview != CHEAP) {
                let steps = request.number("num_inference_steps");
                let steps = steps.or_else(|| description?.default_steps()).unwrap_or(STEPS);
                let taken = steps * request.number("strength").unwrap_or(1.0);
                every = (taken / f64::from(self.partial_images.saturating_add(1)))
                    .floor()
                    .clamp(1.0, MAX_EVERY);
            }
        }
        if self.partial_images == 0 {
            // The model may have previews by default.
            request.set("preview", Some(OFF));
        }
        request.set("progress_every", Some(every as u64));
    }
}

/// Returns the kind of previews for a client that names none: the model's default, else the cheap one; `None` for a model
/// without previews.
fn default_preview(description: &Description) -> Option<&'static str> {
    let default = description.default_preview();
    let named = PREVIEWS.into_iter().find(|kind| default == Some(*kind));
    named.or_else(|| description.has_preview(CHEAP).then_some(CHEAP))
}

/// Chooses the previews that a client gets: as many as it wants, evenly over the steps.
#[derive(Debug)]
pub struct Partials {
    wanted: u64,
    /// Parts of the way, of `wanted + 1`, that had their preview.
    passed: u64,
}

impl Partials {
    /// Chooses `wanted` previews.
    pub fn new(wanted: u32) -> Self {
        Self {
            wanted: wanted.into(),
            passed: 0,
        }
    }

    /// Returns whether the client gets the preview of this step.
    pub fn takes(&mut self, step: u64, steps: u64) -> bool {
        let parts = step.saturating_mul(self.wanted + 1).checked_div(steps).unwrap_or(0);
        let parts = parts.min(self.wanted);
        let takes = parts > self.passed;
        self.passed = self.passed.max(parts);
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked(watch: Watch, description: &Value, gen_args: &Value) -> Value {
        let mut request = ImageRequest {
            gen_args: gen_args.as_object().cloned().unwrap_or_default(),
            ..ImageRequest::default()
        };
        let description = Description::new(description.as_object().cloned().unwrap_or_default());
        watch.set(Some(&description), &mut request);
        Value::Object(request.gen_args)
    }

    #[test]
    fn cheap_previews_come_with_each_step_and_others_as_often_as_wanted() {
        let arguments = json!({ "num_inference_steps": { "default": 20 }, "preview": { "enum": PREVIEWS } });
        let told = json!({ "pipelines": { "A": { "arguments": arguments } } });
        let watch = |partial_images, preview| Watch {
            partial_images,
            preview,
            progress: true,
        };
        let off = json!({ "progress_every": 1, "preview": "off" });
        let every = |number: u64| json!({ "progress_every": number });
        let preview = |kind: &str, every: u64| json!({ "progress_every": every, "preview": kind });
        assert_eq!(asked(watch(0, None), &told, &json!({})), off);
        let default =
            json!({ "num_inference_steps": { "default": 20 }, "preview": { "enum": PREVIEWS, "default": "vae" } });
        let by_default = json!({ "pipelines": { "A": { "arguments": default } } });
        assert_eq!(asked(watch(3, None), &by_default, &json!({})), preview("vae", 5));
        assert_eq!(asked(watch(3, None), &told, &json!({})), preview("linear", 1));
        assert_eq!(asked(watch(3, None), &json!({}), &json!({})), every(1));
        assert_eq!(asked(watch(3, Some("vae")), &told, &json!({})), preview("vae", 5));
        assert_eq!(asked(watch(3, Some("vae")), &json!({}), &json!({})), preview("vae", 12));
        assert_eq!(asked(watch(100, Some("tiny")), &told, &json!({})), preview("tiny", 1));
        let given = json!({ "num_inference_steps": 60, "strength": 0.5 });
        let got = asked(watch(2, Some("vae")), &told, &given);
        assert_eq!((&got["progress_every"], &got["preview"]), (&json!(10), &json!("vae")));
        let endless = json!({ "num_inference_steps": 1e300 });
        assert_eq!(asked(watch(2, Some("vae")), &told, &endless)["progress_every"], 1000);
    }

    #[test]
    fn previews_are_chosen_evenly() {
        let steps = |wanted: u32, reported: &[u64], steps: u64| {
            let mut partials = Partials::new(wanted);
            let chosen = reported.iter().filter(|step| partials.takes(**step, steps));
            chosen.copied().collect::<Vec<_>>()
        };
        let all: Vec<u64> = (0..=20).collect();
        assert_eq!(steps(3, &all, 20), [5, 10, 15]);
        assert_eq!(steps(0, &all, 20), [0; 0]);
        assert_eq!(steps(100, &[1, 2, 3], 4), [1, 2, 3]);
        // What was left out is not made up for.
        assert_eq!(steps(3, &[1, 12, 13, 14, 16, 17], 20), [12, 16]);
        assert_eq!(steps(3, &[1, 2], 0), [0; 0]);
    }
}
