//! Connections.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::client::Peer;
use super::write_limit::WriteLimit;

/// How long a client may take to send the head of a request.
const HEAD_TIME_LIMIT: Duration = Duration::from_secs(30);
/// How long a client may read nothing of its response.
const WRITE_TIME_LIMIT: Duration = Duration::from_secs(120);
/// Most connections at one time; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// How long no connection is accepted after a failure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `stop` is ready, and then until the running requests have ended or `patience` has passed.
/// From then on, the address refuses connections.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>, patience: Duration) {
    let graceful = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = pin!(stop);
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = free.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = &mut stop => break,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Without it, a response may wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let routes = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(address.ip()));
            routes.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_LIMIT)
            .serve_connection(TokioIo::new(WriteLimit::new(stream, WRITE_TIME_LIMIT)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // Errors are those of a client that sends no HTTP or goes away.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(patience, graceful.shutdown()).await;
}
