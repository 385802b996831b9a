//! The gateway: an HTTP server that speaks what clients of image APIs speak, in front of one or several Tritons.
//!
//! It translates: OpenAI's image API and a part of stable-diffusion-webui's become requests of the backend `diffusion`
//! over gRPC, and its responses go back. It keeps no state between requests, so any number of gateways can stand side
//! by side.

mod description;
mod error;
mod fields;
mod generation;
mod http;
mod image_request;
mod images;
mod openai;
mod page;
mod router;
mod running;
mod samplers;
mod sdapi;
mod settings;
mod size;
mod triton;
mod update;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use router::router;
pub use settings::{Settings, StartError};

/// How much longer than the time limit of a request the gateway waits for running requests when it ends.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT, and then finishes the running requests. `started` gets the address.
///
/// # Errors
/// A setting is wrong, or the address cannot be used.
pub fn run(settings: Settings, started: impl FnOnce(SocketAddr)) -> Result<(), StartError> {
    let patience = settings.time_limit + LAST_ANSWERS;
    let listen = settings.listen;
    let failed = |source| StartError::Listen {
        address: listen,
        source,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(failed)?.block_on(async {
        // The clients of Triton need the runtime.
        let gateway = Arc::new(settings.into_gateway()?);
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        started(listener.local_addr().map_err(failed)?);
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        http::serve(listener, router(gateway), stop, patience).await;
        Ok(())
    })
}
