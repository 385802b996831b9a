//! The response of generations and edits as a stream of events.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::response::Response;
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::generation::Generation;
use crate::http::events::{self, Sender, event};
use crate::http::observe::log_failure;
use crate::images::size_of;
use crate::update::{Generated, Progress, Update};
use crate::watch::{Partials, Watch};

/// What the events of a route are called.
#[derive(Clone, Copy)]
pub struct Route {
    /// The path, for the log.
    pub path: &'static str,
    /// The name in front of the events' types.
    pub events: &'static str,
}

/// What the events of a stream say of its request.
pub struct Described {
    /// The route.
    pub route: Route,
    /// The id of the request, for the log.
    pub id: String,
    /// The format of the images' files.
    pub output_format: Value,
    /// OpenAI's `quality` of the request.
    pub quality: &'static str,
    /// The size that the request has.
    pub size: Option<String>,
    /// What the client wants to see.
    pub watch: Watch,
}

/// Waits for the first update, and answers with a stream of it and those that follow.
///
/// A task reads the updates and never waits for the client: otherwise a slow reader would hold up all requests that
/// share the connection to Triton.
///
/// # Errors
/// Those of the backend before the first update. Later ones are events.
pub async fn stream(described: Described, mut generation: Generation) -> Result<Response> {
    let first = generation.next().await?;
    let (sender, response) = events::stream();
    tokio::spawn(async move {
        tokio::select! {
            // The request is cancelled.
            () = sender.closed() => {}
            () = described.send(first, generation, &sender) => {}
        }
    });
    Ok(response)
}

impl Described {
    async fn send(&self, first: Update, mut generation: Generation, sender: &Sender) {
        let mut partials = Partials::new(self.watch.partial_images);
        let mut sent = 0;
        let mut update = Ok(first);
        loop {
            match update {
                Ok(Update::Progress(progress)) => self.offer(progress, &mut partials, &mut sent, sender),
                Ok(Update::Completed(generated)) => return self.complete(generated, sender).await,
                Err(error) => return self.fail(&error, sender).await,
            }
            update = generation.next().await;
        }
    }

    /// Sends the events of an update unless the client is slow.
    fn offer(&self, progress: Progress, partials: &mut Partials, sent: &mut u64, sender: &Sender) {
        let mut text = String::new();
        if self.watch.progress {
            text.push_str(&self.progress(&progress));
        }
        let has_images = !progress.images.is_empty() && partials.takes(progress.step, progress.steps);
        if has_images {
            for (index, image) in progress.images.into_iter().enumerate() {
                let kind = format!("{}.partial_image", self.route.events);
                let mut data = self.image(&kind, image, index);
                data["partial_image_index"] = json!(*sent);
                data["size"] = json!(self.size.as_deref().unwrap_or("auto"));
                text.push_str(&event(&kind, &data));
            }
        }
        if !text.is_empty() && sender.offer(text.into()) {
            *sent += u64::from(has_images);
        }
    }

    fn progress(&self, progress: &Progress) -> String {
        let kind = format!("{}.progress", self.route.events);
        let mut data = json!({ "type": kind, "step": progress.step, "steps": progress.steps });
        for (name, value) in [("eta_ms", progress.eta_ms), ("queue_position", progress.queue_position)] {
            if let Some(value) = value {
                data[name] = json!(value);
            }
        }
        event(&kind, &data)
    }

    async fn complete(&self, generated: Generated, sender: &Sender) {
        let (seed, parameters) = (json!(generated.seed()), json!(generated.parameters));
        for (index, image) in generated.images.into_iter().enumerate() {
            let kind = format!("{}.completed", self.route.events);
            let size = self.size.clone().unwrap_or_else(|| match size_of(&image) {
                Ok((width, height)) => format!("{width}x{height}"),
                Err(_) => "auto".into(),
            });
            let mut data = self.image(&kind, image, index);
            data["size"] = size.into();
            data["seed"] = seed.clone();
            data["parameters"] = parameters.clone();
            // Nothing here counts tokens.
            data["usage"] = json!({
                "input_tokens": 0,
                "input_tokens_details": { "image_tokens": 0, "text_tokens": 0 },
                "output_tokens": 0,
                "total_tokens": 0,
            });
            if !sender.send(event(&kind, &data).into()).await {
                return;
            }
        }
    }

    /// Returns the fields that all events with an image have.
    fn image(&self, kind: &str, image: String, index: usize) -> Value {
        json!({
            "type": kind,
            "b64_json": image,
            "background": "opaque",
            "created_at": now(),
            "output_format": self.output_format,
            "quality": self.quality,
            "image_index": index,
        })
    }

    async fn fail(&self, error: &ApiError, sender: &Sender) {
        log_failure(self.route.path, &self.id, error);
        sender.outcome.fail(error.status);
        let text = event("error", &error.to_json());
        sender.send(Bytes::from(text)).await;
    }
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
