//! `convert` with LoRAs: the same layers in the format of diffusers with peft.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::original::{Tensor, Tensors, read, write};
use crate::support::{checkpoint, fail, files, run, succeed, temporary, write_lora};

/// The LoRAs of the goldens, of every format.
const FILES: [&str; 11] = [
    "peft-1",
    "peft-4",
    "peft-16",
    "peft-64",
    "peft-all",
    "diffusers",
    "processors",
    "kohya",
    "kohya-alphas",
    "locon",
    "text",
];
/// Those in a folder of peft.
const FOLDERS: [&str; 2] = ["folder", "rslora"];

/// Writes a LoRA of the goldens as the only one in `loras`, and returns its path.
fn only_lora(loras: &Path, family: &str, name: &str) -> String {
    fs::create_dir_all(loras).unwrap();
    if FOLDERS.contains(&name) {
        let folder = loras.join("style");
        fs::create_dir(&folder).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            write_lora(&format!("{family}-{name}/{file}"), &folder.join(file));
        }
        return folder.display().to_string();
    }
    let file = loras.join("style.safetensors");
    write_lora(&format!("{family}-{name}.safetensors"), &file);
    file.display().to_string()
}

/// Generates an image with the LoRA `style` of a folder.
fn image(folder: &Path, model: &str, loras: &str) -> Vec<u8> {
    let line = [
        "generate",
        model,
        "--prompt",
        "a chair",
        "--seed",
        "1",
        "--model-name",
        "m",
    ];
    let more = [
        "--set",
        "num_inference_steps=1",
        "--set",
        r#"loras=[{"name": "style", "scale": 0.7}]"#,
        "--loras",
        loras,
        "--out",
        "image.png",
    ];
    let line: Vec<&str> = line.iter().chain(&more).copied().collect();
    succeed(folder, &line);
    fs::read(folder.join("image.png")).unwrap()
}

fn matrices(tensors: Tensors) -> Vec<(Dtype, Vec<u8>)> {
    let matrices = tensors.into_iter().filter(|(name, _)| !name.ends_with(".alpha"));
    let mut data: Vec<_> = matrices.map(|(_, tensor)| (tensor.dtype, tensor.data)).collect();
    data.sort_by(|one, other| one.1.cmp(&other.1));
    data
}

fn metadata(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["lora_adapter_metadata"]).unwrap()
}

#[test]
fn convert_of_every_format_keeps_tensors_and_images() {
    for family in ["sd1", "sd2_base"] {
        let model = checkpoint(family).display().to_string();
        for name in FILES.iter().chain(&FOLDERS) {
            let folder = temporary();
            let before = only_lora(&folder.path().join("before"), family, name);
            let convert =
                |from: &str, out: &str| succeed(folder.path(), &["convert", from, "--base", &model, "--out", out]);
            convert(&before, "after/style.safetensors");
            let after = folder.path().join("after/style.safetensors");
            let file = if FOLDERS.contains(name) {
                Path::new(&before).join("adapter_model.safetensors")
            } else {
                before.clone().into()
            };
            let tensors = read(&after);
            for tensor in tensors.keys() {
                let module = tensor
                    .strip_suffix(".lora_A.weight")
                    .or(tensor.strip_suffix(".lora_B.weight"))
                    .unwrap();
                assert!(
                    module.starts_with("unet.") || module.starts_with("text_encoder.text_model.encoder."),
                    "{family} {name} {tensor}"
                );
            }
            assert!(matrices(tensors) == matrices(read(&file)), "{family} {name}");
            // An image takes a second.
            if family == "sd1" || ["locon", "rslora"].contains(name) {
                let images = ["before", "after"].map(|loras| image(folder.path(), &model, loras));
                assert!(images[0] == images[1], "{family} {name}");
            }
            convert("after/style.safetensors", "again.safetensors");
            let again = fs::read(folder.path().join("again.safetensors")).unwrap();
            assert!(again == fs::read(&after).unwrap(), "{family} {name}");
        }
    }
}

#[test]
fn convert_writes_the_scales_of_the_layers() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    let convert = |name: &str| {
        let loras = folder.path().join(name);
        let from = only_lora(&loras, "sd1", name);
        let out = format!("{name}.safetensors");
        succeed(folder.path(), &["convert", &from, "--base", &model, "--out", &out]);
        metadata(&folder.path().join(out))
    };
    let alphas = convert("kohya-alphas");
    // The layers have 1, 2 and 3 in turn, of 128.
    assert_eq!(
        (&alphas["unet.r"], &alphas["unet.use_rslora"]),
        (&8.into(), &false.into())
    );
    let pattern = alphas["unet.alpha_pattern"].as_object().unwrap();
    let own = alphas["unet.lora_alpha"].as_i64().unwrap();
    assert!((1..=2).contains(&own), "{alphas}");
    assert_eq!(pattern.len(), 128 - 43);
    assert_eq!(pattern.values().filter(|alpha| **alpha == 3).count(), 42);
    assert_eq!(alphas["unet.target_modules"].as_array().unwrap().len(), 128);
    let rslora = convert("rslora");
    assert_eq!(
        (&rslora["unet.lora_alpha"], &rslora["unet.use_rslora"]),
        (&6.into(), &true.into())
    );
    assert!(rslora.get("text_encoder.r").is_none());
}

/// A tensor of ones.
fn ones(shape: &[usize]) -> Tensor {
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: 1f32.to_le_bytes().repeat(shape.iter().product()),
    }
}

fn tensors(parts: &[(&str, &[usize])]) -> Tensors {
    let parts = parts.iter().map(|(name, shape)| ((*name).to_owned(), ones(shape)));
    parts.collect()
}

const PROJ_IN: [&str; 2] = [
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
];
const TO_K: [&str; 2] = [
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight",
];

#[test]
fn convert_without_base_knows_the_published_models() {
    let folder = temporary();
    // The width of the text tells the models apart, and so what a 1x1 convolution is.
    for (width, projection) in [(768, &[1280, 2, 1, 1][..]), (1024, &[1280, 2])] {
        for given in [&[][..], &[1, 1]] {
            let (down, up) = ([&[2, 1280], given].concat(), [&[1280, 2], given].concat());
            let parts: [(&str, &[usize]); 4] = [
                (TO_K[0], &[4, width]),
                (TO_K[1], &[320, 4]),
                (PROJ_IN[0], &down),
                (PROJ_IN[1], &up),
            ];
            write(&folder.path().join("a.safetensors"), &tensors(&parts));
            let _ = fs::remove_file(folder.path().join("b.safetensors"));
            succeed(folder.path(), &["convert", "a.safetensors", "--out", "b.safetensors"]);
            let made = read(&folder.path().join("b.safetensors"));
            assert_eq!(
                made["unet.mid_block.attentions.0.proj_in.lora_B.weight"].shape,
                projection
            );
            let ranks = &metadata(&folder.path().join("b.safetensors"))["unet.rank_pattern"];
            assert_eq!(ranks.as_object().unwrap().len(), 1);
        }
    }
    // Without a layer that tells: as the file has it.
    for given in [&[][..], &[1, 1]] {
        let (down, up) = ([&[2, 1280], given].concat(), [&[1280, 2], given].concat());
        write(
            &folder.path().join("a.safetensors"),
            &tensors(&[(PROJ_IN[0], &down), (PROJ_IN[1], &up)]),
        );
        let _ = fs::remove_file(folder.path().join("b.safetensors"));
        succeed(folder.path(), &["convert", "a.safetensors", "--out", "b.safetensors"]);
        let made = read(&folder.path().join("b.safetensors"));
        assert_eq!(made["unet.mid_block.attentions.0.proj_in.lora_A.weight"].shape, down);
    }
}

#[test]
fn convert_refuses_what_the_server_refuses_and_leaves_no_file() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    let proj: [(&str, &[usize]); 2] = [(PROJ_IN[0], &[2, 24]), (PROJ_IN[1], &[24, 2])];
    let with = |more: (&'static str, &'static [usize])| tensors(&[proj[0], proj[1], more]);
    let mut infinite = tensors(&proj);
    infinite.get_mut(PROJ_IN[1]).unwrap().data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    for (hostile, words) in [
        (with(("lora_unet_a.dora_scale", &[1])), "DoRA is not supported; LoRA is"),
        (tensors(&[("lora_unet_a.hada_w1_a", &[1])]), "LoHa is not supported"),
        (tensors(&[("lora_unet_a.lokr_w1", &[1])]), "LoKr is not supported"),
        (with(("unet.a.oft_r.weight", &[1])), "OFT is not supported"),
        (
            with(("lora_unet_a.lora_mid.weight", &[1])),
            "a Tucker decomposition is not supported",
        ),
        (with(("unet.a.lora_B.bias", &[1])), "LoRA with a bias is not supported"),
        (with(("lora_te1_a.alpha", &[])), "for Stable Diffusion XL"),
        (
            with(("lora_unet_a.alpha", &[])),
            "tensor lora_unet_a.alpha: the model has no such layer",
        ),
        (
            with(("a.weight", &[1])),
            "tensor a.weight: not the name of a LoRA's tensor",
        ),
        (tensors(&proj[..1]), "has one of two matrices; both are needed"),
        (
            tensors(&[proj[0], (PROJ_IN[1], &[24, 3])]),
            "has shape [24, 3], the layer needs [24, 2, 1, 1]",
        ),
        (infinite, "has numbers that are not finite"),
    ] {
        write(&folder.path().join("a.safetensors"), &hostile);
        for more in [&["--base", model.as_str()][..], &[]] {
            let line = ["convert", "a.safetensors", "--out", "b.safetensors"];
            let line: Vec<&str> = line.iter().chain(more).copied().collect();
            let error = fail(folder.path(), &line);
            if more.is_empty() {
                assert!(
                    error.contains("a.safetensors") || error.contains("give --base"),
                    "{error}"
                );
            } else {
                assert!(
                    error.contains("a.safetensors: ") && error.contains(words),
                    "{words}: {error}"
                );
            }
        }
        assert_eq!(files(folder.path()).len(), 1, "{words}");
    }
    for bytes in [&b"\x80\x02}q\x00. a pickle"[..], &b"PK\x03\x04"[..]] {
        fs::create_dir_all(folder.path().join("f")).unwrap();
        fs::write(folder.path().join("f/pytorch_lora_weights.safetensors"), bytes).unwrap();
        let error = fail(folder.path(), &["convert", "f", "--out", "b.safetensors"]);
        assert!(error.contains("pickled"), "{error}");
    }
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn convert_without_base_asks_for_it_where_it_is_needed() {
    let folder = temporary();
    let refused = |parts: &[(&str, &[usize])]| {
        write(&folder.path().join("a.safetensors"), &tensors(parts));
        fail(folder.path(), &["convert", "a.safetensors", "--out", "b.safetensors"])
    };
    // Of a model of another size.
    let error = refused(&[(TO_K[0], &[4, 32]), (TO_K[1], &[16, 4])]);
    assert!(error.contains("fits no published model; give --base"), "{error}");
    assert!(
        error.contains("needs [4, 768]") && error.contains("needs [4, 1024]"),
        "{error}"
    );
    // One matrix as in Stable Diffusion 1, one as in 2.
    let error = refused(&[(PROJ_IN[0], &[2, 1280]), (PROJ_IN[1], &[1280, 2, 1, 1])]);
    assert!(error.contains("fits Stable Diffusion 1 and 2"), "{error}");
    // An error that both have is one error.
    let error = refused(&[("lora_unet_a.hada_w1_a", &[1])]);
    assert_eq!(error.matches("LoHa").count(), 1, "{error}");
}

#[test]
fn convert_of_a_lora_checks_its_options() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    write_lora("sd1-kohya.safetensors", &folder.path().join("a.safetensors"));
    fs::write(folder.path().join("there.safetensors"), "mine").unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::create_dir(folder.path().join("peft")).unwrap();
    write_lora(
        "sd1-folder/adapter_model.safetensors",
        &folder.path().join("peft/adapter_model.safetensors"),
    );
    let weights = checkpoint("sd1").join("vae/diffusion_pytorch_model.safetensors");
    let weights = weights.display().to_string();
    for (line, words) in [
        (
            &["a.safetensors", "--out", "b"][..],
            "expected a name that ends in .safetensors",
        ),
        (&["a.safetensors", "--out", "there.safetensors"], "already exists"),
        (
            &["a.safetensors", "--out", "b.safetensors", "--dtype", "float16"],
            "there is no --dtype",
        ),
        (
            &["a.safetensors", "--out", "b.safetensors", "--base", "none"],
            "none/unet: no such folder",
        ),
        (
            &[&weights, "--out", "b.safetensors", "--base", &model],
            "is a checkpoint, for which there is no --base",
        ),
        (
            &["empty", "--out", "b.safetensors"],
            "has neither adapter_model.safetensors",
        ),
        (&["peft", "--out", "b.safetensors"], "peft/adapter_config.json"),
        (
            &["peft/adapter_model.safetensors", "--out", "b.safetensors"],
            "peft/adapter_config.json",
        ),
    ] {
        let line: Vec<&str> = ["convert"].iter().chain(line).copied().collect();
        let error = fail(folder.path(), &line);
        assert!(error.contains(words), "{words}: {error}");
    }
    let both = [
        "convert",
        "a.safetensors",
        "--out",
        "b.safetensors",
        "--base",
        &model,
        "--dtype",
        "float16",
    ];
    assert_eq!(run(folder.path(), &both).status.code(), Some(2));
    assert_eq!(fs::read(folder.path().join("there.safetensors")).unwrap(), b"mine");
    assert!(!folder.path().join("b.safetensors").exists());
}
