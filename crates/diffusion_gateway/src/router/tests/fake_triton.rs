//! A gRPC server in this process that answers as a Triton with one model does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::triton::fake::{
    InferParameter, ModelConfig, ModelConfigResponse, ModelIndex, ModelInferRequest, ModelInferResponse,
    ModelMetadataResponse, ModelReadyResponse, ModelStreamInferResponse, ModelTransactionPolicy, ParameterChoice,
    RepositoryIndexResponse, TensorMetadata, elements, input,
};

/// The model.
#[derive(Clone)]
pub struct FakeTriton {
    /// Whether the model is decoupled.
    pub decoupled: bool,
    /// The description, if the model gives one.
    pub description: Option<Value>,
    /// What it answers to a request for images.
    pub answers: Vec<ModelStreamInferResponse>,
    /// The arguments of the requests for images.
    pub requests: Arc<Mutex<Vec<Value>>>,
}

impl FakeTriton {
    /// Makes a decoupled model.
    pub fn new(answers: Vec<ModelStreamInferResponse>) -> Self {
        Self {
            decoupled: true,
            description: None,
            answers,
            requests: Arc::default(),
        }
    }

    /// Serves on loopback; returns the address.
    pub async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let triton = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let triton = triton.clone();
                let service = service_fn(move |request| {
                    let triton = triton.clone();
                    async move { Ok::<_, Infallible>(triton.answer(request).await) }
                });
                let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        address
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Frames> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        // Without the flag and the length of a gRPC message.
        let message = &body[5..];
        let messages = match head.uri.path().rsplit('/').next() {
            Some("ModelReady") => vec![ModelReadyResponse { ready: true }.encode_to_vec()],
            Some("ModelConfig") => vec![self.config().encode_to_vec()],
            Some("RepositoryIndex") => vec![index().encode_to_vec()],
            Some("ModelMetadata") => vec![metadata().encode_to_vec()],
            Some("ModelStreamInfer") => self.infer(message).iter().map(Message::encode_to_vec).collect(),
            Some("ModelInfer") => {
                let responses = self.infer(message).into_iter();
                responses
                    .filter_map(|answer| Some(answer.infer_response?.encode_to_vec()))
                    .collect()
            }
            _ => vec![],
        };
        let mut frames: VecDeque<_> = messages.into_iter().map(framed).collect();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        frames.push_back(Frame::trailers(trailers));
        let response = Response::builder().header("content-type", "application/grpc");
        response.body(Frames(frames)).unwrap()
    }

    fn config(&self) -> ModelConfigResponse {
        let decoupled = self.decoupled;
        ModelConfigResponse {
            config: Some(ModelConfig {
                model_transaction_policy: Some(ModelTransactionPolicy { decoupled }),
            }),
        }
    }

    fn infer(&self, message: &[u8]) -> Vec<ModelStreamInferResponse> {
        let request = ModelInferRequest::decode(message).unwrap();
        let index = request
            .inputs
            .iter()
            .position(|input| input.name == "gen_args")
            .unwrap();
        let text = elements(&request.raw_input_contents[index]).unwrap()[0].to_owned();
        let args: Value = serde_json::from_str(&text).unwrap();
        if args["describe"] != true {
            self.requests.lock().unwrap().push(args);
            return self.answers.clone();
        }
        match &self.description {
            Some(description) => vec![parameters(&[("description", text_of(description))])],
            None => vec![error("gen_args: unknown key `describe`")],
        }
    }
}

fn index() -> RepositoryIndexResponse {
    RepositoryIndexResponse {
        models: vec![ModelIndex { name: "sd".into() }],
    }
}

fn metadata() -> ModelMetadataResponse {
    ModelMetadataResponse {
        outputs: vec![TensorMetadata {
            name: "generated_image".into(),
        }],
    }
}

fn text_of(value: &Value) -> ParameterChoice {
    ParameterChoice::String(value.to_string())
}

/// A response with parameters and without an output.
pub fn parameters(parameters: &[(&str, ParameterChoice)]) -> ModelStreamInferResponse {
    let parameter = |(name, choice): &(&str, ParameterChoice)| {
        let parameter_choice = Some(choice.clone());
        ((*name).to_owned(), InferParameter { parameter_choice })
    };
    ModelStreamInferResponse {
        error_message: String::new(),
        infer_response: Some(ModelInferResponse {
            parameters: parameters.iter().map(parameter).collect(),
            ..ModelInferResponse::default()
        }),
    }
}

/// A response with an image.
pub fn with_image(mut response: ModelStreamInferResponse, image: &str) -> ModelStreamInferResponse {
    let (header, raw) = input("generated_image", image.as_bytes());
    if let Some(response) = &mut response.infer_response {
        response.outputs.push(header);
        response.raw_output_contents.push(raw);
    }
    response
}

/// An error.
pub fn error(message: &str) -> ModelStreamInferResponse {
    ModelStreamInferResponse {
        error_message: message.to_owned(),
        infer_response: None,
    }
}

fn framed(message: Vec<u8>) -> Frame<Bytes> {
    let length = u32::try_from(message.len()).unwrap();
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    Frame::data(bytes.into())
}

/// A body of given frames.
struct Frames(VecDeque<Frame<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}
