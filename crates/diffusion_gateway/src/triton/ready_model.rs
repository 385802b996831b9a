//! A model that is ready on a server, and the responses to a request.

use std::time::Duration;

use tonic::{Status, Streaming};

use super::messages::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use super::server::Server;
use super::stream_error;

/// How long Triton may take to end a stream after the last response.
const END: Duration = Duration::from_secs(5);

/// A model that was ready on a server a moment ago.
#[derive(Clone)]
pub struct ReadyModel {
    /// The server.
    pub(super) server: Server,
    /// The model's name.
    pub name: String,
    /// Whether the model may send several responses to a request.
    pub is_decoupled: bool,
}

/// The responses to a request. Dropping them cancels the request.
pub enum Responses {
    /// The only response, until it is taken.
    One(Option<ModelInferResponse>),
    /// Those of a decoupled model.
    Many(Box<Streaming<ModelStreamInferResponse>>),
}

impl ReadyModel {
    /// Sends a request and waits for the first response. Dropping the future cancels the request.
    ///
    /// The request is sent once: a server that fails may have begun to compute.
    ///
    /// # Errors
    /// Those of the model, and UNAVAILABLE if the connection fails.
    pub async fn infer(&self, request: ModelInferRequest) -> Result<Responses, Status> {
        // Triton refuses a decoupled model in a call with one response.
        if self.is_decoupled {
            let responses = self.server.infer_stream(request).await?;
            return Ok(Responses::Many(Box::new(responses)));
        }
        Ok(Responses::One(Some(self.server.infer(request).await?)))
    }
}

impl Responses {
    /// Returns the next response; `None` after the last one.
    ///
    /// # Errors
    /// As for [`ReadyModel::infer`].
    pub async fn next(&mut self) -> Result<Option<ModelInferResponse>, Status> {
        let responses = match self {
            Self::One(response) => return Ok(response.take()),
            Self::Many(responses) => responses,
        };
        match responses.message().await? {
            None => Ok(None),
            Some(response) if response.error_message.is_empty() => Ok(response.infer_response),
            Some(response) => {
                self.end();
                Err(stream_error::status(response.error_message))
            }
        }
    }

    /// Reads on to the end, after the last response or an error. A task does it: if the client goes away now, it goes
    /// on.
    ///
    /// Triton 2.51 keeps a stream for ever that is dropped between its last response and its end, and waits for it when
    /// it shuts down.
    pub fn end(&mut self) {
        if let Self::Many(mut responses) = std::mem::replace(self, Self::One(None)) {
            tokio::spawn(async move {
                let rest = async { while let Ok(Some(_)) = responses.message().await {} };
                // What comes is without contents, and the answer is there already.
                let _ = tokio::time::timeout(END, rest).await;
            });
        }
    }
}
