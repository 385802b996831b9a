//! One Triton, over gRPC.

use std::time::Duration;

use axum::http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::messages::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStreamInferResponse, RepositoryIndexRequest,
    RepositoryIndexResponse, ServerReadyRequest, ServerReadyResponse,
};

/// Largest message of Triton that is read, in bytes.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Time limit for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for a question about the state of the server. An inference has none here.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is silent before TCP asks whether the other side is there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// A Triton. The connection is made at the first call, and again after a failure. Copies share it.
#[derive(Clone)]
pub struct Server {
    channel: Channel,
}

impl Server {
    /// Makes the client of the server at `address`, `host:port`.
    ///
    /// # Errors
    /// The address is not `host:port`.
    pub fn new(address: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .tcp_nodelay(true);
        Ok(Self {
            channel: endpoint.connect_lazy(),
        })
    }

    /// Asks whether the server is ready.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn is_ready(&self) -> Result<bool, Status> {
        let path = "/inference.GRPCInferenceService/ServerReady";
        let answer: ServerReadyResponse = self.state(path, ServerReadyRequest {}).await?;
        Ok(answer.ready)
    }

    /// Asks whether a model is ready.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn is_model_ready(&self, model: &str) -> Result<bool, Status> {
        let path = "/inference.GRPCInferenceService/ModelReady";
        let question = ModelReadyRequest { name: model.to_owned() };
        let answer: ModelReadyResponse = self.state(path, question).await?;
        Ok(answer.ready)
    }

    /// Returns the outputs' names of a model.
    ///
    /// # Errors
    /// The server does not answer, or does not know the model.
    pub async fn outputs(&self, model: &str) -> Result<Vec<String>, Status> {
        let path = "/inference.GRPCInferenceService/ModelMetadata";
        let question = ModelMetadataRequest { name: model.to_owned() };
        let answer: ModelMetadataResponse = self.state(path, question).await?;
        Ok(answer.outputs.into_iter().map(|output| output.name).collect())
    }

    /// Returns the names of the models that are ready.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn ready_models(&self) -> Result<Vec<String>, Status> {
        let path = "/inference.GRPCInferenceService/RepositoryIndex";
        let answer: RepositoryIndexResponse = self.state(path, RepositoryIndexRequest { ready: true }).await?;
        Ok(answer.models.into_iter().map(|model| model.name).collect())
    }

    /// Sends an inference request and waits for its response. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Those of the model, and UNAVAILABLE if the connection fails.
    pub async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.call("/inference.GRPCInferenceService/ModelInfer", request).await
    }

    /// Asks whether a model may send several responses to a request.
    ///
    /// # Errors
    /// The server does not answer, or does not know the model.
    pub async fn is_decoupled(&self, model: &str) -> Result<bool, Status> {
        let path = "/inference.GRPCInferenceService/ModelConfig";
        let question = ModelConfigRequest { name: model.to_owned() };
        let answer: ModelConfigResponse = self.state(path, question).await?;
        let policy = answer.config.and_then(|config| config.model_transaction_policy);
        Ok(policy.is_some_and(|policy| policy.decoupled))
    }

    /// Sends an inference request and waits for the first response. Dropping the future or the stream cancels the
    /// request.
    ///
    /// # Errors
    /// As for [`Server::infer`], here or in the stream.
    pub async fn infer_stream(
        &self,
        request: ModelInferRequest,
    ) -> Result<Streaming<ModelStreamInferResponse>, Status> {
        let request = Request::new(request);
        let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
        // The service takes several requests. To the protocol, one request and the end are a stream of one.
        let answer = self
            .grpc()
            .await?
            .server_streaming(request, path, ProstCodec::default())
            .await?;
        Ok(answer.into_inner())
    }

    async fn state<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let answer = tokio::time::timeout(STATE_TIMEOUT, self.call(path, question)).await;
        answer.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")))
    }

    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::from_static(path);
        let request = Request::new(question);
        let answer = self.grpc().await?.unary(request, path, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }
}
