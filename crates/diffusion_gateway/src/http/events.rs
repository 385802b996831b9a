//! Server-sent events: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Interval;

/// Most messages that wait for a slow reader. What comes after them is left out, except for the last ones.
const MAX_WAITING: usize = 4;
/// How long a stream is silent before it gets a comment, so that no proxy takes the connection for dead.
const SILENCE: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b": waiting\n\n");
/// Tells nginx to pass on what it has.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The status with which a stream ends, for the metrics. It is that of the response until something fails.
#[derive(Clone)]
pub struct Outcome(Arc<AtomicU16>);

impl Outcome {
    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the status of a failure.
    pub fn fail(&self, status: u16) {
        self.0.store(status, Ordering::Relaxed);
    }
}

/// The sender of a stream. The stream ends when it is dropped.
pub struct Sender {
    messages: mpsc::Sender<Bytes>,
    /// The status with which the stream ends.
    pub outcome: Outcome,
}

impl Sender {
    /// Sends a message unless several wait to be read. Returns whether it was taken.
    pub fn offer(&self, message: Bytes) -> bool {
        self.messages.try_send(message).is_ok()
    }

    /// Sends a message, and waits until there is room for it. Returns whether there is a reader.
    pub async fn send(&self, message: Bytes) -> bool {
        self.messages.send(message).await.is_ok()
    }

    /// Waits until the client closes the connection.
    pub async fn closed(&self) {
        self.messages.closed().await;
    }
}

/// Makes a stream and the response that reads it.
pub fn stream() -> (Sender, Response) {
    let (messages, waiting) = mpsc::channel(MAX_WAITING);
    let outcome = Outcome(Arc::new(AtomicU16::new(200)));
    let mut silence = tokio::time::interval(SILENCE);
    silence.reset();
    let mut response = Response::new(Body::new(Events { waiting, silence }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response.extensions_mut().insert(outcome.clone());
    (Sender { messages, outcome }, response)
}

/// Makes the text of an event. JSON has no line breaks.
pub fn event(kind: &str, data: &Value) -> String {
    format!("event: {kind}\ndata: {data}\n\n")
}

/// The body of a stream.
struct Events {
    waiting: mpsc::Receiver<Bytes>,
    silence: Interval,
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(message) = self.waiting.poll_recv(context) {
            self.silence.reset();
            return Poll::Ready(message.map(|message| Ok(Frame::data(message))));
        }
        self.silence.poll_tick(context).map(|_| Some(Ok(Frame::data(COMMENT))))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use http_body_util::BodyExt as _;
    use serde_json::json;

    async fn read(body: &mut Body) -> Option<String> {
        let frame = body.frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().into()).unwrap())
    }

    #[tokio::test]
    async fn slow_reader_loses_what_is_offered_and_gets_what_is_sent() {
        let (sender, response) = stream();
        let taken = (0..100).filter(|n| sender.offer(Bytes::from(format!("{n}")))).count();
        assert_eq!(taken, MAX_WAITING);
        let last = tokio::spawn(async move { sender.send("last".into()).await });
        let mut body = response.into_body();
        for n in 0..MAX_WAITING {
            assert_eq!(read(&mut body).await, Some(n.to_string()));
        }
        assert_eq!(read(&mut body).await.as_deref(), Some("last"));
        assert!(last.await.unwrap());
        assert_eq!(read(&mut body).await, None);
    }

    #[tokio::test]
    async fn sender_knows_that_the_reader_is_gone() {
        let (sender, response) = stream();
        drop(response);
        sender.closed().await;
        assert!(!sender.offer("a".into()));
        assert!(!sender.send("a".into()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_stream_has_comments() {
        let (sender, response) = stream();
        let mut body = response.into_body();
        assert_eq!(read(&mut body).await.as_deref(), Some(": waiting\n\n"));
        assert!(sender.offer("a".into()));
        assert_eq!(read(&mut body).await.as_deref(), Some("a"));
    }

    #[test]
    fn event_is_three_lines() {
        let text = event("a", &json!({ "prompt": "two\nlines" }));
        assert_eq!(text, "event: a\ndata: {\"prompt\":\"two\\nlines\"}\n\n");
    }
}
