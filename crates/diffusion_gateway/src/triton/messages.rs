//! The messages of Triton's gRPC service `inference.GRPCInferenceService`, as far as the gateway needs them.
//!
//! Written by hand, because a machine that builds the gateway needs no `protoc`. Names and field numbers are those of
//! `grpc_service.proto` in <https://github.com/triton-inference-server/common>, compared with `service_pb2` of
//! tritonclient 2.73. prost ignores the fields that are left out here.

use std::collections::HashMap;

use prost::{Message, Oneof};

/// Asks whether the server is ready.
#[derive(Clone, PartialEq, Message)]
pub struct ServerReadyRequest {}

/// The answer to [`ServerReadyRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct ServerReadyResponse {
    /// Whether the server is ready.
    #[prost(bool, tag = "1")]
    pub ready: bool,
}

/// Asks whether a model is ready.
#[derive(Clone, PartialEq, Message)]
pub struct ModelReadyRequest {
    /// The model's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The answer to [`ModelReadyRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct ModelReadyResponse {
    /// Whether the model is ready.
    #[prost(bool, tag = "1")]
    pub ready: bool,
}

/// Asks for the tensors of a model.
#[derive(Clone, PartialEq, Message)]
pub struct ModelMetadataRequest {
    /// The model's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The answer to [`ModelMetadataRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct ModelMetadataResponse {
    /// The outputs.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor of [`ModelMetadataResponse`].
#[derive(Clone, PartialEq, Message)]
pub struct TensorMetadata {
    /// The tensor's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Asks for the configuration of a model.
#[derive(Clone, PartialEq, Message)]
pub struct ModelConfigRequest {
    /// The model's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The answer to [`ModelConfigRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct ModelConfigResponse {
    /// The configuration.
    #[prost(message, optional, tag = "1")]
    pub config: Option<ModelConfig>,
}

/// The configuration of a model.
#[derive(Clone, PartialEq, Message)]
pub struct ModelConfig {
    /// How many responses a request has.
    #[prost(message, optional, tag = "19")]
    pub model_transaction_policy: Option<ModelTransactionPolicy>,
}

/// How many responses a request has.
#[derive(Clone, PartialEq, Message)]
pub struct ModelTransactionPolicy {
    /// Whether there may be several.
    #[prost(bool, tag = "1")]
    pub decoupled: bool,
}

/// Asks for the models of the repositories.
#[derive(Clone, PartialEq, Message)]
pub struct RepositoryIndexRequest {
    /// Whether only models that are ready are listed.
    #[prost(bool, tag = "2")]
    pub ready: bool,
}

/// The answer to [`RepositoryIndexRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct RepositoryIndexResponse {
    /// A model with several versions is there several times.
    #[prost(message, repeated, tag = "1")]
    pub models: Vec<ModelIndex>,
}

/// A model of [`RepositoryIndexResponse`].
#[derive(Clone, PartialEq, Message)]
pub struct ModelIndex {
    /// The model's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The value of a parameter.
#[derive(Clone, PartialEq, Message)]
pub struct InferParameter {
    /// The value.
    #[prost(oneof = "ParameterChoice", tags = "1, 2, 3, 4, 5")]
    pub parameter_choice: Option<ParameterChoice>,
}

/// The types of [`InferParameter`].
#[derive(Clone, PartialEq, Oneof)]
pub enum ParameterChoice {
    /// true or false.
    #[prost(bool, tag = "1")]
    Bool(bool),
    /// A signed integer.
    #[prost(int64, tag = "2")]
    Int64(i64),
    /// Text.
    #[prost(string, tag = "3")]
    String(String),
    /// A number.
    #[prost(double, tag = "4")]
    Double(f64),
    /// An unsigned integer.
    #[prost(uint64, tag = "5")]
    Uint64(u64),
}

/// An inference request.
#[derive(Clone, PartialEq, Message)]
pub struct ModelInferRequest {
    /// The model's name.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// The request's id, for Triton's logs and traces.
    #[prost(string, tag = "3")]
    pub id: String,
    /// Names, types and shapes of the inputs.
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<TensorHeader>,
    /// The bytes of each input, in the order of `inputs`.
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub raw_input_contents: Vec<Vec<u8>>,
}

/// `InferInputTensor` and `InferOutputTensor`, which have the same fields, without their values.
#[derive(Clone, PartialEq, Message)]
pub struct TensorHeader {
    /// The tensor's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The data type, such as `BYTES`.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// The shape.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
}

/// The response to an inference request.
#[derive(Clone, PartialEq, Message)]
pub struct ModelInferResponse {
    /// The response's parameters.
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, InferParameter>,
    /// Names, types and shapes of the outputs.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<TensorHeader>,
    /// The bytes of each output, in the order of `outputs`.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub raw_output_contents: Vec<Vec<u8>>,
}

/// A response of a stream.
#[derive(Clone, PartialEq, Message)]
pub struct ModelStreamInferResponse {
    /// Why the request failed; empty if it did not.
    #[prost(string, tag = "1")]
    pub error_message: String,
    /// The response.
    #[prost(message, optional, tag = "2")]
    pub infer_response: Option<ModelInferResponse>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// What tritonclient's `service_pb2.ModelInferRequest` of the same request serializes to.
    #[test]
    fn infer_request_has_the_bytes_of_tritonclient() {
        let request = ModelInferRequest {
            model_name: "sd".into(),
            id: "7".into(),
            inputs: vec![TensorHeader {
                name: "prompt".into(),
                datatype: "BYTES".into(),
                shape: vec![1, 1],
            }],
            raw_input_contents: vec![vec![1, 0, 0, 0, b'a']],
        };
        let expected = b"\x0a\x02sd\x1a\x017\x2a\x13\x0a\x06prompt\x12\x05BYTES\x1a\x02\x01\x01\x3a\x05\x01\0\0\0a";
        assert_eq!(request.encode_to_vec(), expected);
    }

    #[test]
    fn infer_response_of_tritonclient_is_read() {
        // With a model's name, a version and an id, which are ignored.
        let bytes = b"\x0a\x02sd\x12\x011\x1a\x017\x22\x0a\x0a\x04seed\x12\x02\x10\x05\
            \x2a\x1c\x0a\x0fgenerated_image\x12\x05BYTES\x1a\x02\x01\x01\x32\x05\x01\0\0\0a";
        let response = ModelInferResponse::decode(&bytes[..]).unwrap();
        let seed = response.parameters["seed"].parameter_choice.clone();
        assert_eq!(seed, Some(ParameterChoice::Int64(5)));
        assert_eq!(response.outputs[0].name, "generated_image");
        assert_eq!(response.raw_output_contents, [b"\x01\0\0\0a"]);
    }

    #[test]
    fn policy_and_stream_of_tritonclient_are_read() {
        // With the model's name and its backend, which are ignored.
        let bytes = b"\x0a\x15\x0a\x02sd\x8a\x01\x09diffusion\x9a\x01\x02\x08\x01";
        let config = ModelConfigResponse::decode(&bytes[..]).unwrap().config.unwrap();
        assert!(config.model_transaction_policy.unwrap().decoupled);
        let bytes = b"\x0a\x02no\x12\x07\x0a\x02sd\x1a\x012";
        let response = ModelStreamInferResponse::decode(&bytes[..]).unwrap();
        assert_eq!(response.error_message, "no");
        assert!(response.infer_response.is_some());
    }
}
