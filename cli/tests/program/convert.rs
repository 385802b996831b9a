//! `convert`: there and back again.

use std::fs;
use std::path::Path;

use safetensors::Dtype;

use crate::original::{Tensor, Tensors, original, read, write};
use crate::support::{checkpoint, fail, run, succeed, temporary};

const WEIGHTS: [&str; 3] = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
];

fn some(shape: &[usize]) -> Tensor {
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: vec![0; shape.iter().product::<usize>() * 4],
    }
}

/// Tensors that files hold in addition to the three models.
fn with_left_overs(mut tensors: Tensors, open_clip: bool) -> Tensors {
    let mut more = vec![
        "betas",
        "alphas_cumprod",
        "model_ema.decay",
        "model_ema.diffusion_modelout2bias",
    ];
    if open_clip {
        more.extend([
            "cond_stage_model.model.text_projection",
            "cond_stage_model.model.logit_scale",
        ]);
    } else {
        more.push("cond_stage_model.transformer.text_model.embeddings.position_ids");
    }
    tensors.extend(more.into_iter().map(|name| (name.to_owned(), some(&[2]))));
    tensors
}

fn image(folder: &Path, model: &str, out: &str) -> Vec<u8> {
    let steps = "num_inference_steps=2";
    let line = ["generate", model, "--prompt", "a chair", "--seed", "1", "--set", steps];
    let line: Vec<&str> = line
        .iter()
        .chain(&["--model-name", "m", "--out", out])
        .copied()
        .collect();
    succeed(folder, &line);
    fs::read(folder.join(out)).unwrap()
}

#[test]
fn convert_of_an_original_file_restores_the_folder() {
    for (name, open_clip) in [("sd1", false), ("sd2_base", true), ("sd2_inpaint", true)] {
        let folder = temporary();
        let model = checkpoint(name);
        let path = model.display().to_string();
        let file = folder.path().join("model.safetensors");
        write(&file, &with_left_overs(original(&model, open_clip), open_clip));
        let told = succeed(
            folder.path(),
            &["convert", "model.safetensors", "--config", &path, "--out", "converted"],
        );
        assert!(told.contains("skipped 2 tensors: running means"), "{told}");
        let converted = folder.path().join("converted");
        for weights in WEIGHTS {
            let (before, after) = (read(&model.join(weights)), read(&converted.join(weights)));
            assert_eq!(
                before.keys().collect::<Vec<_>>(),
                after.keys().collect::<Vec<_>>(),
                "{name} {weights}"
            );
            for (tensor, value) in &before {
                assert!(after[tensor] == *value, "{name} {weights} {tensor}");
            }
        }
        if name != "sd2_inpaint" {
            let made = image(folder.path(), "converted", "a.png");
            assert!(made == image(folder.path(), &path, "b.png"), "{name}");
        }
        // Without the tokenizer's other files: those that serving reads, and no more.
        assert!(converted.join("tokenizer/vocab.json").exists());
    }
}

#[test]
fn convert_with_dtype_converts_the_weights() {
    let folder = temporary();
    let model = checkpoint("sd1");
    let path = model.display().to_string();
    write(&folder.path().join("m.safetensors"), &original(&model, false));
    let line = [
        "convert",
        "m.safetensors",
        "--config",
        &path,
        "--out",
        "wide",
        "--dtype",
        "float32",
    ];
    succeed(folder.path(), &line);
    let wide = read(&folder.path().join("wide").join(WEIGHTS[1]));
    assert!(wide.values().all(|tensor| tensor.dtype == Dtype::F32));
    let narrow = image(folder.path(), &path, "a.png");
    assert!(image(folder.path(), "wide", "b.png") == narrow);
}

#[test]
fn convert_refuses_pickles_by_their_contents() {
    let folder = temporary();
    let tokenizer = checkpoint("sd1").display().to_string();
    for begin in [&b"PK\x03\x04rest of an archive"[..], b"\x80\x02}q\x00."] {
        fs::write(folder.path().join("m.safetensors"), begin).unwrap();
        let line = ["convert", "m.safetensors", "--tokenizer", &tokenizer, "--out", "o"];
        let error = fail(folder.path(), &line);
        assert!(error.contains("pickled"), "{error}");
    }
    fs::write(folder.path().join("m.safetensors"), b"something else").unwrap();
    let error = fail(
        folder.path(),
        &["convert", "m.safetensors", "--tokenizer", &tokenizer, "--out", "o"],
    );
    assert!(error.contains("not a whole safetensors file"), "{error}");
    assert!(!folder.path().join("o").exists());
}

#[test]
fn convert_without_required_options_is_refused() {
    let folder = temporary();
    let model = checkpoint("sd2_base");
    let path = model.display().to_string();
    write(&folder.path().join("m.safetensors"), &original(&model, true));
    let refused = |arguments: &[&str]| {
        let line = ["convert", "m.safetensors", "--out", "o"];
        let line: Vec<&str> = line.iter().chain(arguments).copied().collect();
        fail(folder.path(), &line)
    };
    for (arguments, words) in [
        (&[][..], "holds no tokenizer: give --tokenizer"),
        (&["--tokenizer", "."], "no tokenizer_config.json"),
        (&["--tokenizer", &path], "give --prediction-type"),
        // Sizes that no published model has.
        (&["--tokenizer", &path, "--prediction-type", "epsilon"], "give --config"),
        (
            &["--config", &checkpoint("sd1").display().to_string()],
            "would refuse this model",
        ),
    ] {
        let error = refused(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    // What --config decides cannot be said twice.
    let line = [
        "convert",
        "m.safetensors",
        "--out",
        "o",
        "--config",
        &path,
        "--image-size",
        "768",
    ];
    assert_eq!(run(folder.path(), &line).status.code(), Some(2));
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["m.safetensors"]);
}

#[test]
fn convert_names_a_missing_component() {
    let folder = temporary();
    let model = checkpoint("sd1");
    let path = model.display().to_string();
    let whole = original(&model, false);
    for (gone, words) in [
        ("model.diffusion_model.", "no UNet"),
        ("first_stage_model.", "no VAE"),
        ("cond_stage_model.", "no text encoder"),
        ("model.diffusion_model.out.2.bias", "conv_out.bias is missing"),
    ] {
        let kept = whole.clone().into_iter().filter(|(name, _)| !name.starts_with(gone));
        write(&folder.path().join("m.safetensors"), &kept.collect());
        let error = fail(
            folder.path(),
            &["convert", "m.safetensors", "--config", &path, "--out", "o"],
        );
        assert!(error.contains(words), "{gone}: {error}");
    }
}
