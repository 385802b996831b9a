//! The store: what is kept, shared, read and freed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use super::digest::{Digest, FileIdentity};
use super::store::{Key, STORE};
use super::{Component, ComponentId, LoadedWeights, Loader, WeightMemory};
use diffusion_core::Error;
use diffusion_core::config::Placement;

/// A folder with one file of float32 tensors, its data at a multiple of 64 bytes if `aligned`.
fn folder(tensors: &[(&str, &[f32])], aligned: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), tensors, aligned);
    folder
}

fn fill(folder: &Path, tensors: &[(&str, &[f32])], aligned: bool) {
    let bytes: Vec<(String, Vec<u8>)> = tensors
        .iter()
        .map(|(name, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            ((*name).to_owned(), bytes.collect())
        })
        .collect();
    write(folder, Dtype::F32, 4, &bytes, aligned);
}

fn write(folder: &Path, dtype: Dtype, size: usize, tensors: &[(String, Vec<u8>)], aligned: bool) {
    let views = tensors.iter().map(|(name, bytes)| {
        let view = TensorView::new(dtype, vec![bytes.len() / size], bytes).unwrap();
        (name, view)
    });
    let file = safetensors::serialize(views, None).unwrap();
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    let wanted = if aligned { 0 } else { 8 };
    let padding = (0..64).find(|padding| (8 + length + padding) % 64 == wanted).unwrap();
    let mut padded = (length as u64 + padding as u64).to_le_bytes().to_vec();
    padded.extend_from_slice(header);
    padded.extend(std::iter::repeat_n(b' ', padding));
    padded.extend_from_slice(data);
    // As a model is replaced: a new file under the old name.
    let path = folder.join("model.safetensors");
    fs::remove_file(&path).ok();
    fs::write(path, padded).unwrap();
}

fn load(folder: &Path, kind: Kind) -> (LoadedWeights, ComponentId) {
    let mut loader = Loader::new(Device::Cpu);
    let part = loader.open(folder, "model", kind).unwrap();
    (loader.load(&|_| {}).unwrap(), part)
}

/// Loads the tensors with these names; also returns their memory.
fn tensors(folder: &Path, kind: Kind, names: &[(&str, i64)]) -> (Vec<Tensor>, WeightMemory) {
    let (mut loaded, part) = load(folder, kind);
    let weights = loaded.take(part).unwrap();
    let root = weights.root();
    let tensors = names.iter().map(|(name, n)| root.tensor(name, &[*n]).unwrap());
    let tensors = tensors.collect();
    (tensors, loaded.memory)
}

fn key(values: &[f32], kind: Kind) -> Key {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Key {
        digest: Digest::of(&bytes),
        from: Kind::Float,
        shape: vec![values.len() as i64],
        kind,
        device: Device::Cpu,
        may_map: true,
    }
}

#[test]
fn equal_tensors_of_two_folders_are_shared_until_both_are_dropped() {
    let (same, other) = ([1.5f32; 40], [2.5f32; 40]);
    let one = folder(&[("a", &same)], true);
    let two = folder(&[("renamed", &same), ("own", &other)], true);
    let (first, took) = tensors(one.path(), Kind::Float, &[("a", 40)]);
    assert_eq!(took, WeightMemory { total: 160, shared: 0 });
    let (second, took) = tensors(two.path(), Kind::Float, &[("renamed", 40), ("own", 40)]);
    assert_eq!(
        took,
        WeightMemory {
            total: 320,
            shared: 160
        }
    );
    assert_eq!(first[0].data_ptr(), second[0].data_ptr());
    drop(first);
    assert!(STORE.has(&key(&same, Kind::Float)));
    assert_eq!(Vec::<f32>::try_from(&second[0]).unwrap(), same);
    drop(second);
    assert!(!STORE.has(&key(&same, Kind::Float)));
    assert!(!STORE.has(&key(&other, Kind::Float)));
}

#[test]
fn tensor_of_another_dtype_is_not_shared() {
    let values: Vec<f32> = (0..64u8).map(|n| f32::from(n) + 0.25).collect();
    let folder = folder(&[("a", &values)], false);
    let (full, _) = tensors(folder.path(), Kind::Float, &[("a", 64)]);
    let (half, took) = tensors(folder.path(), Kind::Half, &[("a", 64)]);
    assert_eq!(took, WeightMemory { total: 128, shared: 0 });
    assert_eq!(half[0].kind(), Kind::Half);
    assert_eq!(full[0].to_kind(Kind::Half), half[0]);
}

#[test]
fn aligned_float32_is_used_in_its_file() {
    let values = vec![3.25f32; 1 << 18];
    for aligned in [true, false] {
        let folder = folder(&[("a", &values)], aligned);
        let place = folder.path().to_string_lossy().into_owned();
        let (loaded, _) = tensors(folder.path(), Kind::Float, &[("a", 1 << 18)]);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let address = loaded[0].data_ptr() as u64;
        let inside = maps.lines().filter(|line| line.contains(&place));
        let inside = inside.filter(|line| {
            let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            (hex(from)..hex(to)).contains(&address)
        });
        assert_eq!(inside.count(), usize::from(aligned));
        assert_eq!(address % 64, 0);
        // The map outlives the folder, and goes with the tensor.
        folder.close().unwrap();
        assert_eq!(Vec::<f32>::try_from(&loaded[0]).unwrap(), values);
        drop(loaded);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(&place));
    }
}

/// A write to a mapped file changes its model, but not models that load later.
#[test]
fn tensor_of_a_changed_file_is_not_shared() {
    let values = vec![6.5f32; 1 << 18];
    let one = folder(&[("a", &values)], true);
    let two = folder(&[("a", &values)], true);
    let (first, _) = tensors(one.path(), Kind::Float, &[("a", 1 << 18)]);
    // Not replaced: the same file, with other numbers.
    let path = one.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1.0f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let (second, _) = tensors(two.path(), Kind::Float, &[("a", 1 << 18)]);
    assert_ne!(first[0].data_ptr(), second[0].data_ptr());
    assert_eq!(Vec::<f32>::try_from(&second[0]).unwrap(), values);
    drop(first);
    assert_eq!(Vec::<f32>::try_from(&second[0]).unwrap(), values);
    assert!(STORE.has(&key(&values, Kind::Float)));
}

/// A process that had mapped the file and written to it before can change it without a change of its times.
#[test]
fn tensor_of_a_file_that_is_changed_through_a_map_is_not_shared() {
    let values = vec![7.5f32; 1 << 18];
    let names = [("a", 1 << 18)];
    let one = folder(&[("a", &values)], true);
    let two = folder(&[("a", &values)], true);
    let path = one.path().join("model.safetensors");
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: the test changes the file through this map only.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    let end = map.len();
    let last = map[end - 4..].to_vec();
    map[end - 4..].copy_from_slice(&last);
    let (first, _) = tensors(one.path(), Kind::Float, &names);
    let times = |path: &Path| FileIdentity::of(&fs::metadata(path).unwrap());
    let before = times(&path);
    map[end - 4..].copy_from_slice(&1.0f32.to_le_bytes());
    assert_eq!(
        times(&path),
        before,
        "the change shows in the times, so the test proves nothing"
    );
    let (second, _) = tensors(two.path(), Kind::Float, &names);
    assert_ne!(first[0].data_ptr(), second[0].data_ptr());
    assert_eq!(Vec::<f32>::try_from(&second[0]).unwrap(), values);
}

/// A model whose weights are copied uses no map, not even that of another model, and shares copies.
#[test]
fn copied_weights_are_not_mapped() {
    let values = vec![9.5f32; 1 << 18];
    let folder = folder(&[("a", &values)], true);
    let load = |placement: Placement| {
        let mut loader = Loader::new(Device::Cpu).placement(placement);
        let part = loader.open(folder.path(), "model", Kind::Float).unwrap();
        let mut loaded = loader.load(&|_| {}).unwrap();
        let weights = loaded.take(part).unwrap();
        weights.root().tensor("a", &[1 << 18]).unwrap()
    };
    let [mapped, copied, again] = [Placement::Map, Placement::Copy, Placement::Copy].map(load);
    assert_ne!(mapped.data_ptr(), copied.data_ptr());
    assert_eq!(copied.data_ptr(), again.data_ptr());
    drop(mapped);
    // Nothing is left of the map: the file can be cut.
    let path = folder.path().join("model.safetensors");
    fs::File::options().write(true).open(path).unwrap().set_len(9).unwrap();
    assert_eq!(Vec::<f32>::try_from(&copied).unwrap(), values);
}

/// A file that becomes shorter while it is mapped: reads give zeros, its models fail, and others do not share it.
#[test]
fn file_that_is_cut_while_it_is_mapped_is_lost() {
    let values = vec![4.5f32; 1 << 18];
    let names = [("a", 1 << 18)];
    let one = folder(&[("a", &values)], true);
    let (mut loaded, part) = load(one.path(), Kind::Float);
    let tensor = loaded.take(part).unwrap().root().tensor("a", &[1 << 18]).unwrap();
    loaded.files.check().unwrap();
    let path = one.path().join("model.safetensors");
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert!(Vec::<f32>::try_from(&tensor).unwrap().contains(&0.0));
    let error = loaded.files.check().unwrap_err();
    assert!(matches!(error, Error::DeviceLost(_)), "{error:?}");
    let two = folder(&[("a", &values)], true);
    let (second, _) = tensors(two.path(), Kind::Float, &names);
    assert_eq!(Vec::<f32>::try_from(&second[0]).unwrap(), values);
}

#[test]
fn too_many_shards_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = |shards: usize| {
        let map: Vec<String> = (0..shards)
            .map(|n| format!("\"a{n}\": \"model-{n}.safetensors\""))
            .collect();
        let text = format!("{{\"weight_map\": {{{}}}}}", map.join(", "));
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        let mut loader = Loader::new(Device::Cpu);
        loader
            .open(folder.path(), "model", Kind::Float)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(index(64).contains("No such file"), "{}", index(64));
    assert!(index(65).ends_with("names 65 shards, the limit is 64"), "{}", index(65));
}

/// An endpoint deletes the files of a model that it unloads, which changes their times; other models still share the
/// tensors.
#[test]
fn tensor_of_a_deleted_file_is_still_shared() {
    let values = vec![8.5f32; 1 << 18];
    let names = [("a", 1 << 18)];
    let one = folder(&[("a", &values)], true);
    let (first, _) = tensors(one.path(), Kind::Float, &names);
    let two = folder(&[("a", &values)], true);
    let (second, _) = tensors(two.path(), Kind::Float, &names);
    drop(first);
    one.close().unwrap();
    let three = folder(&[("a", &values)], true);
    let (third, took) = tensors(three.path(), Kind::Float, &names);
    assert_eq!(took.shared, took.total);
    assert_eq!(second[0].data_ptr(), third[0].data_ptr());
    assert_eq!(Vec::<f32>::try_from(&third[0]).unwrap(), values);
}

#[test]
fn loaded_dtypes_equal_the_conversion_of_libtorch() {
    let numbers: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = numbers.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    for (dtype, kind) in [(Dtype::F16, Kind::Half), (Dtype::BF16, Kind::BFloat16)] {
        let folder = folder(&[], true);
        write(folder.path(), dtype, 2, &[("a".to_owned(), bytes.clone())], true);
        let theirs = Tensor::f_from_data_size(&bytes, &[65536], kind).unwrap();
        let (ours, _) = tensors(folder.path(), Kind::Float, &[("a", 65536)]);
        assert!(ours[0].allclose(&theirs.to_kind(Kind::Float), 0.0, 0.0, true));
    }
    let floats: Vec<f32> = (0..5000i16)
        .map(|n| f32::from(n).exp2().recip() * 3.3e9 + f32::from(n) * 0.37)
        .collect();
    let folder = folder(&[("a", &floats)], true);
    for kind in [Kind::Half, Kind::BFloat16] {
        let (ours, _) = tensors(folder.path(), kind, &[("a", 5000)]);
        assert_eq!(ours[0], Tensor::from_slice(&floats).to_kind(kind));
    }
}

#[test]
fn replaced_file_is_read_again() {
    let place = folder(&[("a", &[1.0f32; 16])], true);
    let (before, _) = tensors(place.path(), Kind::Float, &[("a", 16)]);
    fill(place.path(), &[("a", &[7.0f32; 16])], true);
    let (after, took) = tensors(place.path(), Kind::Float, &[("a", 16)]);
    assert_eq!(took.shared, 0);
    assert_eq!(Vec::<f32>::try_from(&before[0]).unwrap(), [1.0; 16]);
    assert_eq!(Vec::<f32>::try_from(&after[0]).unwrap(), [7.0; 16]);
}

#[test]
fn new_tensor_with_a_wrong_cached_digest_is_refused() {
    let place = folder(&[("a", &[4.0f32; 16])], true);
    let identity = Component::open(place.path(), "model").unwrap().files()[0]
        .identity()
        .clone();
    let lie = std::collections::HashMap::from([("a".to_owned(), Digest::of(b"another tenant's"))]);
    STORE.digests.insert(identity, std::sync::Arc::new(lie));
    let mut loader = Loader::new(Device::Cpu);
    loader.open(place.path(), "model", Kind::Float).unwrap();
    assert!(matches!(loader.load(&|_| {}), Err(Error::Unavailable(_))));
    let (tensors, _) = tensors(place.path(), Kind::Float, &[("a", 16)]);
    assert_eq!(Vec::<f32>::try_from(&tensors[0]).unwrap(), [4.0; 16]);
}

#[test]
fn concurrent_loads_make_a_tensor_once() {
    let values = [9.75f32; 4096];
    let place = folder(&[("a", &values)], false);
    for _ in 0..20 {
        let addresses: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| tensors(place.path(), Kind::Float, &[("a", 4096)]).0))
                .collect();
            let held: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            held.iter().map(|tensors| tensors[0].data_ptr() as usize).collect()
        });
        assert!(addresses.iter().all(|address| *address == addresses[0]));
        assert!(!STORE.has(&key(&values, Kind::Float)));
    }
}

#[test]
fn large_half_precision_matrix_stays_in_its_file() {
    let values: Vec<f32> = (0..1 << 19).map(|n: u32| (n % 1000) as f32 * 0.25 - 9.0).collect();
    let matrix = Tensor::from_slice(&values).reshape([512, 1024]);
    for (kind, dtype) in [(Kind::Half, Dtype::F16), (Kind::BFloat16, Dtype::BF16)] {
        let narrow = matrix.to_kind(kind);
        let place = tempfile::tempdir().unwrap();
        let bits: Vec<u16> = Vec::try_from(narrow.view_dtype(Kind::Int16).reshape([-1]))
            .map(|bits: Vec<i16>| bits.into_iter().map(i16::cast_unsigned).collect())
            .unwrap();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let vector = bytes[..64].to_vec();
        let views = [
            ("matrix", TensorView::new(dtype, vec![512, 1024], &bytes).unwrap()),
            ("vector", TensorView::new(dtype, vec![32], &vector).unwrap()),
        ];
        fs::write(
            place.path().join("model.safetensors"),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();

        let (mut loaded, part) = load(place.path(), Kind::Float);
        assert_eq!(loaded.memory.total, (1 << 20) + 128);
        let weights = loaded.take(part).unwrap();
        let root = weights.root();
        let held = root.stored("matrix", &[512, 1024]).unwrap();
        assert_eq!(held, narrow);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains(&*place.path().to_string_lossy()));
        // `tensor` returns the dtype of the model.
        let wide = root.tensor("matrix", &[512, 1024]).unwrap();
        assert_eq!(wide, narrow.to_kind(Kind::Float));
        assert_eq!(root.stored("vector", &[32]).unwrap().kind(), Kind::Float);
        drop((loaded, held));

        let (mut loaded, part) = load(place.path(), kind);
        assert_eq!(loaded.memory.total, (1 << 20) + 64);
        let weights = loaded.take(part).unwrap();
        assert_eq!(weights.root().tensor("matrix", &[512, 1024]).unwrap(), narrow);
    }
}
