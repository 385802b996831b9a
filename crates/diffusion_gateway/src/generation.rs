//! A request for images that a model works on.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::error::{ApiError, Result};
use crate::image_request::ImageRequest;
use crate::triton::{ModelInferRequest, ReadyModel, Responses};
use crate::update::{Generated, Update};

/// How much longer than the time limit of a request the gateway waits for the backend's own answer.
const GRACE: Duration = Duration::from_secs(5);

/// A request that is sent to a model when its first update is asked for. Dropping it cancels the request.
pub struct Generation {
    state: State,
    started: Instant,
    time_limit: Duration,
}

enum State {
    Begins(ReadyModel, Box<ModelInferRequest>),
    Runs(Responses),
    Ended,
}

impl Generation {
    /// Makes a request with the id `id`, which may take `time_limit`.
    pub fn new(model: ReadyModel, mut request: ImageRequest, id: &str, time_limit: Duration) -> Self {
        let milliseconds = u64::try_from(time_limit.as_millis()).unwrap_or(u64::MAX);
        request.set("timeout_ms", Some(milliseconds));
        let request = request.into_triton(&model.name, id);
        Self {
            state: State::Begins(model, Box::new(request)),
            started: Instant::now(),
            time_limit,
        }
    }

    /// Waits for the next update. After the images or an error there is none, and the error of another call is
    /// Internal. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Those of the backend; UNAVAILABLE if the server goes away; a gateway timeout after the time limit.
    pub async fn next(&mut self) -> Result<Update> {
        let deadline = self.started + self.time_limit + GRACE;
        let state = std::mem::replace(&mut self.state, State::Ended);
        let (update, mut responses) = timeout_at(deadline, receive(state))
            .await
            .map_err(|_| {
                let seconds = self.time_limit.as_secs();
                let message =
                    format!("the time limit of the gateway, {seconds} s, passed before the images were ready");
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
            })?
            .map_err(|failure| self.error(failure))?;
        match update {
            Update::Progress(_) => self.state = State::Runs(responses),
            Update::Completed(_) => responses.end(),
        }
        Ok(update)
    }

    /// Waits for the images. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Those of [`Generation::next`].
    pub async fn images(mut self) -> Result<Generated> {
        loop {
            if let Update::Completed(generated) = self.next().await? {
                return Ok(generated);
            }
        }
    }

    fn error(&self, failure: Failure) -> ApiError {
        match failure {
            // The backend has no code for a time limit.
            Failure::Triton(status) if self.started.elapsed() >= self.time_limit => ApiError {
                status: StatusCode::GATEWAY_TIMEOUT.as_u16(),
                ..ApiError::of_triton(&status)
            },
            Failure::Triton(status) => ApiError::of_triton(&status),
            Failure::Response(error) => error,
        }
    }
}

enum Failure {
    Triton(Status),
    Response(ApiError),
}

/// Returns the next update, and the responses that come after it.
async fn receive(state: State) -> Result<(Update, Responses), Failure> {
    let mut responses = match state {
        State::Begins(model, request) => model.infer(*request).await.map_err(Failure::Triton)?,
        State::Runs(responses) => responses,
        State::Ended => return Err(Failure::Response(ApiError::internal("the request has ended"))),
    };
    while let Some(response) = responses.next().await.map_err(Failure::Triton)? {
        if let Some(update) = Update::read(response).map_err(Failure::Response)? {
            return Ok((update, responses));
        }
    }
    Err(Failure::Response(ApiError::internal(
        "the model's responses ended without images",
    )))
}
