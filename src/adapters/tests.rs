//! Tests of LoRA files, good and hostile, with the layers of two small models.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind};

use super::{AdaptableLayers, Lora, LoraPool};
use crate::weights::LayerShapes;
use diffusion_core::ErrorKind;

const LAYER: &str = "down_blocks.0.attentions.0.proj";

/// A pool of a model with a linear layer and a convolution in the UNet, and a linear layer in the text encoder.
fn pool(folder: &Path, max_bytes: u64) -> LoraPool {
    let unet = LayerShapes::from([(LAYER.into(), vec![6, 4]), ("conv_in".into(), vec![6, 4, 3, 3])]);
    let text = LayerShapes::from([("encoder.layers.0.mlp.fc1".into(), vec![5, 3])]);
    let layers = AdaptableLayers::new((&unet, Kind::Float), (&text, Kind::Float), Device::Cpu);
    LoraPool::new(folder.to_path_buf(), layers, max_bytes)
}

/// A tensor of a file: its name, its shape and the value of all its elements.
type Part<'a> = (&'a str, &'a [usize], f32);

fn file(parts: &[Part<'_>]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = parts
        .iter()
        .map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = parts
        .iter()
        .zip(&data)
        .map(|((name, shape, _), data)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

const DOWN: &str = "unet.down_blocks.0.attentions.0.proj.lora_A.weight";
const UP: &str = "unet.down_blocks.0.attentions.0.proj.lora_B.weight";

fn good() -> Vec<u8> {
    file(&[(DOWN, &[2, 4], 1.0), (UP, &[6, 2], 1.0)])
}

/// Returns the error of a file.
fn refusal(bytes: &[u8]) -> (ErrorKind, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    fs::write(&path, bytes).unwrap();
    let error = pool(folder.path(), 1 << 20).get("a").unwrap_err();
    let text = error.to_string().replace(&path.display().to_string(), "FILE");
    (error.kind(), text)
}

#[test]
fn damaged_and_unfit_files_are_refused() {
    let down: Part<'_> = (DOWN, &[2, 4], 1.0);
    let up: Part<'_> = (UP, &[6, 2], 1.0);
    let kohya: Part<'_> = (
        "lora_unet_down_blocks_0_attentions_0_proj.lora_down.weight",
        &[2, 4],
        1.0,
    );
    for (parts, expected) in [
        (&[][..], "the file has no tensors"),
        (&[down], "has one of two matrices; both are needed"),
        (&[up], "has one of two matrices; both are needed"),
        (&[down, up, kohya], "are the same part of one layer"),
        (
            &[(DOWN, &[2, 5], 1.0), up],
            "lora_A.weight has shape [2, 5], the layer needs [2, 4]",
        ),
        (
            &[down, (UP, &[6, 3], 1.0)],
            "lora_B.weight has shape [6, 3], the layer needs [6, 2]",
        ),
        (
            &[(DOWN, &[2, 4, 3, 3], 1.0), up],
            "has shape [2, 4, 3, 3], the layer needs [2, 4]",
        ),
        (&[(DOWN, &[2], 1.0), up], "has shape [2], the layer needs [2, 4]"),
        (&[(DOWN, &[], 1.0), up], "the rank is 0, expected 1 to 1280"),
        (
            &[(DOWN, &[0, 4], 1.0), (UP, &[6, 0], 1.0)],
            "the rank is 0, expected 1 to 1280",
        ),
        (
            &[(DOWN, &[1281, 4], 1.0), (UP, &[6, 1281], 1.0)],
            "the rank is 1281, expected 1 to 1280",
        ),
        (&[(DOWN, &[2, 4], f32::NAN), up], "has numbers that are not finite"),
        (&[down, (UP, &[6, 2], f32::INFINITY)], "has numbers that are not finite"),
        (
            &[down, up, ("unet.down_blocks.0.attentions.0.proj.alpha", &[2], 1.0)],
            "has 2 numbers, expected 1",
        ),
        (
            &[down, up, ("unet.down_blocks.0.attentions.0.proj.alpha", &[], f32::NAN)],
            "is not a finite number",
        ),
        (
            &[down, up, ("unet.mid_block.proj.lora_A.weight", &[2, 4], 1.0)],
            "the model has no such layer",
        ),
        (
            &[
                down,
                up,
                (
                    "text_encoder.down_blocks.0.attentions.0.proj.lora_A.weight",
                    &[2, 4],
                    1.0,
                ),
            ],
            "no such layer",
        ),
        (
            &[down, up, ("proj.weight", &[2, 4], 1.0)],
            "tensor proj.weight: not the name of a LoRA's tensor",
        ),
        (
            &[down, up, ("lora_unet_conv_in.dora_scale", &[6], 1.0)],
            "DoRA is not supported",
        ),
        (
            &[down, up, ("lora_te2_a.alpha", &[], 1.0)],
            "the adapter is for Stable Diffusion XL",
        ),
    ] {
        let (kind, text) = refusal(&file(parts));
        assert!(
            text.contains(expected) && text.starts_with("FILE: "),
            "{expected}: {text}"
        );
        assert!(
            matches!(kind, ErrorKind::InvalidArgument | ErrorKind::Unsupported),
            "{text}"
        );
    }
}

#[test]
fn truncated_files_are_refused() {
    let whole = good();
    for length in [0, 7, 8, 40, whole.len() - 1] {
        let (kind, text) = refusal(&whole[..length]);
        assert_eq!(kind, ErrorKind::InvalidArgument, "{text}");
    }
    let (kind, text) = refusal(b"\x80\x02}q\x00. a pickle");
    assert_eq!(kind, ErrorKind::InvalidArgument, "{text}");
}

#[test]
fn integers_are_refused() {
    let ones = [1u8; 8 * 12];
    let view =
        |shape: [usize; 2]| TensorView::new(Dtype::I64, shape.to_vec(), &ones[..8 * shape[0] * shape[1]]).unwrap();
    let bytes = safetensors::serialize([(DOWN, view([2, 4])), (UP, view([6, 2]))], None).unwrap();
    assert!(refusal(&bytes).1.contains("has no float dtype"));
}

#[test]
fn every_place_of_a_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(folder.path(), 1 << 20);
    assert_eq!(pool.names(), [] as [&str; 0]);
    assert_eq!(pool.get("a").unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(folder.path().join("a.safetensors"), good()).unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/adapter_model.safetensors"), good()).unwrap();
    fs::create_dir(folder.path().join("c")).unwrap();
    fs::write(folder.path().join("c/pytorch_lora_weights.safetensors"), good()).unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    assert_eq!(pool.names(), ["a", "b", "c"]);
    assert_eq!(
        pool.get("b").unwrap_err().kind(),
        ErrorKind::NotFound,
        "its configuration is missing"
    );
    fs::write(folder.path().join("b/adapter_config.json"), r#"{"use_dora": true}"#).unwrap();
    assert_eq!(pool.get("b").unwrap_err().kind(), ErrorKind::Unsupported);
    fs::write(
        folder.path().join("b/adapter_config.json"),
        r#"{"lora_alpha": 4, "r": 2}"#,
    )
    .unwrap();
    for name in ["a", "b", "c"] {
        pool.get(name).unwrap();
    }
    assert_eq!(pool.usage().loads, 3);
}

#[test]
fn changed_file_is_loaded_again_and_an_equal_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(folder.path(), 1 << 20);
    let path = folder.path().join("a.safetensors");
    fs::write(&path, good()).unwrap();
    assert!(pool.loaded("a").is_none());
    let first = pool.get("a").unwrap();
    assert_eq!(pool.get("a").unwrap().id(), first.id());
    fs::hard_link(&path, folder.path().join("same.safetensors")).unwrap();
    // The link changes the file's ctime.
    let again = pool.get("a").unwrap();
    assert_eq!(pool.get("same").unwrap().id(), again.id(), "one file under two names");
    fs::write(
        folder.path().join("new"),
        file(&[(DOWN, &[3, 4], 1.0), (UP, &[6, 3], 1.0)]),
    )
    .unwrap();
    fs::rename(folder.path().join("new"), &path).unwrap();
    let replaced = pool.get("a").unwrap();
    assert_ne!(replaced.id(), again.id());
    assert_eq!(replaced.bytes(), 4 * (3 * 4 + 6 * 3));
    fs::remove_file(&path).unwrap();
    assert_eq!(pool.get("a").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn adapters_that_were_not_used_for_longest_are_freed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = 4 * (2 * 4 + 6 * 2);
    let pool = pool(folder.path(), 2 * bytes);
    for name in ["a", "b", "c"] {
        fs::write(folder.path().join(format!("{name}.safetensors")), good()).unwrap();
    }
    let (a, _) = (pool.get("a").unwrap(), pool.get("b").unwrap());
    assert_eq!(pool.get("a").unwrap().id(), a.id());
    pool.get("c").unwrap();
    assert!(pool.loaded("b").is_none() && pool.loaded("a").is_some() && pool.loaded("c").is_some());
    let usage = pool.usage();
    assert_eq!((usage.adapters, usage.bytes, usage.loads), (2, 2 * bytes, 3));
}

#[test]
fn equal_matrices_of_two_files_are_in_memory_once() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(folder.path(), 1 << 20);
    let other = file(&[(DOWN, &[2, 4], 1.0), (UP, &[6, 2], 0.5)]);
    for (name, bytes) in [("a", good()), ("b", good()), ("c", other)] {
        fs::write(folder.path().join(format!("{name}.safetensors")), bytes).unwrap();
    }
    let [a, b, c] = ["a", "b", "c"].map(|name| pool.get(name).unwrap());
    assert_ne!(a.id(), b.id(), "two files");
    let same =
        |one: &Lora, other: &Lora| std::iter::zip(one.unet_matrices(), other.unet_matrices()).all(|(x, y)| x.is(y));
    assert_eq!(a.unet_matrices().count(), 1);
    assert!(same(&a, &b) && !same(&a, &c));
}

#[test]
fn link_out_of_the_root_is_refused() {
    let (outside, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = root.path().join("loras");
    fs::create_dir(&folder).unwrap();
    fs::write(outside.path().join("a.safetensors"), good()).unwrap();
    fs::write(root.path().join("b"), good()).unwrap();
    std::os::unix::fs::symlink(outside.path().join("a.safetensors"), folder.join("a.safetensors")).unwrap();
    std::os::unix::fs::symlink(root.path().join("b"), folder.join("b.safetensors")).unwrap();
    pool(&folder, 0).get("a").unwrap();
    let bounded = pool(&folder, 0).inside(Some(root.path().to_path_buf()));
    let error = bounded.get("a").unwrap_err();
    assert!(error.to_string().contains("outside of the version folder"), "{error}");
    bounded.get("b").unwrap();
}

#[test]
fn kernels_may_be_written_as_matrices() {
    let folder = tempfile::tempdir().unwrap();
    let conv = "lora_unet_conv_in";
    let (down, up, alpha) = (
        format!("{conv}.lora_down.weight"),
        format!("{conv}.lora_up.weight"),
        format!("{conv}.alpha"),
    );
    let parts: [Part<'_>; 3] = [(&down, &[2, 4, 3, 3], 1.0), (&up, &[6, 2], 1.0), (&alpha, &[1], 1.0)];
    fs::write(folder.path().join("a.safetensors"), file(&parts)).unwrap();
    pool(folder.path(), 0).get("a").unwrap();
}
