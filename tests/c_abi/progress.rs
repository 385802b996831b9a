//! Responses that tell how far a request is.

use serde_json::{Value, json};
use triton_api::ErrorCode;
use triton_fake::{FakeRequest, FakeResponse, FakeServer, ModelSpec, ParameterValue};

use crate::support::*;

/// A model whose requests may have several responses.
pub fn decoupled(spec: ModelSpec) -> ModelSpec {
    let config = json!({
        "name": "sd_base",
        "backend": "diffusion",
        "model_transaction_policy": {"decoupled": true},
    });
    spec.config(config)
}

/// Waits for the final response of a request. Returns those before it, and the final one.
pub fn responses(request: &FakeRequest) -> (Vec<FakeResponse>, FakeResponse) {
    let last = request.wait(SOON).unwrap();
    let mut before = request.responses();
    assert!(before.pop().is_some_and(|response| response.is_final));
    assert!(
        before
            .iter()
            .all(|response| !response.is_final && response.error.is_none())
    );
    (before, last)
}

/// An integer parameter of a response.
pub fn integer(response: &FakeResponse, name: &str) -> Option<i64> {
    match response.parameters.get(name)? {
        ParameterValue::Int(number) => Some(*number),
        other => unreachable!("{name}: {other:?}"),
    }
}

fn ask_for_progress(server: &FakeServer, steps: usize, every: usize) -> FakeRequest {
    ask(
        server,
        &json!({"num_inference_steps": steps, "seed": 1, "scheduler": "DDIMScheduler", "progress_every": every}),
    )
}

#[test]
fn progress_comes_in_order_before_one_final_response() {
    serve_as(decoupled, |server, instance| {
        let request = ask_for_progress(server, 60, 7);
        instance.execute(&[&request]).unwrap();
        let (before, last) = responses(&request);
        assert!(last.error.is_none() && last.parameters.contains_key("seed"));
        let steps: Vec<i64> = before.iter().filter_map(|response| integer(response, "step")).collect();
        assert_eq!(steps.len(), before.len());
        assert!(steps.is_sorted_by(|one, next| one < next), "{steps:?}");
        // One that waits to be sent is replaced by none.
        assert!(
            steps.len() > 2 && steps.iter().all(|step| step % 7 == 0 && *step < 60),
            "{steps:?}"
        );
        for response in &before {
            assert_eq!(integer(response, "steps"), Some(60));
            assert!(integer(response, "eta_ms").is_some_and(|left| left >= 0));
            assert!(response.outputs.is_empty());
            assert_eq!(integer(response, "queue_position"), None, "it never waits");
        }
        // The image is the same as without.
        let plain = ask(
            server,
            &json!({"num_inference_steps": 60, "seed": 1, "scheduler": "DDIMScheduler"}),
        );
        instance.execute(&[&plain]).unwrap();
        assert_eq!(answer(&plain).unwrap().outputs, last.outputs);
    });
}

#[test]
fn request_that_waits_hears_of_its_position() {
    let narrow = |spec: ModelSpec| decoupled(spec).parameter("max_unet_batch_size", "2");
    serve_as(narrow, |server, instance| {
        let running = endless(server, 64);
        instance.execute(&[&running]).unwrap();
        wait_for_calls(server, 1);
        let requests = [80, 90].map(|steps| ask_for_progress(server, steps, 1000));
        instance.execute(&requests.each_ref()).unwrap();
        wait_for_calls(server, 3);
        running.cancel();
        for (request, positions) in requests.iter().zip([&[0][..], &[1, 0]]) {
            let (before, last) = responses(request);
            assert!(last.error.is_none());
            let told: Vec<i64> = before
                .iter()
                .filter_map(|response| integer(response, "queue_position"))
                .collect();
            assert_eq!(told, positions);
            assert!(before.iter().all(|response| integer(response, "step") == Some(0)));
        }
    });
}

#[test]
fn batch_elements_tell_their_numbers() {
    serve_as(decoupled, |server, instance| {
        let args: [Value; 2] = [20, 40].map(|steps| json!({"num_inference_steps": steps, "progress_every": 5}));
        let request = infer_elements(server, &["a", "b"], &args);
        instance.execute(&[&request]).unwrap();
        let (before, last) = responses(&request);
        assert!(last.error.is_none());
        for element in [0, 1] {
            assert!(
                before
                    .iter()
                    .any(|response| integer(response, "batch_element") == Some(element))
            );
        }
    });
}

#[test]
fn model_that_is_not_decoupled_refuses_progress() {
    serve(|server, instance| {
        let request = ask_for_progress(server, 4, 1);
        instance.execute(&[&request]).unwrap();
        let (code, message) = refusal(&request);
        assert_eq!(code, ErrorCode::InvalidArg);
        assert_says(&message, &["`progress_every`", "decoupled"]);
        // 0 asks for none.
        let none = ask_for_progress(server, 4, 0);
        instance.execute(&[&none]).unwrap();
        assert_eq!(images(&none).len(), 1);
    });
}
