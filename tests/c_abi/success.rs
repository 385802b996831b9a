//! Requests that are served.

use serde_json::{Value, json};
use triton_api::{DataType, ErrorCode, InstanceKind, MemoryType};
use triton_fake::{FakeOutput, InstanceSpec, ParameterValue};

use crate::support::*;

fn shape_of(request: &triton_fake::FakeRequest) -> Vec<i64> {
    let output: FakeOutput = answer(request).unwrap().outputs[OUTPUT].clone();
    assert_eq!(output.datatype, Some(DataType::Bytes));
    output.shape
}

#[test]
fn single_element_returns_image_parameters_and_statistics() {
    serve(|server, instance| {
        let request = ask(
            server,
            &json!({"num_inference_steps": 3, "seed": 41, "height": 64, "width": 96,
                                          "scheduler": "DDIMScheduler"}),
        );
        instance.execute(&[&request]).unwrap();
        let files = images(&request);
        assert_eq!(png_size(&files[0]), (96, 64));
        assert_eq!(shape_of(&request), [1, 1]);
        let parameters = answer(&request).unwrap().parameters;
        assert_eq!(parameters["seed"], ParameterValue::Int(41));
        assert_eq!(parameters["steps_run"], ParameterValue::Int(3));
        assert_eq!(parameters["cancelled"], ParameterValue::Bool(false));
        assert_eq!(parameters["prompt_truncated"], ParameterValue::Bool(false));
        assert!(matches!(&parameters["timings_ms"], ParameterValue::String(text) if text.starts_with("{\"queue\": ")));
        assert_eq!(parameters.len(), 5);

        let times = request.statistics()[0].times;
        assert!(times.exec_start < times.compute_start);
        assert!(times.compute_start < times.compute_end);
        assert!(times.compute_end < times.exec_end);
        let batches = instance.batch_statistics();
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].batch_size, 1);
        assert_eq!(counter(server, "unet_calls"), 3.0);
        assert_eq!(counter(server, "unet_batch_entries"), 6.0);
        assert_eq!(counter(server, "images"), 1.0);
    });
}

#[test]
fn batch_elements_use_their_own_arguments() {
    serve(|server, instance| {
        let args = [
            json!({"num_inference_steps": 2, "seed": 1, "guidance_scale": 1}),
            json!({"num_inference_steps": 3, "seed": 2, "width": 128, "scheduler": "DDIMScheduler"}),
            json!({"num_inference_steps": 4, "seed": 3, "scheduler": "DPMSolverMultistepScheduler"}),
        ];
        let prompts = ["a cat", "two dogs on a hill", ""];
        let request = infer_elements(server, &prompts, &args);
        instance.execute(&[&request]).unwrap();
        let files = images(&request);
        assert_eq!(shape_of(&request), [3, 1]);
        assert_eq!(png_size(&files[1]), (128, 64));
        let text = |text: &str| ParameterValue::String(text.to_owned());
        let parameters = answer(&request).unwrap().parameters;
        assert_eq!(parameters["seed"], text("1,2,3"));
        // PNDM begins with one step more.
        assert_eq!(parameters["steps_run"], text("3,3,4"));
        assert_eq!(instance.batch_statistics()[0].batch_size, 3);

        for (element, (prompt, args)) in prompts.iter().zip(&args).enumerate() {
            let alone = infer_elements(server, &[prompt], std::slice::from_ref(args));
            instance.execute(&[&alone]).unwrap();
            assert_eq!(images(&alone), [files[element].clone()], "element {element}");
        }
    });
}

#[test]
fn num_images_per_prompt_returns_distinct_images() {
    serve(|server, instance| {
        let args = json!({"num_inference_steps": 1, "seed": 5, "num_images_per_prompt": 2});
        let request = infer_elements(server, &["a cat", "a dog"], &[args.clone(), args]);
        instance.execute(&[&request]).unwrap();
        let files = images(&request);
        assert_eq!(shape_of(&request), [2, 2]);
        for (index, file) in files.iter().enumerate() {
            assert_eq!(png_size(file), (64, 64));
            assert!(!files[..index].contains(file), "image {index} is there twice");
        }
        assert_eq!(counter(server, "images"), 4.0);
    });
}

#[test]
fn weighted_prompt_changes_the_image_and_its_token_limit() {
    serve(|server, instance| {
        let image = |prompt: &str, negative: &str, syntax: &str| {
            let args = json!({"num_inference_steps": 2, "seed": 7, "prompt_syntax": syntax});
            let request = server
                .request()
                .bytes_input("prompt", &[1, 1], &[prompt])
                .bytes_input("negative_prompt", &[1, 1], &[negative])
                .bytes_input("gen_args", &[1, 1], &[args.to_string()])
                .output(OUTPUT)
                .build();
            instance.execute(&[&request]).unwrap();
            let truncated = answer(&request).unwrap().parameters["prompt_truncated"].clone();
            // The text chunk of the file holds the prompt: what is compared is the image.
            (pixels(&images(&request)[0]), truncated == ParameterValue::Bool(true))
        };
        let plain = image("a (red:1.4) cat", "", "plain");
        let weighted = image("a (red:1.4) cat", "", "weighted");
        assert_ne!(weighted.0, plain.0);
        assert_ne!(image("a red cat", "", "weighted").0, weighted.0);
        assert_eq!(
            image("(a red cat:1)", "", "weighted"),
            image("a red cat", "", "weighted")
        );
        // The text encoder reads 75 words of one token at once, and three times that if weighted.
        for (words, plain, weighted) in [
            (75, false, false),
            (76, true, false),
            (225, true, false),
            (226, true, true),
        ] {
            let long = "a ".repeat(words);
            assert_eq!(image(&long, "", "plain").1, plain, "{words}");
            assert_eq!(image(&long, "", "weighted").1, weighted, "{words}");
            assert_eq!(image("", &long, "weighted").1, weighted, "{words}");
        }
    });
}

/// Requests whose prompts have different numbers of tokens are in flight together, and do not share UNet calls.
#[test]
fn concurrent_prompts_of_different_lengths_do_not_change_images() {
    serve(|server, instance| {
        let args = json!({"num_inference_steps": 2, "seed": 7, "prompt_syntax": "weighted"});
        let prompts = [1, 100, 200].map(|words| "a ".repeat(words));
        let prompts = prompts.each_ref().map(String::as_str);
        let elements = vec![args.clone(); prompts.len()];
        let together = infer_elements(server, &prompts, &elements);
        instance.execute(&[&together]).unwrap();
        let together = images(&together);
        for (prompt, file) in prompts.iter().zip(&together) {
            let alone = infer_elements(server, &[prompt], &elements[..1]);
            instance.execute(&[&alone]).unwrap();
            assert!(images(&alone)[0] == *file, "{} bytes", prompt.len());
        }
    });
}

#[test]
fn random_seed_is_returned_and_reproduces_the_image() {
    serve(|server, instance| {
        let image = |args: &Value| {
            let request = ask(server, args);
            instance.execute(&[&request]).unwrap();
            let seed = answer(&request).unwrap().parameters["seed"].clone();
            (images(&request), seed)
        };
        let first = image(&good_args());
        assert_eq!(image(&good_args()), first);
        let drawn = json!({"num_inference_steps": 2, "guidance_scale": 3.0});
        let (second, ParameterValue::Int(seed)) = image(&drawn) else {
            unreachable!("a seed is a number");
        };
        assert_ne!(second, first.0);
        let mut again = drawn;
        again["seed"] = seed.into();
        assert_eq!(image(&again).0, second, "the seed that was drawn gives the image again");
    });
}

#[test]
fn long_prompt_is_reported_as_truncated() {
    serve(|server, instance| {
        let long = "cat ".repeat(200);
        let request = infer_elements(server, &[&long], &[good_args()]);
        instance.execute(&[&request]).unwrap();
        let parameters = answer(&request).unwrap().parameters;
        assert_eq!(parameters["prompt_truncated"], ParameterValue::Bool(true));
    });
}

#[test]
fn prompt_and_negative_prompt_change_the_image() {
    serve(|server, instance| {
        let image = |prompt: &str, negative: Option<&str>| {
            let builder = server
                .request()
                .bytes_input("prompt", &[1, 1], &[prompt])
                .bytes_input("gen_args", &[1, 1], &[good_args().to_string()])
                .output(OUTPUT);
            let builder = match negative {
                Some(text) => builder.bytes_input("negative_prompt", &[1, 1], &[text]),
                None => builder,
            };
            let request = builder.build();
            instance.execute(&[&request]).unwrap();
            images(&request)
        };
        let plain = image("a red cat", None);
        assert_ne!(image("a blue dog", None), plain);
        assert_ne!(image("a red cat", Some("a blue dog")), plain);
        // Its text is in the file, so only the pixels are those of none.
        assert_eq!(png_size(&image("a red cat", Some(""))[0]), (64, 64));
    });
}

#[test]
fn model_without_batch_dimension_serves_one_element() {
    let config = json!({
        "name": "sd_base", "backend": "diffusion", "max_batch_size": 0,
        "input": [
            {"name": "prompt", "data_type": "TYPE_STRING", "dims": [1]},
            {"name": "gen_args", "data_type": "TYPE_STRING", "dims": [1], "optional": true},
        ],
        "output": [{"name": "generated_image", "data_type": "TYPE_STRING", "dims": [-1]}],
    });
    serve_as(
        |spec| spec.config(config),
        |server, instance| {
            let args = json!({"num_inference_steps": 1, "num_images_per_prompt": 2}).to_string();
            for shape in [&[1][..], &[1, 1], &[]] {
                let request = server
                    .request()
                    .bytes_input("prompt", shape, &["a cat"])
                    .bytes_input("gen_args", shape, &[&args])
                    .output(OUTPUT)
                    .build();
                instance.execute(&[&request]).unwrap();
                assert_eq!(shape_of(&request), [2]);
            }
            let two = infer_elements(server, &["a", "b"], &[good_args(), good_args()]);
            instance.execute(&[&two]).unwrap();
            let (code, message) = refusal(&two);
            assert_eq!(code, ErrorCode::InvalidArg);
            assert_says(&message, &["prompt", "exactly one element"]);
        },
    );
}

#[test]
fn model_with_variable_dims_serves() {
    let tensor =
        |name: &str| json!({"name": name, "data_type": "TYPE_STRING", "dims": [-1], "optional": name != "prompt"});
    let config = json!({
        "name": "sd_base", "backend": "diffusion", "max_batch_size": 4,
        "input": [tensor("prompt"), tensor("negative_prompt"), tensor("gen_args")],
        "output": [{"name": "generated_image", "data_type": "TYPE_STRING", "dims": [-1]}],
    });
    serve_as(
        |spec| spec.config(config).auto_complete(false),
        |server, instance| {
            let request = ask(server, &good_args());
            instance.execute(&[&request]).unwrap();
            assert_eq!(shape_of(&request), [1, 1]);
        },
    );
}

#[test]
fn null_id_and_several_buffers_do_not_change_the_image() {
    serve(|server, instance| {
        let plain = good_inputs(server.request()).build();
        instance.execute(&[&plain]).unwrap();
        let expected = images(&plain);
        let gen_args = good_args().to_string();
        let requests = [
            good_inputs(server.request().null_id()).build(),
            good_inputs(server.request().id(MARKER)).build(),
            // In pieces, some of them empty, and in pinned memory.
            server
                .request()
                .bytes_input("prompt", &[1, 1], &["a red cat"])
                .buffers(40)
                .bytes_input("gen_args", &[1, 1], &[&gen_args])
                .buffers(3)
                .memory(MemoryType::CpuPinned)
                .output(OUTPUT)
                .output_memory(MemoryType::CpuPinned)
                .build(),
        ];
        instance.execute(&requests.each_ref()).unwrap();
        for request in &requests {
            assert_eq!(images(request), expected);
        }
    });
}

#[test]
fn output_not_requested_is_omitted() {
    serve(|server, instance| {
        let args = good_args().to_string();
        let request = server
            .request()
            .bytes_input("prompt", &[1, 1], &["a cat"])
            .bytes_input("gen_args", &[1, 1], &[&args])
            .build();
        instance.execute(&[&request]).unwrap();
        let response = answer(&request).unwrap();
        assert!(response.outputs.is_empty());
        assert_eq!(response.parameters["seed"], ParameterValue::Int(7));
    });
}

#[test]
fn execute_with_zero_or_several_requests_succeeds() {
    serve(|server, instance| {
        assert_eq!(instance.execute(&[]), Ok(()));
        let requests: Vec<_> = (0..5).map(|_| ask(server, &good_args())).collect();
        instance.execute(&requests.iter().collect::<Vec<_>>()).unwrap();
        let first = images(&requests[0]);
        assert!(requests.iter().all(|request| images(request) == first));
        assert_eq!(instance.batch_statistics().len(), 5);
    });
}

#[test]
fn execute_accept_failure_returns_requests_to_the_server() {
    serve(|server, instance| {
        let requests: Vec<_> = (0..3).map(|_| ask(server, &good_args())).collect();
        server.fail_response_new(1);
        assert!(instance.execute(&requests.iter().collect::<Vec<_>>()).is_err());
        for request in &requests {
            assert_eq!(request.final_responses(), 1, "the server's own");
        }
        assert_serves(server, instance);
    });
}

#[test]
fn output_format_selects_the_file_format() {
    serve(|server, instance| {
        for (format, magic) in [("jpeg", &b"\xff\xd8\xff"[..]), ("webp", b"RIFF"), ("png", b"\x89PNG")] {
            let args = json!({"num_inference_steps": 1, "output_format": format});
            let request = ask(server, &args);
            instance.execute(&[&request]).unwrap();
            assert!(images(&request)[0].starts_with(magic), "{format}");
        }
    });
}

#[test]
fn default_gen_args_apply_unless_overridden() {
    serve_as(
        |spec| {
            spec.parameter("default_gen_args", r#"{"num_inference_steps": 2, "width": 128}"#)
                .parameter("scheduler", "DDIMScheduler")
        },
        |server, instance| {
            let request = server
                .request()
                .bytes_input("prompt", &[1, 1], &["a cat"])
                .output(OUTPUT)
                .build();
            let longer = ask(server, &json!({"num_inference_steps": 4, "width": 64}));
            instance.execute(&[&request, &longer]).unwrap();
            assert_eq!(png_size(&images(&request)[0]), (128, 64));
            assert_eq!(
                answer(&request).unwrap().parameters["steps_run"],
                ParameterValue::Int(2)
            );
            assert_eq!(png_size(&images(&longer)[0]), (64, 64));
            assert_eq!(answer(&longer).unwrap().parameters["steps_run"], ParameterValue::Int(4));
        },
    );
}

#[test]
fn server_without_metrics_serves_and_warns() {
    let repository = Repository::new();
    let mut server = server();
    server.set_metrics(false);
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    assert_serves(&server, &instance);
    assert!(
        server
            .logs()
            .iter()
            .any(|line| line.level == "WARNING" && line.message.contains("metric"))
    );
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

#[test]
fn load_backend_incompatible_api_version_is_rejected() {
    for (version, good) in [((1, 18), false), ((2, 19), false), ((0, 99), false), ((1, 20), true)] {
        let mut server = server();
        server.set_api_version(version.0, version.1);
        match server.load_backend() {
            Ok(_) => assert!(good, "{version:?}"),
            Err(error) => {
                assert!(!good, "{version:?}");
                assert_eq!(error.code(), ErrorCode::Unsupported);
                assert_says(error.message(), &[&format!("{}.{}", version.0, version.1)]);
            }
        }
        server.assert_clean();
    }
}

#[test]
fn config_with_backend_name_only_is_completed() {
    serve(|_, instance| {
        let config = instance.model_config();
        assert_eq!(config["max_batch_size"], 8);
        let string = |name: &str| json!({"name": name, "data_type": "TYPE_STRING", "dims": [1]});
        let mut input = ["prompt", "negative_prompt", "image", "mask_image", "gen_args"].map(string);
        for tensor in &mut input[1..] {
            tensor["optional"] = true.into();
        }
        assert_eq!(config["input"], json!(input));
        let output = json!([{"name": "generated_image", "data_type": "TYPE_STRING", "dims": [-1]}]);
        assert_eq!(config["output"], output);
    });
}

#[test]
fn instances_share_the_components_of_a_model() {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let spec = |name: &str, kind| InstanceSpec {
        name: name.to_owned(),
        kind,
        device_id: 0,
    };
    let first = model.load_instance(spec("a", InstanceKind::Cpu)).unwrap();
    let second = model.load_instance(spec("b", InstanceKind::Auto)).unwrap();
    let requests = [ask(&server, &good_args()), ask(&server, &good_args())];
    first.execute(&[&requests[0]]).unwrap();
    second.execute(&[&requests[1]]).unwrap();
    assert_eq!(images(&requests[0]), images(&requests[1]));
    drop(first);
    assert_serves(&server, &second);
    drop(second);
    drop(model);
    drop(backend);
    let loads = server
        .logs()
        .iter()
        .filter(|line| line.message.contains(" loaded in "))
        .count();
    assert_eq!(loads, 1, "the weights are read once for one device");
    server.assert_clean();
}
