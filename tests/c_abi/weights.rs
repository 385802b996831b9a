//! Weights that models share, and what is left of them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::json;
use triton_api::MemoryType;
use triton_fake::{FakeServer, InstanceSpec};

use crate::support::*;

/// The tensors of a component of a checkpoint, each by its bytes and shape: how many bytes in float32, of floating-point ones.
fn distinct(checkpoint: &Path, component: &str) -> HashSet<(Vec<usize>, Vec<u8>)> {
    let folder = checkpoint.join(component);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = files
        .into_iter()
        .find(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let bytes = fs::read(file.unwrap()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = tensors
        .iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F16);
    floats
        .map(|(_, view)| (view.shape().to_vec(), view.data().to_vec()))
        .collect()
}

fn float32_bytes(tensors: &HashSet<(Vec<usize>, Vec<u8>)>) -> f64 {
    tensors.iter().map(|(_, data)| data.len() * 2).sum::<usize>() as f64
}

/// Adds one unit in the last place to the first number of every tensor of a float16 file.
fn tune(file: &Path, by: u8) {
    let mut bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, tensor) in header.as_object().unwrap() {
        if name != "__metadata__" {
            let start = tensor["data_offsets"][0].as_u64().unwrap() as usize;
            bytes[8 + length + start] ^= by;
        }
    }
    fs::write(file, bytes).unwrap();
}

fn resident(server: &FakeServer) -> f64 {
    server.metric("diffusion_weights_bytes", &[("device", "cpu")]).unwrap()
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

#[test]
fn fine_tuned_unets_share_the_other_components() {
    let server = server();
    let repository = Repository::new();
    {
        let backend = server.load_backend().unwrap();
        let tunes: Vec<_> = (0..5u8)
            .map(|n| {
                repository.changed(&format!("tune-{n}"), "sd2_base", |folder| {
                    tune(&folder.join(UNET), n << 1)
                })
            })
            .collect();
        let mut wanted = HashSet::new();
        let mut models = Vec::new();
        for (n, spec) in tunes.into_iter().enumerate() {
            let folder = repository.checkpoint(&format!("tune-{n}"));
            for component in ["text_encoder", "vae", "unet"] {
                wanted.extend(distinct(&folder, component));
            }
            models.push(backend.load_model(spec).unwrap());
        }
        let instances: Vec<_> = models
            .iter()
            .map(|model| model.load_instance(InstanceSpec::default()).unwrap())
            .collect();
        assert_eq!(resident(&server), float32_bytes(&wanted));
        // Each tune is itself: other images, from the text encoder that they share.
        let args = json!({"num_inference_steps": 3, "seed": 1});
        let images: HashSet<_> = instances
            .iter()
            .map(|instance| {
                let request = ask(&server, &args);
                instance.execute(&[&request]).unwrap();
                images(&request)
            })
            .collect();
        assert!(images.len() > 1);
        drop(instances);
        drop(models);
        assert_eq!(resident(&server), 0.0);
        drop(backend);
    }
    server.assert_clean();
}

#[test]
fn second_instance_adds_no_weights() {
    let server = server();
    let repository = Repository::new();
    {
        let backend = server.load_backend().unwrap();
        let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
        let first = model.load_instance(InstanceSpec::default()).unwrap();
        let second = model.load_instance(InstanceSpec::default()).unwrap();
        let [usage] = first.memory_usage()[..] else {
            unreachable!("one kind of memory");
        };
        assert_eq!(usage.memory_type, MemoryType::Cpu);
        assert_eq!(usage.byte_size as f64, resident(&server));
        assert_eq!(second.memory_usage()[0].byte_size, 0);
        drop(first);
        assert_eq!(usage.byte_size as f64, resident(&server));
    }
    server.assert_clean();
}

#[test]
fn concurrent_instance_loads_read_the_weights_once() {
    let server = server();
    let repository = Repository::new();
    {
        let backend = server.load_backend().unwrap();
        assert!(backend.parallel_loading());
        let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
        let instances: Vec<_> = std::thread::scope(|scope| {
            let loads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| model.load_instance(InstanceSpec::default()).unwrap()))
                .collect();
            loads.into_iter().map(|load| load.join().unwrap()).collect()
        });
        let took: Vec<_> = instances
            .iter()
            .map(|instance| instance.memory_usage()[0].byte_size)
            .filter(|&bytes| bytes > 0)
            .collect();
        assert_eq!(took.len(), 1, "one of them loaded: {took:?}");
        assert_eq!(took[0] as f64, resident(&server));
    }
    server.assert_clean();
}

/// The files of an unloaded model are neither open nor mapped: SageMaker deletes them.
#[test]
fn unload_releases_all_open_and_mapped_files() {
    let server = server();
    let repository = Repository::new();
    {
        let backend = server.load_backend().unwrap();
        let spec = repository.changed("sd_base", "sd2_base", |_| {});
        let folder = fs::canonicalize(repository.checkpoint("sd_base")).unwrap();
        let model = backend.load_model(spec).unwrap();
        let instance = model.load_instance(InstanceSpec::default()).unwrap();
        drop(instance);
        drop(model);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(&*folder.to_string_lossy()));
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let open = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        assert!(open.into_iter().all(|path| !path.starts_with(&folder)));
    }
    server.assert_clean();
}

/// As when Triton gives a model instances on other devices.
#[test]
fn weights_go_with_the_last_instance_on_a_device() {
    let server = server();
    let repository = Repository::new();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let [first, second] = [(); 2].map(|()| model.load_instance(InstanceSpec::default()).unwrap());
    let loaded = resident(&server);
    assert!(loaded > 0.0);
    first.finalize().unwrap();
    assert_eq!(resident(&server), loaded);
    second.finalize().unwrap();
    assert_eq!(resident(&server), 0.0);
    let third = model.load_instance(InstanceSpec::default()).unwrap();
    assert_eq!(resident(&server), loaded);
    assert_serves(&server, &third);
    drop(third);
    drop(model);
    drop(backend);
    server.assert_clean();
}
