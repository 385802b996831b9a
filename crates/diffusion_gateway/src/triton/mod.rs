//! Triton's gRPC service.

mod messages;
mod server;
mod servers;
mod tensors;

#[cfg(test)]
pub use messages::InferParameter;
pub use messages::{ModelInferRequest, ModelInferResponse, ParameterChoice};
pub use servers::{InferError, Servers};
pub use tensors::{elements, input};
