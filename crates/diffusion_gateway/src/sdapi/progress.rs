//! Progress and interruption of a client's requests.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};

use crate::error::{ApiError, CLIENT_CLOSED_REQUEST, Result};
use crate::generation::Generation;
use crate::http::Shared;
use crate::http::client::ClientAddress;
use crate::running::Job;
use crate::update::{Generated, Progress, Update};

/// `GET /sdapi/v1/progress`: that of the client's oldest request that runs, and zeros without one.
pub async fn progress(State(gateway): State<Shared>, ClientAddress(client): ClientAddress, uri: Uri) -> Json<Value> {
    let jobs = client.map(|client| gateway.running.of(client)).unwrap_or_default();
    let oldest = jobs.first();
    let progress = oldest.map(|job| job.progress()).unwrap_or_default();
    let Progress { step, steps, .. } = progress;
    let done = if steps == 0 {
        0.0
    } else {
        (step as f64 / steps as f64).min(1.0)
    };
    let image = progress.images.first().filter(|_| !skips_image(&uri));
    let waits = progress
        .queue_position
        .map(|position| format!("waiting, {position} before it"));
    Json(json!({
        "progress": done,
        "eta_relative": progress.eta_ms.unwrap_or_default() as f64 / 1000.0,
        "state": {
            "skipped": false,
            "interrupted": oldest.is_some_and(|job| job.is_interrupted()),
            "stopping_generation": false,
            "job": "",
            "job_count": jobs.len(),
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": image,
        "textinfo": waits,
    }))
}

/// Reads `skip_current_image` in the query.
fn skips_image(uri: &Uri) -> bool {
    let pairs = uri.query().unwrap_or_default().split('&');
    let mut values = pairs.filter_map(|pair| pair.strip_prefix("skip_current_image="));
    values.any(|value| value.eq_ignore_ascii_case("true") || value == "1")
}

/// `POST /sdapi/v1/interrupt`: ends the client's requests under `/sdapi`. stable-diffusion-webui answers with `{}` too.
///
/// # Errors
/// 501 behind a proxy: it would end the requests of all clients.
pub async fn interrupt(State(gateway): State<Shared>, ClientAddress(client): ClientAddress) -> Result<Json<Value>> {
    let client = client.ok_or_else(|| {
        let message = "interrupt is not supported behind a proxy, where all clients have one address; a client that \
                       closes its connection cancels its request";
        ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
    })?;
    for job in gateway.running.of(client) {
        job.interrupt();
    }
    Ok(Json(json!({})))
}

/// Waits for the images of a job, and keeps its progress.
///
/// # Errors
/// Those of the backend, and 499 if the client interrupts the job. stable-diffusion-webui answers with an unfinished
/// image then; here there is none.
pub async fn images(mut generation: Generation, job: &Job) -> Result<Generated> {
    let updates = async {
        loop {
            match generation.next().await? {
                Update::Progress(progress) => job.set(progress),
                Update::Completed(generated) => return Ok(generated),
            }
        }
    };
    tokio::select! {
        biased;
        () = job.interrupted() => Err(interrupted()),
        generated = updates => generated,
    }
}

fn interrupted() -> ApiError {
    ApiError {
        status: CLIENT_CLOSED_REQUEST,
        message: "the request was interrupted before its image was ready".into(),
        param: None,
        code: Some("interrupted"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn query_can_leave_the_image_out() {
        for (query, skips) in [
            ("", false),
            ("?skip_current_image=false", false),
            ("?skip_current_image=true", true),
            ("?a=b&skip_current_image=True", true),
            ("?skip_current_image=1", true),
            ("?xskip_current_image=1", false),
        ] {
            let uri = format!("/sdapi/v1/progress{query}").parse().unwrap();
            assert_eq!(skips_image(&uri), skips, "{query}");
        }
    }
}
