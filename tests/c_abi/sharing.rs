//! Requests that share UNet calls.

use serde_json::json;
use triton_fake::ParameterValue;

use crate::support::*;

#[test]
fn shared_unet_calls_do_not_change_images() {
    serve(|server, instance| {
        let args = [
            json!({"num_inference_steps": 20, "guidance_scale": 7.5, "seed": 11}),
            json!({"num_inference_steps": 25, "guidance_scale": 1.0, "seed": 12, "scheduler": "DDIMScheduler"}),
            json!({"num_inference_steps": 15, "guidance_scale": 3.0, "seed": 13,
                   "scheduler": "DPMSolverMultistepScheduler"}),
            json!({"num_inference_steps": 18, "guidance_scale": 2.0, "seed": 14, "scheduler": "DDIMScheduler",
                   "eta": 0.7, "num_images_per_prompt": 2}),
        ];
        let alone: Vec<_> = args
            .iter()
            .map(|args| {
                let request = ask(server, args);
                instance.execute(&[&request]).unwrap();
                images(&request)
            })
            .collect();

        let calls_alone = counter(server, "unet_calls");
        let entries_alone = counter(server, "unet_batch_entries");
        let requests = args.each_ref().map(|args| ask(server, args));
        instance.execute(&requests.each_ref()).unwrap();
        for (index, request) in requests.iter().enumerate() {
            assert!(images(request) == alone[index], "request {index}: another image");
        }
        let steps: i64 = requests
            .iter()
            .map(|request| match answer(request).unwrap().parameters["steps_run"] {
                ParameterValue::Int(steps) => steps,
                ref other => unreachable!("{other:?}"),
            })
            .sum();
        assert_eq!(steps, 21 + 25 + 15 + 18);
        assert_eq!(calls_alone, steps as f64, "alone, each step is a call");
        let calls = counter(server, "unet_calls") - calls_alone;
        assert!(calls < 0.8 * steps as f64, "{calls} calls for {steps} steps");
        assert_eq!(
            counter(server, "unet_batch_entries") - entries_alone,
            entries_alone,
            "the number of batch entries stays the same"
        );
    });
}

#[test]
fn shared_unet_calls_with_deep_cache_do_not_change_images() {
    serve(|server, instance| {
        let args = [
            json!({"num_inference_steps": 12, "seed": 21, "deep_cache": 2}),
            json!({"num_inference_steps": 10, "guidance_scale": 1.0, "seed": 22, "deep_cache": 3}),
            json!({"num_inference_steps": 8, "seed": 23}),
        ];
        let alone = args.each_ref().map(|args| {
            let request = ask(server, args);
            instance.execute(&[&request]).unwrap();
            images(&request)
        });
        let requests = args.each_ref().map(|args| ask(server, args));
        instance.execute(&requests.each_ref()).unwrap();
        for (index, request) in requests.iter().enumerate() {
            assert!(images(request) == alone[index], "request {index}: another image");
        }
    });
}

#[test]
fn concurrent_sizes_do_not_change_images() {
    serve(|server, instance| {
        let small = json!({"num_inference_steps": 6, "seed": 1});
        let wide = json!({"num_inference_steps": 4, "seed": 1, "width": 128});
        let alone = [&small, &wide].map(|args| {
            let request = ask(server, args);
            instance.execute(&[&request]).unwrap();
            images(&request)
        });
        let requests = [&small, &wide].map(|args| ask(server, args));
        instance.execute(&requests.each_ref()).unwrap();
        assert_eq!(requests.each_ref().map(images), alone);
    });
}

/// A short request does not wait for a long one to end.
#[test]
fn short_request_completes_before_a_long_one() {
    serve(|server, instance| {
        let long = endless(server, 64);
        instance.execute(&[&long]).unwrap();
        wait_for_calls(server, 2);
        assert_serves(server, instance);
        assert!(!long.is_released());
        long.cancel();
        assert!(answer(&long).is_err());
    });
}

/// More elements than the engine has room for: Execute waits for room and nothing is lost.
#[test]
fn batch_above_the_capacity_is_served() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "2"),
        |server, instance| {
            let requests: Vec<_> = (0..6).map(|_| ask(server, &good_args())).collect();
            instance.execute(&requests.iter().collect::<Vec<_>>()).unwrap();
            let first = images(&requests[0]);
            assert!(requests.iter().all(|request| images(request) == first));
            // PNDM's three calls each, none of them shared.
            assert_eq!(counter(server, "unet_calls"), 18.0);
        },
    );
}
