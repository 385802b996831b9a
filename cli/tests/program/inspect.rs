//! `inspect` says what the server would.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{checkpoint, copy, fail, run, succeed, temporary};

fn report(folder: &std::path::Path) -> Value {
    let output = run(folder, &["inspect", ".", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(output.status.success(), problems.is_empty(), "{report}");
    report
}

#[test]
fn inspect_loads_every_checkpoint() {
    for (name, class) in [
        ("sd1", "StableDiffusionPipeline"),
        ("sd1_safety", "StableDiffusionPipeline"),
        ("sd2_depth", "StableDiffusionDepth2ImgPipeline"),
        ("sd2_inpaint", "StableDiffusionInpaintPipeline"),
        ("x4_upscaler", "StableDiffusionUpscalePipeline"),
        ("lcm", "LatentConsistencyModelPipeline"),
    ] {
        let report = report(&checkpoint(name));
        assert_eq!(report["pipeline"], class);
        assert_eq!(report["loaded"], true);
        assert_eq!(report["problems"], serde_json::json!([]), "{name}");
        assert_eq!(report["not_served"], serde_json::json!({}), "{name}");
    }
}

#[test]
fn inspect_counts_the_parameters_and_bytes_of_the_files() {
    let report = report(&checkpoint("sd1"));
    let part = |name: &str| {
        let parts = report["components"].as_array().unwrap();
        parts.iter().find(|part| part["name"] == name).unwrap().clone()
    };
    let unet = part("unet");
    assert_eq!(unet["class"], "UNet2DConditionModel");
    assert_eq!(unet["weights"]["dtypes"]["float16"], 431_156);
    assert_eq!(unet["weights"]["bytes"], 431_156 * 2);
    let files = unet["files"].as_object().unwrap();
    let bytes = fs::metadata(checkpoint("sd1").join("unet/diffusion_pytorch_model.safetensors"));
    assert_eq!(files["unet/diffusion_pytorch_model.safetensors"], bytes.unwrap().len());
    assert!(part("tokenizer")["files"]["tokenizer/vocab.json"].is_number());
    let sum: u64 = ["unet", "vae", "text_encoder"]
        .iter()
        .map(|name| part(name)["weights"]["parameters"].as_u64().unwrap())
        .sum();
    assert_eq!(report["total"]["parameters"], sum);
}

#[test]
fn inspect_reports_all_problems() {
    let folder = temporary();
    let model = copy("sd1", folder.path());
    fs::remove_file(model.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    fs::write(model.join("unet/diffusion_pytorch_model.bin"), "\u{80}").unwrap();
    let weights = model.join("vae/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    let report = report(&model);
    let problems: Vec<&str> = report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem.as_str().unwrap())
        .collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("pickled weights"), "{problems:?}");
    assert!(problems[1].contains("not a whole safetensors file"), "{problems:?}");
    assert!(report["not_served"]["unet/diffusion_pytorch_model.bin"].is_number());
}

#[test]
fn inspect_quick_does_not_load_the_model() {
    let folder = temporary();
    let model = copy("sd2_base", folder.path());
    let path = model.join("unet/config.json");
    let config = fs::read_to_string(&path).unwrap();
    // Twice as many resnets as there are weights for.
    fs::write(
        &path,
        config.replace("\"layers_per_block\": 2", "\"layers_per_block\": 4"),
    )
    .unwrap();
    let report = report(&model);
    let problem = report["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("is missing") || problem.contains("has shape"),
        "{problem}"
    );
    let text = succeed(&model, &["inspect", ".", "--quick"]);
    assert!(text.contains("was not loaded"), "{text}");
}

#[test]
fn inspect_of_a_folder_without_a_model_is_an_error() {
    let folder = temporary();
    let error = fail(folder.path(), &["inspect", "nowhere"]);
    assert!(error.contains("nowhere: no such folder"), "{error}");
    let error = fail(folder.path(), &["inspect", "."]);
    assert!(error.contains("model_index.json"), "{error}");
    let index = r#"{"_class_name": "FluxPipeline"}"#;
    fs::write(folder.path().join("model_index.json"), index).unwrap();
    let report = report(folder.path());
    let problem = report["problems"][0].as_str().unwrap();
    assert!(problem.contains("_class_name is not supported"), "{problem}");
}

#[test]
fn inspect_into_a_closed_pipe_succeeds() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_triton-diffusion"))
        .args(["inspect", ".", "--quick"])
        .current_dir(checkpoint("sd1"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(program.stdout.take());
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
