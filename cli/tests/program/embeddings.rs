//! `inspect` with a file of textual inversion, and `generate` with its word.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use test_support::recipe::Recipe;

use crate::support::{checkpoint, fail, run, succeed, temporary};

/// Writes a file of the goldens.
fn write(name: &str, file: &Path) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/goldens/textual_inversion.json");
    let manifest: Value = serde_json::from_str(&fs::read_to_string(goldens).unwrap()).unwrap();
    let files = manifest["files"].as_array().unwrap();
    let found = files.iter().find(|one| one["path"] == name).unwrap();
    let recipe: Recipe = serde_json::from_value(found["content"].clone()).unwrap();
    fs::write(file, recipe.weights().unwrap()).unwrap();
}

#[test]
fn inspect_tells_the_word_of_an_embedding() {
    let folder = temporary();
    write(
        "embeddings/c-multi.safetensors",
        &folder.path().join("multi.safetensors"),
    );
    write(
        "embeddings/easyneg.safetensors",
        &folder.path().join("easyneg.safetensors"),
    );
    for (file, word, vectors) in [
        ("multi.safetensors", "<multi>", 4),
        ("easyneg.safetensors", "easyneg", 8),
    ] {
        let report: Value = serde_json::from_str(&succeed(folder.path(), &["inspect", file, "--json"])).unwrap();
        let told = [&report["word"], &report["vectors"], &report["size"]];
        assert_eq!(told, [&json!(word), &json!(vectors), &json!(32)]);
        let text = succeed(folder.path(), &["inspect", file]);
        assert!(
            text.contains(&format!(
                "word          {word}\n  vectors       {vectors} of 32 numbers"
            )),
            "{text}"
        );
    }
    // A checkpoint of one tensor is none.
    let tensor = safetensors_of("layer", &[2, 2, 2]);
    fs::write(folder.path().join("other.safetensors"), tensor).unwrap();
    let output = run(folder.path(), &["inspect", "other.safetensors"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("problem: the tensor has 3 dimensions"), "{text}");
}

/// Returns a file of one tensor of zeros.
fn safetensors_of(name: &str, shape: &[usize]) -> Vec<u8> {
    let bytes = 4 * shape.iter().product::<usize>();
    let header = json!({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.resize(file.len() + bytes, 0);
    file
}

#[test]
fn generate_with_an_embedding_gives_another_image() {
    let folder = temporary();
    let embeddings = folder.path().join("embeddings");
    fs::create_dir(&embeddings).unwrap();
    write(
        "embeddings/easyneg.safetensors",
        &embeddings.join("easyneg.safetensors"),
    );
    fs::write(embeddings.join("brokenword.safetensors"), "rubbish").unwrap();
    let model = checkpoint("sd1").display().to_string();
    let arguments = |out: &'static str, prompt: &'static str, more: &[&'static str]| {
        let mut arguments = vec!["generate", &model, "--prompt", prompt, "--seed", "3", "--out", out];
        arguments.extend(["--set", "num_inference_steps=2"].iter().chain(more));
        arguments.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()
    };
    let generate =
        |arguments: &[String]| succeed(folder.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let given = ["--embeddings", "embeddings"];
    generate(&arguments("plain.jpg", "easyneg", &[]));
    generate(&arguments("word.jpg", "easyneg", &given));
    let bytes = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_ne!(bytes("plain.jpg"), bytes("word.jpg"));
    let broken = arguments("none.jpg", "a brokenword", &given);
    let error = fail(folder.path(), &broken.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        error.contains("prompt: embeddings/brokenword.safetensors: not a whole safetensors file"),
        "{error}"
    );
}
