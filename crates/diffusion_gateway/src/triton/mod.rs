//! Triton's gRPC service.

mod messages;
mod server;
mod servers;
mod tensors;

pub use messages::{InferParameter, ModelInferRequest, ModelInferResponse, ParameterChoice};
pub use servers::{InferError, Servers};
pub use tensors::{elements, input};
