//! `inspect` with a LoRA file, and `generate` with LoRAs.

use std::fs;

use serde_json::{Value, json};

use crate::support::{checkpoint, fail, run, succeed, temporary, write_lora};

#[test]
fn inspect_tells_what_a_lora_changes() {
    let folder = temporary();
    write_lora("sd1-locon.safetensors", &folder.path().join("locon.safetensors"));
    let report: Value =
        serde_json::from_str(&succeed(folder.path(), &["inspect", "locon.safetensors", "--json"])).unwrap();
    let unet = &report["components"]["unet"];
    assert_eq!((&unet["ranks"], &report["dtypes"]), (&json!([4]), &json!(["F16"])));
    let (layers, convolutions) = (unet["layers"].as_u64().unwrap(), unet["convolutions"].as_u64().unwrap());
    assert!(0 < convolutions && convolutions < layers, "{report}");
    let text = succeed(folder.path(), &["inspect", "locon.safetensors"]);
    let line = format!("unet          {layers} layers of rank 4, {convolutions} of them convolutions");
    assert!(text.contains(&line), "{text}");
    // A checkpoint is no LoRA.
    let weights = checkpoint("sd1").join("vae/diffusion_pytorch_model.safetensors");
    let output = run(folder.path(), &["inspect", &weights.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("not the name of a LoRA's tensor")
    );
}

#[test]
fn generate_with_a_lora_gives_another_image() {
    let folder = temporary();
    write_lora("sd1-kohya.safetensors", &folder.path().join("style.safetensors"));
    let model = checkpoint("sd1").display().to_string();
    let generate = |out: &'static str, more: &[&'static str]| {
        let mut arguments = vec!["generate", &model, "--prompt", "a cat", "--seed", "3", "--out", out];
        arguments.extend(["--set", "num_inference_steps=2"].iter().chain(more));
        arguments.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()
    };
    let words =
        |arguments: &Vec<String>| succeed(folder.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let loras = r#"loras=[{"name": "style"}]"#;
    words(&generate("plain.jpg", &[]));
    words(&generate("styled.jpg", &["--set", loras, "--loras", "."]));
    let bytes = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_ne!(bytes("plain.jpg"), bytes("styled.jpg"));
    let without = generate("none.jpg", &["--set", loras]);
    let error = fail(folder.path(), &without.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("`loras`, number 1: the model has no LoRAs"), "{error}");
}
