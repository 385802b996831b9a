//! Triton's gRPC service.

mod messages;
mod ready_model;
mod server;
mod servers;
mod stream_error;
mod tensors;

pub use messages::{InferParameter, ModelInferRequest, ModelInferResponse, ParameterChoice};
pub use ready_model::{ReadyModel, Responses};
pub use servers::{NoModel, Servers};
pub use tensors::{elements, input};

/// What a server for tests is made of.
#[cfg(test)]
pub mod fake {
    pub use super::messages::*;
    pub use super::tensors::{elements, input};
}
