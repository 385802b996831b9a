//! Settings of the gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;

use crate::http::{ApiKey, BodyBudget, Gateway};
use crate::triton::Servers;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address of a Triton is wrong.
    #[error("{0}: expected the address of Triton's gRPC as HOST:PORT")]
    Triton(String),
    /// There is no Triton.
    #[error("expected the address of a Triton")]
    NoTriton,
    /// An origin is wrong.
    #[error("{0}: expected an origin such as https://example.com, or *")]
    Origin(String),
    /// The largest body is larger than all of them may be.
    #[error("the limit of all bodies is {all} bytes; expected at least {one}, that of one body")]
    Bodies {
        /// The limit of one body in bytes.
        one: usize,
        /// The limit of all bodies in bytes.
        all: usize,
    },
    /// The key is empty.
    #[error("the API key is empty")]
    EmptyKey,
    /// The address cannot be used.
    #[error("{address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Settings of the gateway.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address that clients use.
    pub listen: SocketAddr,
    /// The gRPC addresses of the Tritons, `HOST:PORT`.
    pub triton: Vec<String>,
    /// The model of requests that name none. Without it, the only model that there is.
    pub default_model: Option<String>,
    /// The time limit of a request.
    pub time_limit: Duration,
    /// The largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// The largest sum of the bodies that are read or served at one time, in bytes.
    pub max_bodies_bytes: usize,
    /// The key that requests must have; none without one.
    pub api_key: Option<String>,
    /// The origins of browsers that may send requests; `*` is any.
    pub cors_origins: Vec<String>,
    /// Whether the page is served at `/`.
    pub page: bool,
}

impl Settings {
    /// Checks the settings. Must be called in a runtime of tokio.
    pub(crate) fn into_gateway(self) -> Result<Gateway, StartError> {
        if self.triton.is_empty() {
            return Err(StartError::NoTriton);
        }
        if self.api_key.as_deref() == Some("") {
            return Err(StartError::EmptyKey);
        }
        if self.max_bodies_bytes < self.max_body_bytes {
            return Err(StartError::Bodies {
                one: self.max_body_bytes,
                all: self.max_bodies_bytes,
            });
        }
        let origin = |origin: String| HeaderValue::from_str(&origin).map_err(|_| StartError::Origin(origin));
        Ok(Gateway {
            servers: Servers::new(&self.triton).map_err(StartError::Triton)?,
            default_model: self.default_model,
            time_limit: self.time_limit,
            max_body_bytes: self.max_body_bytes,
            bodies: BodyBudget::new(self.max_bodies_bytes),
            api_key: self.api_key.as_deref().map(ApiKey::new),
            cors_origins: self.cors_origins.into_iter().map(origin).collect::<Result<_, _>>()?,
            page: self.page,
            metrics: Arc::default(),
            running: Arc::default(),
        })
    }
}
