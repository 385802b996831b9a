//! The router without a Triton: what is refused before one is asked.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{Request, Response};
use hyper::body::Frame;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::Settings;
use crate::http::client::Peer;
use crate::update::Progress;

mod fake_triton;
mod streams;

const MAX_BODY_BYTES: usize = 10_000;

fn settings() -> Settings {
    Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        // Port 1 of loopback refuses connections.
        triton: vec!["127.0.0.1:1".into()],
        default_model: None,
        time_limit: Duration::from_secs(5),
        max_body_bytes: MAX_BODY_BYTES,
        max_bodies_bytes: 2 * MAX_BODY_BYTES,
        api_key: None,
        cors_origins: vec![],
        page: true,
    }
}

async fn send(settings: Settings, request: Request<Body>) -> Response<Body> {
    let gateway = Arc::new(settings.into_gateway().unwrap());
    router(gateway).oneshot(request).await.unwrap()
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).body(body.into()).unwrap()
}

async fn json_of(response: Response<Body>) -> Value {
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn without_a_triton_requests_are_unavailable() {
    for path in ["/healthz", "/v1/models", "/sdapi/v1/sd-models", "/sdapi/v1/options"] {
        let response = send(settings(), Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 503, "{path}");
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(json_of(response).await["error"]["type"], "server_error");
    }
    let body = json!({ "prompt": "a cat", "model": "sd" }).to_string();
    let response = send(settings(), post("/v1/images/generations", body)).await;
    assert_eq!(response.status(), 503);
}

#[tokio::test]
async fn errors_have_openais_form_on_every_path() {
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    for (request, status) in [
        (get("/nothing"), 404),
        (get("/v1/images/generations"), 405),
        (post("/v1/images/generations", "{"), 400),
        (post("/v1/images/edits", "no form"), 400),
        (post("/sdapi/v1/txt2img", "[]"), 400),
        (post("/sdapi/v1/interrupt", ""), 501),
        (post("/v1/images/generations", "x".repeat(MAX_BODY_BYTES + 1)), 413),
    ] {
        let path = request.uri().clone();
        let response = send(settings(), request).await;
        assert_eq!(response.status(), status, "{path}");
        assert!(response.headers().contains_key("x-request-id"), "{path}");
        assert!(json_of(response).await["error"]["message"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn a_form_without_its_parts_is_refused() {
    let part =
        |name: &str, value: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let (prompt, image) = (part("prompt", "a cat"), part("image", "zanzibar"));
    let mask = part("mask", "zanzibar") + &part("size", "8x8");
    for (body, words) in [
        (format!("{prompt}--b--\r\n"), "image: expected a file, got none"),
        (format!("{image}--b--\r\n"), "prompt: expected a string, got none"),
        (
            format!("{image}{image}{prompt}--b--\r\n"),
            "expected one file, got several",
        ),
        (format!("{image}{prompt}{prompt}--b--\r\n"), "there twice"),
        (format!("{image}{prompt}"), "broken"),
        (image.repeat(2).replace("--b", "--c"), "broken"),
        (
            (0..65).map(|n| part(&n.to_string(), "")).collect(),
            "more than 64 parts",
        ),
        (format!("{prompt}{image}{mask}--b--\r\n"), "mask: expected a PNG"),
    ] {
        let mut request = post("/v1/images/edits", body.clone());
        let kind = HeaderValue::from_static("multipart/form-data; boundary=b");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        let response = send(settings(), request).await;
        assert_eq!(response.status(), 400, "{body}");
        let message = json_of(response).await["error"]["message"].to_string();
        assert!(message.contains(words), "{message}, expected {words}");
        assert!(!message.contains("zanzibar"), "{message}");
    }
}

/// A body that goes on and on.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = axum::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(axum::body::Bytes::from_static(&[b' '; 1000])))))
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_limited_too() {
    let response = send(settings(), post("/v1/images/generations", Body::new(Endless))).await;
    assert_eq!(response.status(), 413);
}

/// A body whose end never comes.
struct Begun(Option<axum::body::Bytes>);

impl hyper::body::Body for Begun {
    type Data = axum::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.0
            .take()
            .map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
    }
}

#[tokio::test]
async fn all_bodies_together_are_limited() {
    let gateway = Arc::new(settings().into_gateway().unwrap());
    let send = |length: Option<usize>, body: Body| {
        let mut request = post("/v1/images/generations", body);
        if let Some(length) = length {
            request.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        tokio::spawn(router(gateway.clone()).oneshot(request))
    };
    let used = async |bytes: usize| {
        let reached = async {
            while gateway.bodies.used() != bytes {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.unwrap();
    };
    // What is announced counts before it arrives, and what is not when it arrives.
    let announced = send(Some(MAX_BODY_BYTES), Body::new(Begun(None)));
    used(MAX_BODY_BYTES).await;
    let begun = vec![b' '; MAX_BODY_BYTES - 100];
    let counted = send(None, Body::new(Begun(Some(begun.into()))));
    used(2 * MAX_BODY_BYTES - 100).await;
    for (length, body) in [(Some(101), Body::new(Begun(None))), (None, Body::from(vec![b' '; 101]))] {
        let response = send(length, body).await.unwrap().unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        let message = json_of(response).await["error"]["message"].to_string();
        assert!(message.contains("20000 bytes"), "{message}");
    }
    // One that fits is read, and is no JSON.
    let response = send(None, Body::from("{")).await.unwrap().unwrap();
    assert_eq!(response.status(), 400);
    announced.abort();
    counted.abort();
    used(0).await;
    let small = Settings {
        max_bodies_bytes: MAX_BODY_BYTES - 1,
        ..settings()
    };
    assert!(small.into_gateway().is_err());
}

#[tokio::test]
async fn the_key_is_needed_except_for_health_and_metrics() {
    let keyed = || Settings {
        api_key: Some("secret".into()),
        ..settings()
    };
    let get = |path: &str, key: Option<&str>| {
        let mut request = Request::get(path);
        if let Some(key) = key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        request.body(Body::empty()).unwrap()
    };
    for key in [None, Some("other")] {
        let response = send(keyed(), get("/v1/models", key)).await;
        assert_eq!(response.status(), 401);
        let error = json_of(response).await["error"].take();
        assert_eq!(error["code"], "invalid_api_key");
    }
    assert_eq!(send(keyed(), get("/v1/models", Some("secret"))).await.status(), 503);
    assert_eq!(send(keyed(), get("/sdapi/v1/samplers", None)).await.status(), 401);
    assert_eq!(send(keyed(), get("/healthz", None)).await.status(), 503);
    assert_eq!(send(keyed(), get("/metrics", None)).await.status(), 200);
    let empty = Settings {
        api_key: Some(String::new()),
        ..settings()
    };
    assert!(empty.into_gateway().is_err());
}

#[tokio::test]
async fn only_the_origins_of_the_settings_are_allowed() {
    let allowed = async |origins: &[&str], origin: &str| {
        let settings = Settings {
            cors_origins: origins.iter().map(ToString::to_string).collect(),
            ..settings()
        };
        let request = Request::get("/sdapi/v1/samplers")
            .header("origin", origin)
            .body(Body::empty());
        let response = send(settings, request.unwrap()).await;
        let header = response.headers().get("access-control-allow-origin");
        header.map(|value| value.to_str().unwrap().to_owned())
    };
    let (one, other) = ("https://one.example", "https://other.example");
    assert_eq!(allowed(&[one], one).await.as_deref(), Some(one));
    assert_eq!(allowed(&[one], other).await, None);
    assert_eq!(allowed(&["*"], other).await.as_deref(), Some("*"));
    assert_eq!(allowed(&[], one).await, None);
}

#[tokio::test]
async fn an_id_goes_through_and_requests_are_counted() {
    let gateway = Arc::new(settings().into_gateway().unwrap());
    let request = Request::get("/sdapi/v1/samplers").header("x-request-id", "job-1");
    let response = router(gateway.clone())
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "job-1");
    for path in ["/nothing/1", "/nothing/2", "/v1/models/a"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router(gateway.clone()).oneshot(request).await.unwrap();
    }
    let text = gateway.metrics.text(0);
    for line in [
        "diffusion_gateway_requests_total{route=\"/sdapi/v1/samplers\",status=\"200\"} 1",
        "diffusion_gateway_requests_total{route=\"none\",status=\"404\"} 2",
        "diffusion_gateway_requests_total{route=\"/v1/models/{id}\",status=\"503\"} 1",
        "diffusion_gateway_requests_in_flight 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_page_needs_no_key_and_has_a_policy_on_every_response() {
    let keyed = |page| Settings {
        api_key: Some("secret".into()),
        page,
        ..settings()
    };
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    for (path, status) in [("/", 200), ("/page/main.js", 200), ("/page/nothing.js", 404)] {
        let response = send(keyed(true), get(path)).await;
        assert_eq!(response.status(), status, "{path}");
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["referrer-policy"], "no-referrer");
        assert_eq!(response.headers()["cache-control"], "no-cache");
    }
    assert_eq!(send(keyed(true), post("/", "")).await.status(), 405);
    for path in ["/", "/page/main.js"] {
        assert_eq!(send(keyed(false), get(path)).await.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn progress_and_interrupt_are_the_clients_own() {
    let gateway = Arc::new(settings().into_gateway().unwrap());
    let running = gateway.running.begin([10, 0, 0, 1].into());
    running.job().set(Progress {
        step: 3,
        steps: 4,
        eta_ms: Some(500),
        queue_position: None,
        images: vec!["AAE=".into()],
    });
    let send = async |method: &str, path: &str, address: [u8; 4], header: &str| {
        let request = Request::builder().method(method).uri(format!("/sdapi/v1/{path}"));
        let mut request = request.header(header, "x").body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer(address.into()));
        router(gateway.clone()).oneshot(request).await.unwrap()
    };
    let (mine, others) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let told = json_of(send("GET", "progress", mine, "x-other").await).await;
    assert_eq!(
        (&told["progress"], &told["eta_relative"], &told["current_image"]),
        (&json!(0.75), &json!(0.5), &json!("AAE="))
    );
    assert_eq!(
        (
            &told["state"]["sampling_step"],
            &told["state"]["sampling_steps"],
            &told["state"]["job_count"]
        ),
        (&json!(3), &json!(4), &json!(1))
    );
    let told = json_of(send("GET", "progress?skip_current_image=true", mine, "x-other").await).await;
    assert_eq!(
        (&told["progress"], &told["current_image"]),
        (&json!(0.75), &Value::Null)
    );
    for (address, header) in [(others, "x-other"), (mine, "forwarded"), (mine, "x-forwarded-for")] {
        let told = json_of(send("GET", "progress", address, header).await).await;
        assert_eq!(
            (&told["progress"], &told["state"]["job_count"]),
            (&json!(0.0), &json!(0)),
            "{header}"
        );
        assert_eq!(told["current_image"], Value::Null);
    }
    assert_eq!(send("POST", "interrupt", others, "x-other").await.status(), 200);
    assert_eq!(send("POST", "interrupt", mine, "x-forwarded-for").await.status(), 501);
    assert!(!running.job().is_interrupted());
    assert_eq!(send("POST", "interrupt", mine, "x-other").await.status(), 200);
    assert!(running.job().is_interrupted());
    let told = json_of(send("GET", "progress", mine, "x-other").await).await;
    assert_eq!(told["state"]["interrupted"], true);
}
