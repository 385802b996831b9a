//! Streams of events, and what the gateway asks the model for.

use super::fake_triton::{FakeTriton, error, parameters, with_image};
use super::*;
use crate::triton::fake::{ModelStreamInferResponse, ParameterChoice};

const STEPS: i64 = 8;

fn step(step: i64) -> ModelStreamInferResponse {
    let numbers = [("step", step), ("steps", STEPS), ("eta_ms", STEPS - step)];
    parameters(&numbers.map(|(name, number)| (name, ParameterChoice::Int64(number))))
}

fn completed() -> ModelStreamInferResponse {
    with_image(parameters(&[("seed", ParameterChoice::Int64(7))]), "LAST")
}

/// A response without contents, with which Triton may end a stream.
fn end() -> ModelStreamInferResponse {
    parameters(&[("triton_final_response", ParameterChoice::Bool(true))])
}

async fn generate(triton: &FakeTriton, arguments: Value) -> Response<Body> {
    let settings = Settings {
        triton: vec![triton.serve().await],
        ..settings()
    };
    let mut body = json!({ "model": "sd", "prompt": "a cat", "size": "64x64" });
    for (name, value) in arguments.as_object().unwrap() {
        body[name] = value.clone();
    }
    send(settings, post("/v1/images/generations", body.to_string())).await
}

/// Returns (type, data) of each event.
async fn events(response: Response<Body>) -> Vec<(String, Value)> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let text = std::str::from_utf8(&body).unwrap();
    let event = |text: &str| {
        let (kind, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        (kind.to_owned(), serde_json::from_str(data).unwrap())
    };
    text.split_terminator("\n\n").map(event).collect()
}

fn described() -> Value {
    json!({ "pipelines": { "StableDiffusionPipeline": { "arguments": { "preview": { "enum": ["linear", "vae"] } } } } })
}

#[tokio::test]
async fn partial_images_are_even_and_the_image_is_last() {
    // As many as wait for a reader at most, so that none is left out here.
    let mut answers: Vec<_> = [2, 3, 4, 6].map(|n| with_image(step(n), &n.to_string())).into();
    answers.extend([completed(), end()]);
    let triton = FakeTriton {
        description: Some(described()),
        ..FakeTriton::new(answers)
    };
    let stream = json!({ "stream": true, "partial_images": 3 });
    let events = events(generate(&triton, stream).await).await;
    let seen: Vec<_> = events
        .iter()
        .map(|(kind, data)| (kind.as_str(), &data["b64_json"]))
        .collect();
    let partial = "image_generation.partial_image";
    let image = |text: &str| json!(text);
    assert_eq!(
        seen,
        [
            (partial, &image("2")),
            (partial, &image("4")),
            (partial, &image("6")),
            ("image_generation.completed", &image("LAST")),
        ]
    );
    let indices: Vec<_> = events[..3]
        .iter()
        .map(|(_, data)| data["partial_image_index"].clone())
        .collect();
    assert_eq!(indices, [json!(0), json!(1), json!(2)]);
    let last = &events[3].1;
    assert_eq!(
        (&last["seed"], &last["size"], &last["image_index"]),
        (&json!(7), &json!("64x64"), &json!(0))
    );
    let requests = triton.requests.lock().unwrap();
    assert_eq!(
        (&requests[0]["preview"], &requests[0]["progress_every"]),
        (&json!("linear"), &json!(1))
    );
}

#[tokio::test]
async fn progress_is_sent_only_if_it_is_asked_for() {
    let waits = parameters(&[
        ("step", ParameterChoice::Int64(0)),
        ("steps", ParameterChoice::Int64(STEPS)),
        ("queue_position", ParameterChoice::Int64(2)),
    ]);
    let triton = FakeTriton::new(vec![waits, step(1), completed()]);
    let told = events(generate(&triton, json!({ "stream": true, "progress": true })).await).await;
    let kind = "image_generation.progress";
    assert_eq!(
        told[..2],
        [
            (
                kind.into(),
                json!({ "type": kind, "step": 0, "steps": STEPS, "queue_position": 2 })
            ),
            (
                kind.into(),
                json!({ "type": kind, "step": 1, "steps": STEPS, "eta_ms": STEPS - 1 })
            ),
        ]
    );
    assert_eq!(told.len(), 3);
    let silent = events(generate(&triton, json!({ "stream": true })).await).await;
    assert_eq!(silent.len(), 1);
    let requests = triton.requests.lock().unwrap();
    assert_eq!(
        (&requests[0]["progress_every"], &requests[0]["preview"]),
        (&json!(1), &json!("off"))
    );
    assert_eq!(requests[1]["progress_every"], Value::Null);
}

#[tokio::test]
async fn model_that_is_not_decoupled_is_asked_for_images_alone() {
    let triton = FakeTriton {
        decoupled: false,
        ..FakeTriton::new(vec![completed()])
    };
    let stream = json!({ "stream": true, "partial_images": 3, "preview": "vae", "progress": true });
    let events = events(generate(&triton, stream).await).await;
    assert_eq!(events.len(), 1);
    let requests = triton.requests.lock().unwrap();
    assert_eq!(
        (&requests[0]["progress_every"], &requests[0]["preview"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn error_has_a_status_before_the_stream_and_an_event_in_it() {
    let refused = FakeTriton::new(vec![error("model 'sd': gen_args: `n` must be an integer")]);
    for stream in [json!({}), json!({ "stream": true })] {
        let response = generate(&refused, stream).await;
        assert_eq!(response.status(), 400);
    }
    let failed = FakeTriton::new(vec![step(1), error("model 'sd': the instance is being removed")]);
    let stream = json!({ "stream": true, "progress": true });
    let events = events(generate(&failed, stream.clone()).await).await;
    let (kind, data) = events.last().unwrap();
    assert_eq!((events.len(), kind.as_str()), (2, "error"));
    assert_eq!(data["error"]["message"], "model 'sd': the instance is being removed");
    assert_eq!(data["error"]["type"], "server_error");
    assert_eq!(generate(&failed, json!({})).await.status(), 503);
}

#[tokio::test]
async fn stream_that_ends_without_images_is_an_error() {
    for answers in [vec![], vec![end()], vec![step(1), end()]] {
        let response = generate(&FakeTriton::new(answers), json!({})).await;
        assert_eq!(response.status(), 500);
        let message = json_of(response).await["error"]["message"].to_string();
        assert!(message.contains("without images"), "{message}");
    }
}

#[tokio::test]
async fn model_has_its_description_or_null() {
    let get = async |triton: &FakeTriton, path: &str| {
        let settings = Settings {
            triton: vec![triton.serve().await],
            ..settings()
        };
        json_of(send(settings, Request::get(path).body(Body::empty()).unwrap()).await).await
    };
    let silent = FakeTriton::new(vec![]);
    let told = FakeTriton {
        description: Some(json!({ "loras": ["one"], "decoupled": true })),
        ..FakeTriton::new(vec![])
    };
    for decoupled in [true, false] {
        let (silent, told) = [&silent, &told]
            .map(|triton| FakeTriton {
                decoupled,
                ..triton.clone()
            })
            .into();
        assert_eq!(get(&silent, "/v1/models/sd").await["diffusion"], Value::Null);
        assert_eq!(
            get(&told, "/v1/models/sd").await["diffusion"],
            told.description.clone().unwrap()
        );
        assert_eq!(get(&silent, "/sdapi/v1/loras").await, json!([]));
        assert_eq!(get(&told, "/sdapi/v1/loras").await[0]["name"], "one");
    }
    assert_eq!(get(&told, "/v1/models/other").await["error"]["code"], "model_not_found");
}
