//! `repo` makes a model repository of links.

use std::fs;

use crate::support::{checkpoint, copy, fail, linked, succeed, temporary};

#[test]
fn repo_makes_links_and_configurations() {
    let folder = temporary();
    let cached = linked("sd2_base", folder.path()).display().to_string();
    let depth = format!("deep={}", checkpoint("sd2_depth").display());
    let parameter = "default_gen_args={\"num_inference_steps\": 5}";
    succeed(
        folder.path(),
        &["repo", &cached, &depth, "--kind", "cpu", "--parameter", parameter],
    );
    let repository = folder.path().join("model_repository");
    for (name, class) in [
        ("sd2_base", "StableDiffusionPipeline"),
        ("deep", "StableDiffusionDepth2ImgPipeline"),
    ] {
        let model = repository.join(name);
        assert!(model.join("1/checkpoint/model_index.json").exists(), "{name}");
        let config = fs::read_to_string(model.join("config.pbtxt")).unwrap();
        assert!(config.starts_with(&format!("# {class}.")), "{config}");
        assert!(config.contains("kind: KIND_CPU"), "{config}");
        assert!(config.contains(r#""{\"num_inference_steps\": 5}""#), "{config}");
        assert!(model.join("configs/cpu.pbtxt").exists());
    }
    assert!(repository.join("deep/1/checkpoint").is_symlink());
    let error = fail(folder.path(), &["repo", &depth]);
    assert!(error.contains("already"), "{error}");
}

#[test]
fn repo_makes_nothing_if_one_folder_is_refused() {
    let folder = temporary();
    let good = copy("sd1", folder.path()).display().to_string();
    let bad = copy("sd2_base", folder.path());
    fs::remove_file(bad.join("text_encoder/model.safetensors")).unwrap();
    let error = fail(folder.path(), &["repo", &good, "sd2_base"]);
    assert!(error.contains("would refuse"), "{error}");
    assert!(!folder.path().join("model_repository").exists());
    let error = fail(folder.path(), &["repo", &good, &good]);
    assert!(error.contains("two models are called sd1"), "{error}");
}
