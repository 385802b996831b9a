#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;

const INPUTS: &[TensorSpec] = inputs_of(PipelineClass::StableDiffusion);

/// Triton's JSON for the SageMaker example's `sd_base/config.pbtxt`.
fn sagemaker() -> Value {
    let input = |name: &str, optional: bool| {
        json!({"name": name, "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [-1],
               "is_shape_tensor": false, "allow_ragged_batch": false, "optional": optional})
    };
    json!({
        "name": "sd_base", "platform": "", "backend": "diffusion", "max_batch_size": 8,
        "input": [input("prompt", false), input("negative_prompt", true), input("gen_args", true)],
        "output": [{"name": "generated_image", "data_type": "TYPE_STRING", "dims": [-1],
                    "label_filename": "", "is_shape_tensor": false}],
        "instance_group": [{"name": "sd_base", "kind": "KIND_GPU", "count": 1}],
        "parameters": {},
    })
}

fn error(config: &Value) -> String {
    let error = validate_model_config(config, INPUTS).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    error.to_string()
}

#[test]
fn complete_empty_config_lists_all_tensors() {
    let bare = json!({"name": "sd", "backend": "diffusion", "max_batch_size": 0, "input": [], "output": [],
                      "instance_group": [{"kind": "KIND_CPU"}]});
    let full = complete_model_config(&bare, INPUTS).unwrap();
    assert_eq!(
        full,
        json!({
            "name": "sd", "backend": "diffusion", "max_batch_size": 8,
            "input": [
                {"name": "prompt", "data_type": "TYPE_STRING", "dims": [1]},
                {"name": "negative_prompt", "data_type": "TYPE_STRING", "dims": [1], "optional": true},
                {"name": "image", "data_type": "TYPE_STRING", "dims": [1], "optional": true},
                {"name": "mask_image", "data_type": "TYPE_STRING", "dims": [1], "optional": true},
                {"name": "gen_args", "data_type": "TYPE_STRING", "dims": [1], "optional": true},
            ],
            "output": [{"name": "generated_image", "data_type": "TYPE_STRING", "dims": [-1]}],
            "instance_group": [{"kind": "KIND_CPU"}],
        })
    );
    validate_model_config(&full, INPUTS).unwrap();
    assert_eq!(complete_model_config(&full, INPUTS), None);
    let absent = complete_model_config(&json!({"name": "sd"}), INPUTS).unwrap();
    assert_eq!(absent["max_batch_size"], 8);
    assert_eq!(absent["input"], full["input"]);
}

#[test]
fn complete_keeps_given_max_batch_size() {
    let bare = json!({"max_batch_size": 3});
    assert_eq!(complete_model_config(&bare, INPUTS).unwrap()["max_batch_size"], 3);
    let mut no_output = sagemaker();
    no_output["max_batch_size"] = 0.into();
    no_output["output"] = json!([]);
    let full = complete_model_config(&no_output, INPUTS).unwrap();
    assert_eq!(full["max_batch_size"], 0);
    assert_eq!(full["input"], no_output["input"]);
    assert_eq!(full["output"][0]["dims"], json!([-1]));
    validate_model_config(&full, INPUTS).unwrap();
}

#[test]
fn complete_full_config_returns_none() {
    assert_eq!(complete_model_config(&sagemaker(), INPUTS), None);
    validate_model_config(&sagemaker(), INPUTS).unwrap();
    assert_eq!(complete_model_config(&json!([]), INPUTS), None);
}

#[test]
fn complete_adds_missing_type_and_dims() {
    let config = json!({
        "max_batch_size": 4,
        "input": [{"name": "prompt", "data_type": "TYPE_INVALID", "dims": []}],
        "output": [{"name": "generated_image"}, {"name": "other"}],
    });
    let full = complete_model_config(&config, INPUTS).unwrap();
    assert_eq!(
        full["input"],
        json!([{"name": "prompt", "data_type": "TYPE_STRING", "dims": [1]}])
    );
    assert_eq!(
        full["output"],
        json!([{"name": "generated_image", "data_type": "TYPE_STRING", "dims": [-1]}, {"name": "other"}])
    );
}

#[test]
fn validate_dims_must_be_one_or_minus_one() {
    for (size, dims, good) in [
        (8, json!([1]), true),
        (8, json!([-1]), true),
        (8, json!(["-1"]), true),
        (8, json!([2]), false),
        (8, json!([1, 1]), false),
        (8, json!([]), false),
        (8, json!("1"), false),
        (0, json!([1]), true),
        (0, json!([-1]), true),
        (0, json!([-1, 1]), true),
        (0, json!([1, 1]), true),
        (0, json!([3, 1]), false),
        (0, json!([1, 1, 1]), false),
    ] {
        for list in ["input", "output"] {
            let mut config = sagemaker();
            config["max_batch_size"] = size.into();
            config[list][0]["dims"] = dims.clone();
            let result = validate_model_config(&config, INPUTS);
            assert_eq!(result.is_ok(), good, "{size} {list} {dims}");
            if !good {
                let name = config[list][0]["name"].as_str().unwrap();
                assert!(error(&config).contains(&format!("`{name}` must have")));
            }
        }
    }
}

#[test]
fn validate_wrong_tensor_is_named() {
    let mut config = sagemaker();
    config["input"][0]["data_type"] = "TYPE_UINT8".into();
    assert_eq!(error(&config), "input `prompt` must have data_type TYPE_STRING");

    let mut config = sagemaker();
    config["input"][1]["name"] = "negativ_prompt".into();
    assert_eq!(
        error(&config),
        "unknown input `negativ_prompt`; expected prompt, negative_prompt, image, mask_image, gen_args; did you mean `negative_prompt`?"
    );

    let mut config = sagemaker();
    config["input"][1]["name"] = "OOM or so".into();
    assert!(error(&config).starts_with("unknown input; expected"));

    let mut config = sagemaker();
    config["input"][1] = config["input"][0].clone();
    assert_eq!(error(&config), "input `prompt` is listed twice");

    let mut config = sagemaker();
    config["input"] = json!([config["input"][1]]);
    assert_eq!(error(&config), "input `prompt` is missing from the model configuration");

    let mut config = sagemaker();
    config["output"][0]["name"] = "image".into();
    assert!(error(&config).starts_with("unknown output `image`; expected"));

    let mut config = sagemaker();
    config["output"] = json!([]);
    assert!(error(&config).starts_with("output `generated_image` is missing"));
    config["output"] = json!({});
    assert!(error(&config).contains("`output`"));
}

#[test]
fn validate_missing_optional_input_is_accepted() {
    let mut config = sagemaker();
    config["input"] = json!([config["input"][0]]);
    validate_model_config(&config, INPUTS).unwrap();
    assert_eq!(complete_model_config(&config, INPUTS), None);
}

#[test]
fn validate_unsupported_features_are_rejected() {
    let mut config = sagemaker();
    config["sequence_batching"] = json!({"oldest": {}});
    let error = validate_model_config(&config, INPUTS).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("sequence_batching"));
    let mut config = sagemaker();
    config["input"][0]["reshape"] = json!({"shape": []});
    assert!(matches!(
        validate_model_config(&config, INPUTS),
        Err(Error::Unsupported(_))
    ));
    for decoupled in [false, true] {
        let mut config = sagemaker();
        config["model_transaction_policy"] = json!({"decoupled": decoupled});
        validate_model_config(&config, INPUTS).unwrap();
    }
}
