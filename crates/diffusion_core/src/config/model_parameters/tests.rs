//! Tests of the parameters.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::keys::*;
use super::*;
use serde_json::json;

fn one(key: &str, text: &str) -> Result<(ModelParameters, Vec<String>)> {
    ModelParameters::parse(&json!({ key: { "string_value": text } }))
}

#[test]
fn parse_without_parameters_returns_defaults() {
    for empty in [Value::Null, json!({})] {
        let (parameters, warnings) = ModelParameters::parse(&empty).unwrap();
        assert_eq!(parameters, ModelParameters::default());
        assert!(warnings.is_empty());
    }
}

#[test]
fn parse_reads_every_parameter() {
    let (parameters, warnings) = ModelParameters::parse(&json!({
        "checkpoint": {"string_value": "./weights/v2"},
        "base": {"string_value": "sd_base"},
        "lora": {"string_value": "style.safetensors"},
        "lora_scale": {"string_value": "-0.5"},
        "dtype": {"string_value": "bfloat16"},
        "scheduler": {"string_value": "DDIMScheduler"},
        "numerics": {"string_value": "fast"},
        "weights": {"string_value": "copy"},
        "outside_links": {"string_value": "refuse"},
        "loras": {"string_value": "/models/loras"},
        "lora_cache_bytes": {"string_value": "1000000"},
        "embeddings": {"string_value": "/models/embeddings"},
        "safety_checker": {"string_value": "off"},
        "provenance": {"string_value": "off"},
        "max_unet_batch_size": {"string_value": "8"},
        "max_pixels": {"string_value": "262144"},
        "max_steps": {"string_value": "100"},
        "max_work": {"string_value": "1000000"},
        "max_seconds": {"string_value": "60"},
        "max_waiting_requests": {"string_value": "4"},
        "gpu_memory_reserve_mib": {"string_value": "512"},
        "intra_op_threads": {"string_value": "2"},
        "default_gen_args": {"string_value": "{\"num_inference_steps\": 25}"},
    }))
    .unwrap();
    assert!(warnings.is_empty());
    let expected = ModelParameters {
        checkpoint: PathBuf::from("./weights/v2"),
        base: Some(Base::Model("sd_base".to_owned())),
        lora: Some(PathBuf::from("style.safetensors")),
        lora_scale: -0.5,
        dtype: Dtype::Bfloat16,
        scheduler: Some("DDIMScheduler".into()),
        numerics: Numerics::Fast,
        weights: Placement::Copy,
        outside_links: false,
        loras: PathBuf::from("/models/loras"),
        lora_cache_bytes: Some(1_000_000),
        embeddings: PathBuf::from("/models/embeddings"),
        safety_checker: false,
        provenance: false,
        max_unet_batch_size: Some(8),
        max_pixels: Some(262_144),
        max_steps: Some(100),
        max_work: Some(1_000_000),
        max_seconds: Some(60),
        max_waiting_requests: Some(4),
        gpu_memory_reserve_mib: Some(512),
        intra_op_threads: Some(2),
        default_gen_args: "{\"num_inference_steps\": 25}".to_owned(),
    };
    assert_eq!(parameters, expected);
}

#[test]
fn parse_bad_value_names_key_and_allowed_values() {
    for (key, text) in [
        ("checkpoint", ""),
        ("checkpoint", "/models/sd"),
        ("checkpoint", "../sd"),
        ("checkpoint", "a/../../sd"),
        ("checkpoint", "a\0b"),
        ("base", ""),
        ("base", ".."),
        ("base", "blake3:12"),
        ("base", "a b"),
        ("lora", "../style.safetensors"),
        ("lora", "/style.safetensors"),
        ("lora_scale", "11"),
        ("lora_scale", "NaN"),
        ("dtype", "half"),
        ("dtype", "Float16"),
        ("scheduler", ""),
        ("scheduler", "DDIM Scheduler"),
        ("numerics", "quick"),
        ("weights", "mapped"),
        ("outside_links", "false"),
        ("loras", ""),
        ("lora_cache_bytes", "-1"),
        ("embeddings", ""),
        ("embeddings", "a\0b"),
        ("safety_checker", "no"),
        ("safety_checker", ""),
        ("provenance", "true"),
        ("provenance", ""),
        ("max_unet_batch_size", "0"),
        ("max_unet_batch_size", "257"),
        ("max_unet_batch_size", "+8"),
        ("max_unet_batch_size", "8.0"),
        ("max_unet_batch_size", ""),
        ("max_pixels", "63"),
        ("max_pixels", "99999999999999999999999"),
        ("max_steps", "-1"),
        ("max_steps", "1001"),
        ("max_work", "0"),
        ("max_work", "9007199254740993"),
        ("max_seconds", "0"),
        ("max_seconds", "60.0"),
        ("max_waiting_requests", "0"),
        ("gpu_memory_reserve_mib", "-1"),
        ("gpu_memory_reserve_mib", "1048577"),
        ("intra_op_threads", "0"),
        ("intra_op_threads", "1025"),
    ] {
        let error = one(key, text).unwrap_err();
        let allowed = PARAMETERS.iter().find(|p| p.name == key).unwrap().allowed;
        assert_eq!(
            error,
            Error::InvalidArgument(format!("parameter `{key}` must be {allowed}")),
            "{text}"
        );
    }
}

#[test]
fn allowed_range_text_matches_range() {
    for (key, range) in [
        ("lora_cache_bytes", LORA_CACHE_BYTES),
        ("max_unet_batch_size", MAX_UNET_BATCH_SIZE),
        ("max_pixels", MAX_PIXELS),
        ("max_steps", MAX_STEPS),
        ("max_work", MAX_WORK),
        ("max_seconds", MAX_SECONDS),
        ("max_waiting_requests", MAX_WAITING_REQUESTS),
        ("gpu_memory_reserve_mib", GPU_MEMORY_RESERVE_MIB),
        ("intra_op_threads", INTRA_OP_THREADS),
    ] {
        let allowed = PARAMETERS.iter().find(|p| p.name == key).unwrap().allowed;
        let text = format!("an integer from {} to {}", range.start(), range.end());
        assert_eq!(allowed, text);
        for edge in [range.start(), range.end()] {
            assert!(one(key, &edge.to_string()).is_ok());
        }
    }
}

#[test]
fn engine_parameters_do_not_have_what_requests_alone_need() {
    for (key, text) in [("max_seconds", "60"), ("provenance", "off"), ("embeddings", "words")] {
        let (parameters, _) = one(key, text).unwrap();
        assert_eq!(parameters.of_engine(), ModelParameters::default());
    }
    for (key, text) in [
        ("numerics", "exact"),
        ("dtype", "bfloat16"),
        ("max_unet_batch_size", "8"),
    ] {
        let (parameters, _) = one(key, text).unwrap();
        assert_eq!(parameters.of_engine(), parameters);
    }
}

#[test]
fn parse_value_without_string_is_an_error() {
    for parameters in [
        json!({"dtype": "float16"}),
        json!({"dtype": {}}),
        json!({"dtype": {"string_value": 16}}),
        json!([1]),
    ] {
        assert!(matches!(
            ModelParameters::parse(&parameters),
            Err(Error::InvalidArgument(_))
        ));
    }
}

#[test]
fn parse_unknown_key_is_a_warning() {
    let (parameters, warnings) = ModelParameters::parse(&json!({
        "EXECUTION_ENV_PATH": {"string_value": "conda/sd_env.tar.gz"},
        "FORCE_CPU_ONLY_INPUT_TENSORS": {"string_value": "no"},
        "Max-Unet-Batch-Sise": {"string_value": "4"},
        "max_step": {"string_value": "4"},
    }))
    .unwrap();
    assert_eq!(parameters, ModelParameters::default());
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    let with = |part: &str| warnings.iter().any(|w| w.contains(part));
    assert!(with("unknown parameter `EXECUTION_ENV_PATH`"));
    assert!(with("unknown parameter `FORCE_CPU_ONLY_INPUT_TENSORS`"));
    assert!(with("unknown parameter; did you mean `max_unet_batch_size`?"));
    assert!(with("unknown parameter `max_step`; did you mean `max_steps`?"));
    assert!(!with("conda"));
}
