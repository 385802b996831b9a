//! The forms in which the same weights come on disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFC, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};
use triton_fake::{InstanceSpec, ModelSpec};

use crate::support::*;

pub const TEXT_ENCODER: &str = "text_encoder/model.safetensors";
pub const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
pub const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const FILES: [&str; 3] = [TEXT_ENCODER, UNET, VAE];

/// A tensor of a file.
#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

fn read(path: &Path) -> Tensors {
    let file = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let stored = |view: TensorView<'_>| Stored {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, stored(view)))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, stored)| {
        (
            name,
            TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap(),
        )
    });
    serialize_to_file(views, None, path).unwrap();
}

/// Writes a safetensors file anew with other tensors.
pub fn rewrite(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read(path);
    change(&mut tensors);
    write(path, &tensors);
}

fn convert(stored: &mut Stored, kind: Kind, dtype: Dtype) {
    assert_eq!(stored.dtype, Dtype::F16, "the committed files are of float16");
    let shape: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
    let tensor = Tensor::from_data_size(&stored.bytes, &shape, Kind::Half).to_kind(kind);
    let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    *stored = Stored {
        dtype,
        bytes,
        shape: stored.shape.clone(),
    };
}

fn convert_all(folder: &Path, kind: Kind, dtype: Dtype) {
    for file in FILES {
        rewrite(&folder.join(file), |tensors| {
            tensors.values_mut().for_each(|stored| convert(stored, kind, dtype));
        });
    }
}

/// The image that a model makes.
fn image_of(spec: ModelSpec) -> Vec<u8> {
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(spec).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    let args = [json!({"num_inference_steps": 3, "seed": 5})];
    let request = infer_elements(&server, &["A RED cat's hat, 12 dogs!!! caf\u{e9}"], &args);
    instance.execute(&[&request]).unwrap();
    let image = images(&request).remove(0);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
    image
}

/// A changed folder gives the image of the committed one.
fn assert_same_image(change: impl FnOnce(&Path)) {
    let repository = Repository::new();
    let expected = image_of(repository.link("sd_base", "sd2_base"));
    fs::remove_file(repository.checkpoint("sd_base")).unwrap();
    let found = image_of(repository.changed("sd_base", "sd2_base", change));
    assert!(found == expected, "another image");
}

#[test]
fn copied_checkpoint_generates_the_same_image() {
    assert_same_image(|_| ());
}

/// `sd_turbo` has links to the parts of `sd2_base`, and differs in its scheduler alone.
#[test]
fn linked_components_generate_the_same_image() {
    let repository = Repository::new();
    let expected = image_of(repository.link("sd_base", "sd2_base"));
    fs::remove_file(repository.checkpoint("sd_base")).unwrap();
    let scheduler = "scheduler/scheduler_config.json";
    let spec = repository.changed("sd_base", "sd_turbo", |folder| {
        fs::copy(checkpoint("sd2_base").join(scheduler), folder.join(scheduler)).unwrap();
        for part in ["text_encoder", "tokenizer", "unet", "vae"] {
            assert!(!folder.join(part).is_symlink());
            fs::remove_dir_all(folder.join(part)).unwrap();
            symlink(checkpoint("sd_turbo").join(part), folder.join(part)).unwrap();
        }
    });
    assert!(image_of(spec) == expected, "another image");
}

#[test]
fn float32_checkpoint_generates_the_same_image() {
    assert_same_image(|folder| convert_all(folder, Kind::Float, Dtype::F32));
}

#[test]
fn bfloat16_checkpoint_is_loaded() {
    let repository = Repository::new();
    let spec = repository.changed("sd_base", "sd2_base", |folder| {
        convert_all(folder, Kind::BFloat16, Dtype::BF16)
    });
    assert_eq!(png_size(&image_of(spec)), (64, 64));
}

#[test]
fn fp16_variant_generates_the_same_image() {
    assert_same_image(|folder| {
        for file in FILES {
            let variant = file.replace(".safetensors", ".fp16.safetensors");
            fs::rename(folder.join(file), folder.join(variant)).unwrap();
        }
    });
}

/// Splits the UNet's file into two shards with an index.
fn shard(folder: &Path) {
    let tensors = read(&folder.join(UNET));
    fs::remove_file(folder.join(UNET)).unwrap();
    let half = tensors.len() / 2;
    let mut weight_map = Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (index, (name, stored)) in tensors.into_iter().enumerate() {
        let shard = usize::from(index >= half);
        weight_map.insert(name.clone(), shard_name(shard).into());
        shards[shard].insert(name, stored);
    }
    for (number, shard) in shards.iter().enumerate() {
        write(&folder.join("unet").join(shard_name(number)), shard);
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    let path = folder.join("unet/diffusion_pytorch_model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
}

fn shard_name(number: usize) -> String {
    format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", number + 1)
}

#[test]
fn sharded_unet_generates_the_same_image() {
    assert_same_image(shard);
}

#[test]
fn missing_shard_is_named_in_the_error() {
    let repository = Repository::new();
    let spec = repository.changed("sd_base", "sd2_base", |folder| {
        shard(folder);
        fs::remove_file(folder.join("unet").join(shard_name(1))).unwrap();
    });
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(spec).unwrap();
    let error = model.load_instance(InstanceSpec::default()).unwrap_err();
    assert_says(error.message(), &["sd_base", "-00002-of-00002.safetensors"]);
    drop(model);
    drop(backend);
    server.assert_clean();
}

/// As transformers 5 writes it: no `text_model.` before the names, `tokenizer.json` alone, the
/// special tokens in `tokenizer_config.json`.
#[test]
fn transformers_5_layout_generates_the_same_image() {
    assert_same_image(|folder| {
        rewrite(&folder.join(TEXT_ENCODER), |tensors| {
            *tensors = std::mem::take(tensors)
                .into_iter()
                .map(|(name, stored)| (name.strip_prefix("text_model.").unwrap().to_owned(), stored))
                .collect();
        });
        let tokenizer = folder.join("tokenizer");
        let special: Value =
            serde_json::from_slice(&fs::read(tokenizer.join("special_tokens_map.json")).unwrap()).unwrap();
        edit_json(&tokenizer.join("tokenizer_config.json"), |config| {
            for (name, token) in special.as_object().unwrap() {
                config[name] = token.get("content").unwrap_or(token).clone();
            }
        });
        write_tokenizer_json(&tokenizer);
        for file in ["vocab.json", "merges.txt", "special_tokens_map.json"] {
            fs::remove_file(tokenizer.join(file)).unwrap();
        }
    });
}

/// The tokenizer as transformers 5 builds it (`tokenization_clip.py` there).
fn write_tokenizer_json(folder: &Path) {
    let path = |file: &str| folder.join(file).to_str().unwrap().to_owned();
    let model = BPE::from_file(&path("vocab.json"), &path("merges.txt"))
        .end_of_word_suffix("</w>".to_owned())
        .unk_token("<|endoftext|>".to_owned())
        .build()
        .unwrap();
    let mut tokenizer = Tokenizer::new(model);
    let clean = BertNormalizer::new(true, true, Some(false), false);
    tokenizer
        .with_normalizer(Some(Sequence::new(vec![clean.into(), NFC.into(), Lowercase.into()])))
        .unwrap();
    let words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let words = SplitPattern::Regex(words.to_owned());
    let split = Split::new(words, SplitDelimiterBehavior::Removed, true).unwrap();
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![split.into(), bytes.into()])));
    let special = ["<|startoftext|>", "<|endoftext|>", "!"]
        .map(|token| AddedToken::from(token.to_owned(), true).normalized(true));
    tokenizer.add_special_tokens(special).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
}
