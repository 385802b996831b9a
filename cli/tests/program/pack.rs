//! `pack` writes what a multi-model endpoint loads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use crate::support::{checkpoint, copy, fail, files, linked, succeed, temporary};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// The files of an archive. It holds nothing but files and folders, all of them below `name`.
fn unpack(archive: &Path, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(archive).unwrap()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let within = path.strip_prefix(name).unwrap().to_owned();
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(within, bytes);
        } else {
            assert!(entry.header().entry_type().is_dir(), "{}", path.display());
        }
    }
    files
}

fn text(files: &BTreeMap<PathBuf, Vec<u8>>, name: &str) -> String {
    String::from_utf8(files[Path::new(name)].clone()).unwrap()
}

/// The checkpoint's files, without the folders that lead to them.
fn checkpoint_of(files: BTreeMap<PathBuf, Vec<u8>>) -> BTreeMap<PathBuf, Vec<u8>> {
    files
        .into_iter()
        .filter_map(|(path, bytes)| Some((path.strip_prefix("1/checkpoint").ok()?.to_owned(), bytes)))
        .collect()
}

/// Widens the tensors of a float16 file.
fn to_float32(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let wide: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let halves = view.data().chunks_exact(2);
            let wide = halves.flat_map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes());
            (name, view.shape().to_vec(), wide.collect())
        })
        .collect();
    let views = wide
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn pack_writes_one_folder_with_the_served_files() {
    let folder = temporary();
    let model = linked("sd1", folder.path());
    let before = files(&model);
    for (name, contents) in [
        ("README.md", "images"),
        ("image.png", "p"),
        ("unet/diffusion_pytorch_model.bin", "pickle"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "double"),
        ("unet/diffusion_flax_model.msgpack", "flax"),
        ("vae/model.onnx", "onnx"),
        ("v1-5-pruned.ckpt", "pickle"),
        ("LICENSE.md", "license"),
        (".gitattributes", "hidden"),
    ] {
        fs::write(model.join(name), contents).unwrap();
    }
    let path = model.display().to_string();
    let told = succeed(folder.path(), &["pack", &path, "--name", "sd_base"]);
    assert!(told.starts_with("sd_base.tar.gz: "), "{told}");
    let packed = unpack(&folder.path().join("sd_base.tar.gz"), "sd_base");
    let config = text(&packed, "config.pbtxt");
    assert!(config.contains("backend: \"diffusion\""), "{config}");
    assert!(config.contains("kind: KIND_GPU"), "{config}");
    assert!(
        config.contains("key: \"max_seconds\" value: { string_value: \"60\" }"),
        "{config}"
    );
    assert!(text(&packed, "configs/cpu.pbtxt").contains("kind: KIND_CPU"));
    let mut expected = before;
    expected.insert("LICENSE.md".into(), b"license".to_vec());
    assert_eq!(checkpoint_of(packed), expected);
    // Nothing is left of the work.
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn pack_follows_links_to_components() {
    for name in ["sd_turbo", "sd1_tiny"] {
        let folder = temporary();
        let model = checkpoint(name);
        assert!(model.join("unet").is_symlink());
        let path = model.display().to_string();
        succeed(folder.path(), &["pack", &path, "--name", "m"]);
        let packed = unpack(&folder.path().join("m.tar.gz"), "m");
        assert_eq!(checkpoint_of(packed), files(&model), "{name}");
    }
}

#[test]
fn pack_of_the_same_folder_gives_the_same_bytes() {
    let folder = temporary();
    let model = copy("sd2_base", folder.path());
    succeed(folder.path(), &["pack", "sd2_base", "--name", "m", "--out", "a.tar.gz"]);
    // Neither times nor permissions of the source go in.
    let again = linked("sd2_base", &folder.path().join("again")).display().to_string();
    drop(model);
    succeed(folder.path(), &["pack", &again, "--name", "m", "--out", "b.tar.gz"]);
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert!(read("a.tar.gz") == read("b.tar.gz"));
}

#[test]
fn pack_with_dtype_converts_only_floats() {
    let folder = temporary();
    let model = copy("sd1", folder.path());
    let half = fs::read(model.join(UNET)).unwrap();
    fs::write(model.join(UNET), to_float32(&model.join(UNET))).unwrap();
    let arguments = ["pack", "sd1", "--name", "m", "--dtype", "float16"];
    succeed(folder.path(), &arguments);
    let packed = unpack(&folder.path().join("m.tar.gz"), "m");
    let packed_unet = &packed[&Path::new("1/checkpoint").join(UNET)];
    let (before, after) = (
        SafeTensors::deserialize(&half).unwrap(),
        SafeTensors::deserialize(packed_unet).unwrap(),
    );
    assert_eq!(before.len(), after.len());
    for (name, view) in before.tensors() {
        let converted = after.tensor(&name).unwrap();
        assert_eq!(converted.dtype(), Dtype::F16);
        assert_eq!(converted.shape(), view.shape());
        assert!(converted.data() == view.data(), "{name}");
    }
    // What was float16 already is the file as it was.
    let vae = "vae/diffusion_pytorch_model.safetensors";
    assert_eq!(
        packed[&Path::new("1/checkpoint").join(vae)],
        fs::read(model.join(vae)).unwrap()
    );
    assert!(!text(&packed, "config.pbtxt").contains("dtype"));
}

/// The server uses a tensor in its file where it lies at a multiple of 64 bytes.
#[test]
fn pack_aligns_converted_tensors() {
    let work = temporary();
    let folder = linked("sd2_base", work.path());
    let folder = folder.to_str().unwrap();
    succeed(work.path(), &["pack", folder, "--name", "m", "--dtype", "float32"]);
    let files = unpack(&work.path().join("m.tar.gz"), "m");
    let bytes = &files[&Path::new("1/checkpoint").join(UNET)];
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!((8 + length) % 64, 0);
    let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
    let mut aligned = 0;
    for info in metadata.tensors().values() {
        let (start, end) = info.data_offsets;
        if (end - start) % 64 == 0 {
            assert_eq!(start % 64, 0);
            aligned += 1;
        }
    }
    assert!(aligned > 100, "{aligned}");
}

#[test]
fn pack_as_float16_uses_the_fp16_variant() {
    let folder = temporary();
    let model = copy("sd1", folder.path());
    let variant = model.join("unet/diffusion_pytorch_model.fp16.safetensors");
    fs::rename(model.join(UNET), &variant).unwrap();
    fs::write(model.join(UNET), to_float32(&variant)).unwrap();
    succeed(
        folder.path(),
        &["pack", "sd1", "--name", "m", "--dtype", "float16", "--out", "out"],
    );
    let unet = folder.path().join("out/m/1/checkpoint/unet");
    assert!(!unet.join("diffusion_pytorch_model.safetensors").exists());
    let served = fs::read(unet.join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    assert!(served == fs::read(&variant).unwrap());
    // Without --dtype it is the file that the server would take of the folder.
    succeed(folder.path(), &["pack", "sd1", "--name", "n", "--out", "out"]);
    let unet = folder.path().join("out/n/1/checkpoint/unet");
    assert!(!unet.join("diffusion_pytorch_model.fp16.safetensors").exists());
    assert!(unet.join("diffusion_pytorch_model.safetensors").exists());
}

#[test]
fn pack_converts_shards_and_their_index() {
    let folder = temporary();
    let model = copy("sd1", folder.path());
    let whole = fs::read(model.join(UNET)).unwrap();
    fs::remove_file(model.join(UNET)).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap().tensors();
    let (mut map, mut total) = (serde_json::Map::new(), 0);
    for (number, half) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", number + 1);
        for (name, view) in half {
            map.insert(name.clone(), file.clone().into());
            total += view.data().len();
        }
        let bytes = safetensors::serialize(half.iter().map(|(n, v)| (n, v)), None).unwrap();
        fs::write(model.join("unet").join(file), bytes).unwrap();
    }
    let list = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    let name = "diffusion_pytorch_model.safetensors.index.json";
    fs::write(model.join("unet").join(name), list.to_string()).unwrap();
    succeed(
        folder.path(),
        &["pack", "sd1", "--name", "m", "--dtype", "bfloat16", "--out", "."],
    );
    let packed = folder.path().join("m/1/checkpoint/unet").join(name);
    let packed: Value = serde_json::from_slice(&fs::read(packed).unwrap()).unwrap();
    // As wide as before.
    assert_eq!(packed["metadata"]["total_size"], total);
    assert_eq!(packed["weight_map"], list["weight_map"]);
    let config = fs::read_to_string(folder.path().join("m/config.pbtxt")).unwrap();
    assert!(
        config.contains("key: \"dtype\" value: { string_value: \"bfloat16\" }"),
        "{config}"
    );
    succeed(
        folder.path(),
        &["pack", "sd1", "--name", "wide", "--dtype", "float32", "--out", "."],
    );
    let wide = folder.path().join("wide/1/checkpoint/unet").join(name);
    let wide: Value = serde_json::from_slice(&fs::read(wide).unwrap()).unwrap();
    assert_eq!(wide["metadata"]["total_size"], total * 2);
}

#[test]
fn pack_refuses_what_the_server_would_refuse() {
    let folder = temporary();
    let model = copy("sd1", folder.path());
    let config = model.join("text_encoder/config.json");
    let whole = fs::read_to_string(&config).unwrap();
    fs::write(&config, whole.replace("\"vocab_size\": 814", "\"vocab_size\": 815")).unwrap();
    let error = fail(folder.path(), &["pack", "sd1", "--name", "m"]);
    assert!(error.contains("the server would refuse this model: "), "{error}");
    assert!(error.contains("sd1/text_encoder/model.safetensors"), "{error}");
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["sd1"], "{left:?}");
}

#[test]
fn pack_refuses_bad_arguments() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    let refused = |arguments: &[&str]| {
        let line: Vec<&str> = ["pack", model.as_str()].iter().chain(arguments).copied().collect();
        fail(folder.path(), &line)
    };
    for (arguments, words) in [
        (&["--name", "../m"][..], "a model's name"),
        (&["--name", "m", "--parameter", "numerics=quick"], "one of exact, fast"),
        (
            &["--name", "m", "--parameter", "numeric=fast"],
            "did you mean `numerics`",
        ),
        (&["--name", "m", "--parameter", "checkpoint=x"], "checkpoint"),
        (&["--name", "m", "--parameter", "scheduler=NoScheduler"], "scheduler"),
    ] {
        let error = refused(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    fs::create_dir(folder.path().join("m")).unwrap();
    let error = refused(&["--name", "m", "--out", "."]);
    assert!(error.contains("already"), "{error}");
}
