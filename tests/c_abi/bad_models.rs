//! Models that cannot be loaded: each says why, and the others are served on.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use triton_api::{Error, ErrorCode, InstanceKind};
use triton_fake::{FakeBackend, InstanceSpec, ModelSpec};

use crate::checkpoints::{TEXT_ENCODER, UNET, VAE, rewrite};
use crate::support::*;

/// Loads a model and an instance of it.
fn load(backend: &FakeBackend<'_>, spec: ModelSpec, instance: InstanceSpec) -> Result<(), Error> {
    backend.load_model(spec)?.load_instance(instance).map(drop)
}

/// Loads a bad model next to a good one.
fn next_to_a_good_one(test: impl FnOnce(&Repository, &FakeBackend<'_>)) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("good", "sd1")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    test(&repository, &backend);
    assert_serves(&server, &instance);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

fn assert_refused(case: &str, outcome: Result<(), Error>, code: ErrorCode, words: &[&str]) {
    let Err(error) = outcome else {
        unreachable!("{case}: the model was loaded");
    };
    println!("{case}: {}", error.message());
    assert_eq!(error.code(), code, "{case}: {error}");
    assert_says(error.message(), &["sd_base"]);
    assert_says(error.message(), words);
}

fn edit(file: &'static str, key: &'static str, value: Value) -> impl FnOnce(&Path) {
    move |folder| edit_json(&folder.join(file), |json| json[key] = value)
}

fn remove(file: &'static str) -> impl FnOnce(&Path) {
    move |folder| fs::remove_file(folder.join(file)).unwrap()
}

fn to_pickle(folder: &Path) {
    fs::rename(folder.join(VAE), folder.join("vae/diffusion_pytorch_model.bin")).unwrap();
}

fn cut(bytes: u64) -> impl FnOnce(&Path) {
    move |folder| {
        let file = fs::OpenOptions::new().write(true).open(folder.join(UNET)).unwrap();
        file.set_len(bytes).unwrap();
    }
}

#[test]
fn load_invalid_checkpoint_folder_is_rejected() {
    use ErrorCode::{InvalidArg, NotFound, Unsupported};
    const TENSOR: &str = "down_blocks.0.attentions.1.proj_in.weight";
    const SCHEDULER: &str = "scheduler/scheduler_config.json";
    let whole = fs::metadata(checkpoint("sd2_base").join(UNET)).unwrap().len();
    type Change = Box<dyn FnOnce(&Path)>;
    fn change(change: impl FnOnce(&Path) + 'static) -> Change {
        Box::new(change)
    }
    let cases: Vec<(&str, Change, ErrorCode, &[&str])> = vec![
        (
            "no checkpoint folder",
            change(|folder| fs::remove_dir_all(folder).unwrap()),
            NotFound,
            &["1/checkpoint"],
        ),
        (
            "no model_index.json",
            change(remove("model_index.json")),
            NotFound,
            &["model_index.json"],
        ),
        (
            "a model_index.json that is no JSON",
            change(|folder| fs::write(folder.join("model_index.json"), "{\"_class_name\":").unwrap()),
            InvalidArg,
            &["model_index.json"],
        ),
        (
            "another pipeline",
            change(edit("model_index.json", "_class_name", json!("FluxPipeline"))),
            Unsupported,
            &["model_index.json", "_class_name"],
        ),
        (
            "a UNet that the pipeline has not",
            change(edit(
                "model_index.json",
                "_class_name",
                json!("StableDiffusionUpscalePipeline"),
            )),
            InvalidArg,
            &["unet/config.json", "in_channels", "StableDiffusionUpscalePipeline"],
        ),
        (
            "another text encoder",
            change(edit(
                "model_index.json",
                "text_encoder",
                json!(["transformers", "T5EncoderModel"]),
            )),
            Unsupported,
            &["text_encoder", "CLIPTextModel"],
        ),
        (
            "no VAE",
            change(edit("model_index.json", "vae", json!([null, null]))),
            NotFound,
            &["model_index.json", "vae"],
        ),
        (
            "a latent consistency model whose UNet takes no guidance scale",
            change(edit(
                "model_index.json",
                "_class_name",
                json!("LatentConsistencyModelPipeline"),
            )),
            InvalidArg,
            &["unet/config.json", "time_cond_proj_dim"],
        ),
        (
            "a UNet that is said to take the guidance scale, and has no weights for it",
            change(edit("unet/config.json", "time_cond_proj_dim", json!(256))),
            NotFound,
            &["time_embedding.cond_proj.weight"],
        ),
        (
            "no unet/config.json",
            change(remove("unet/config.json")),
            NotFound,
            &["unet/config.json"],
        ),
        (
            "no weights",
            change(remove(TEXT_ENCODER)),
            NotFound,
            &["text_encoder", "model.safetensors"],
        ),
        (
            "no tokenizer",
            change(remove("tokenizer/vocab.json")),
            NotFound,
            &["tokenizer", "vocab.json"],
        ),
        ("no scheduler", change(remove(SCHEDULER)), NotFound, &[SCHEDULER]),
        (
            "pickled weights",
            change(to_pickle),
            Unsupported,
            &["vae", ".bin", "safe_serialization=True"],
        ),
        (
            "a missing tensor",
            change(|folder| rewrite(&folder.join(UNET), |tensors| drop(tensors.remove(TENSOR).unwrap()))),
            NotFound,
            &["unet", TENSOR],
        ),
        (
            "a tensor too many",
            change(|folder| {
                rewrite(&folder.join(UNET), |tensors| {
                    let copy = tensors[TENSOR].clone();
                    tensors.insert("mid_block.zebra.weight".to_owned(), copy);
                });
            }),
            InvalidArg,
            &["unet", "mid_block.zebra.weight"],
        ),
        (
            "a tensor of another shape",
            change(|folder| {
                rewrite(&folder.join(UNET), |tensors| {
                    let stored = tensors.get_mut(TENSOR).unwrap();
                    stored.shape = vec![stored.shape.iter().product()];
                });
            }),
            InvalidArg,
            &[UNET, TENSOR, "shape"],
        ),
        (
            "a file cut by one byte",
            change(cut(whole - 1)),
            InvalidArg,
            &[UNET, "not a whole safetensors file"],
        ),
        (
            "a file cut in its header",
            change(cut(100)),
            InvalidArg,
            &[UNET, "not a whole safetensors file"],
        ),
        ("an empty file", change(cut(0)), InvalidArg, &[UNET]),
        (
            "an unknown scheduler",
            change(edit(SCHEDULER, "_class_name", json!("ZebraScheduler"))),
            Unsupported,
            &["scheduler", "PNDMScheduler"],
        ),
        (
            "a switch of the scheduler",
            change(|folder| {
                edit_json(&folder.join(SCHEDULER), |json| {
                    json["_class_name"] = "DPMSolverMultistepScheduler".into();
                    json["use_flow_sigmas"] = true.into();
                });
            }),
            Unsupported,
            &["scheduler_config.json", "use_flow_sigmas"],
        ),
        (
            "a UNet for a wider text encoder",
            change(edit("unet/config.json", "cross_attention_dim", json!(64))),
            InvalidArg,
            &["unet/config.json", "cross_attention_dim", "32"],
        ),
        (
            "a config that does not fit the weights",
            change(edit("unet/config.json", "layers_per_block", json!(1))),
            InvalidArg,
            &["unet"],
        ),
    ];
    next_to_a_good_one(|repository, backend| {
        for (index, (case, change, code, words)) in cases.into_iter().enumerate() {
            let spec = repository.changed(&format!("sd_base_{index}"), "sd2_base", change);
            let outcome = load(backend, spec, InstanceSpec::default());
            assert_refused(case, outcome, code, words);
        }
    });
}

#[test]
fn load_invalid_parameter_is_rejected() {
    use ErrorCode::{InvalidArg, Unsupported};
    let cases: [(&str, &str, ErrorCode, &[&str]); 14] = [
        ("dtype", "int8", InvalidArg, &["float32", "bfloat16"]),
        ("numerics", "wrong", InvalidArg, &["exact, fast"]),
        ("max_unet_batch_size", "0", InvalidArg, &["1 to 256"]),
        ("max_unet_batch_size", "many", InvalidArg, &["1 to 256"]),
        ("max_pixels", "-1", InvalidArg, &["integer"]),
        ("max_steps", "1001", InvalidArg, &["1 to 1000"]),
        ("checkpoint", "../checkpoint", InvalidArg, &["version folder"]),
        ("checkpoint", "/etc", InvalidArg, &["version folder"]),
        ("scheduler", "", InvalidArg, &["diffusers"]),
        ("scheduler", "NoSuchScheduler", Unsupported, &["PNDMScheduler"]),
        ("default_gen_args", "{", InvalidArg, &["JSON"]),
        (
            "default_gen_args",
            r#"{"step": 1}"#,
            InvalidArg,
            &["unknown key `step`"],
        ),
        (
            "default_gen_args",
            r#"{"noise_level": 20}"#,
            InvalidArg,
            &["noise_level"],
        ),
        ("default_gen_args", r#"{"preview": true}"#, InvalidArg, &["preview"]),
    ];
    next_to_a_good_one(|repository, backend| {
        let spec = repository.link("sd_base", "sd2_base");
        for (key, value, code, words) in cases {
            let outcome = load(backend, spec.clone().parameter(key, value), InstanceSpec::default());
            assert_refused(&format!("{key}: {value}"), outcome, code, words);
            if key != "scheduler" {
                let outcome = load(backend, spec.clone().parameter(key, value), InstanceSpec::default());
                assert_refused(key, outcome, code, &[key]);
            }
        }
        // One that nobody reads is no reason to fail.
        load(backend, spec.parameter("zebra", "1"), InstanceSpec::default()).unwrap();
    });
}

#[test]
fn load_invalid_model_config_is_rejected() {
    let tensor = |name: &str, kind: &str| json!({"name": name, "data_type": kind, "dims": [1]});
    let config = |key: &str, value: Value| {
        let mut config = json!({
            "name": "sd_base", "max_batch_size": 4,
            "input": [tensor("prompt", "TYPE_STRING")],
            "output": [tensor("generated_image", "TYPE_STRING")],
        });
        config[key] = value;
        config
    };
    use ErrorCode::{InvalidArg, Unsupported};
    let cases: [(Value, ErrorCode, &[&str]); 5] = [
        (config("input", json!([])), InvalidArg, &["input `prompt`"]),
        (
            config("input", json!([tensor("prompt", "TYPE_FP32")])),
            InvalidArg,
            &["input `prompt`", "TYPE_STRING"],
        ),
        (
            config(
                "input",
                json!([tensor("prompt", "TYPE_STRING"), tensor("depth_map", "TYPE_STRING")]),
            ),
            InvalidArg,
            &["input `depth_map`"],
        ),
        (
            config("output", json!([tensor("image", "TYPE_STRING")])),
            InvalidArg,
            &["generated_image"],
        ),
        (
            config("sequence_batching", json!({})),
            Unsupported,
            &["sequence_batching"],
        ),
    ];
    next_to_a_good_one(|repository, backend| {
        let spec = repository.link("sd_base", "sd2_base").auto_complete(false);
        for (config, code, words) in cases {
            let outcome = load(backend, spec.clone().config(config), InstanceSpec::default());
            assert_refused(words[0], outcome, code, words);
        }
        load(
            backend,
            spec.config(config("version_policy", json!({}))),
            InstanceSpec::default(),
        )
        .unwrap();
    });
}

#[test]
fn load_on_unavailable_device_is_rejected() {
    next_to_a_good_one(|repository, backend| {
        let spec = repository.link("sd_base", "sd2_base");
        let place = |kind| InstanceSpec {
            name: "instance_0".to_owned(),
            kind,
            device_id: 99,
        };
        let on_gpu = load(backend, spec.clone(), place(InstanceKind::Gpu));
        // Without libtorch's CUDA library it is asked for; with it, no machine has this many GPUs.
        let words: &[&str] = if triton_diffusion::torch::cuda::is_linked() {
            &["GPU 99"]
        } else {
            &["libtorch_cuda.so", "TRITON_DIFFUSION_CUDA_PATH"]
        };
        assert_refused("KIND_GPU", on_gpu, ErrorCode::Unsupported, words);
        let by_model = load(backend, spec.clone(), place(InstanceKind::Model));
        assert_refused(
            "KIND_MODEL",
            by_model,
            ErrorCode::Unsupported,
            &["KIND_MODEL", "KIND_CPU"],
        );
        load(backend, spec, place(InstanceKind::Cpu)).unwrap();
    });
}
