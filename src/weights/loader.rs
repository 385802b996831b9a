//! Loads the weights of a model in parallel, over the store.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tch::{Device, Kind};

use super::available_memory::{check_gpu, check_host};
use super::component::Component;
use super::digest::{Digest, Digests};
use super::file::{TensorFile, shape};
use super::mapped_files::MappedFiles;
use super::materialize::{can_map, materialize};
use super::parallel::in_parallel;
use super::path::Weights;
use super::store::{Key, STORE, StoredTensor};
use crate::torch::Uploader;
use diffusion_core::config::Placement;
use diffusion_core::{Error, Result};

/// A half-precision matrix of at least this many bytes is upcast at each use on the CPU, not at load. Small matrices
/// are upcast at load, because their upcast would cost more time than it saves memory.
const MIN_LAZY_UPCAST_BYTES: u64 = 1 << 20;
/// Time between two progress reports.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// Collects the components of a model and loads their weights together onto one device.
///
/// A large half-precision matrix that is requested in float32 on the CPU stays in its file: an upcast at load would
/// need three times the memory traffic and twice the memory, which limit the time of a load and the number of models.
/// It is upcast at each use ([`WeightPath::stored`](super::WeightPath::stored)), for some per cent of a denoising step.
pub struct Loader {
    device: Device,
    components: Vec<(Component, Kind)>,
    min_lazy_upcast_bytes: u64,
    /// GPU memory to leave free; `None` for the default.
    gpu_memory_reserve: Option<u64>,
    placement: Placement,
}

/// One component of a [`Loader`].
#[derive(Clone, Copy)]
pub struct ComponentId(usize);

/// The progress of a load.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes of the files that are loaded or found in the store.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// The memory of a model's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightMemory {
    /// Bytes of the model's tensors on the device.
    pub total: u64,
    /// Bytes that other models had loaded before.
    pub shared: u64,
}

/// The loaded components.
pub struct LoadedWeights {
    weights: Vec<Option<Weights>>,
    /// The memory of all components.
    pub memory: WeightMemory,
    /// The mapped files that the weights are in.
    pub files: MappedFiles,
}

impl LoadedWeights {
    /// Takes the tensors of a component.
    ///
    /// # Errors
    /// `Internal` for a component that was taken before.
    pub fn take(&mut self, part: ComponentId) -> Result<Weights> {
        self.weights
            .get_mut(part.0)
            .and_then(Option::take)
            .ok_or_else(|| Error::internal("a component's weights were taken twice"))
    }
}

/// One tensor of one component.
struct Item<'a> {
    component: usize,
    file: &'a TensorFile,
    name: String,
    from: Kind,
    shape: Vec<i64>,
    kind: Kind,
    length: u64,
    /// The cached digest.
    cached: Option<Digest>,
}

impl Item<'_> {
    fn key(&self, digest: Digest, device: Device, placement: Placement) -> Key {
        let may_map = match placement {
            Placement::Auto => self.file.is_local(),
            Placement::Map => true,
            Placement::Copy => false,
        };
        Key {
            digest,
            from: self.from,
            shape: self.shape.clone(),
            kind: self.kind,
            device,
            may_map: may_map || device != Device::Cpu,
        }
    }

    fn digest(&self) -> Result<Digest> {
        Ok(Digest::of(self.bytes()?))
    }

    /// In the map of its file.
    fn bytes(&self) -> Result<&[u8]> {
        let info = self
            .file
            .info(&self.name)
            .ok_or_else(|| Error::internal("a tensor that is not in its file"))?;
        self.file.bytes(info)
    }
}

impl Loader {
    /// Makes an empty loader for a device.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            components: Vec::new(),
            min_lazy_upcast_bytes: MIN_LAZY_UPCAST_BYTES,
            gpu_memory_reserve: None,
            placement: Placement::default(),
        }
    }

    /// Sets whether weights on the CPU are used in the maps of their files.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Sets the bytes of GPU memory that the load leaves free; `None` leaves 1.5 GiB free, or a twentieth of the GPU's
    /// memory if that is more.
    #[must_use]
    pub fn gpu_memory_reserve(mut self, bytes: Option<u64>) -> Self {
        self.gpu_memory_reserve = bytes;
        self
    }

    /// Replaces [`MIN_LAZY_UPCAST_BYTES`].
    #[cfg(test)]
    #[must_use]
    pub fn min_lazy_upcast_bytes(mut self, bytes: u64) -> Self {
        self.min_lazy_upcast_bytes = bytes;
        self
    }

    /// Opens the weight files of `folder`, to be loaded as `kind`; see [`Component::open`] for `stem`.
    ///
    /// # Errors
    /// Those of [`Component::open`].
    pub fn open(&mut self, folder: &Path, stem: &str, kind: Kind) -> Result<ComponentId> {
        let component = Component::open(folder, stem)?;
        self.components.push((component, kind));
        Ok(ComponentId(self.components.len() - 1))
    }

    /// Loads all tensors that are not in the store, in parallel. Calls `report` with the progress, at most every two
    /// seconds.
    ///
    /// # Errors
    /// Out of memory, before anything is loaded, if the device has too little memory; an unsupported dtype
    /// (`Unsupported`); those of CUDA.
    pub fn load(self, report: &(dyn Fn(Progress) + Sync)) -> Result<LoadedWeights> {
        let device = self.device;
        let items = items(&self.components, device, self.min_lazy_upcast_bytes)?;
        let progress = Reporter::new(&items, report);

        let digests = in_parallel(&items, |item| {
            let digest = item.cached.map_or_else(|| item.digest(), Ok);
            progress.add(item.length / 2);
            digest
        })?;

        let keys: Vec<Key> = std::iter::zip(&items, &digests)
            .map(|(item, &digest)| item.key(digest, device, self.placement))
            .collect();
        // Two loads would count the same free memory, so each reserves what it will allocate.
        let reservation = STORE.reserve(device, |reserved| {
            let used = weight_memory(&keys);
            let needed = used.total - used.shared;
            let mapped = mapped_bytes(&items, &keys)?;
            match device {
                Device::Cuda(index) => check_gpu(needed, reserved, self.gpu_memory_reserve, index)?,
                _ => check_host(needed, reserved, mapped)?,
            }
            Ok(needed)
        })?;
        let made = AtomicU64::new(0);

        let uploader = Uploader::new(device)?;
        let keyed: Vec<_> = std::iter::zip(&items, &keys).collect();
        let tensors = in_parallel(&keyed, |&(item, key)| {
            let tensor = STORE
                .get_or_insert(key, item.file.identity(), || {
                    let hashed = item.cached.is_none();
                    let tensor = materialize(item.file, &item.name, key.clone(), hashed, &uploader)?;
                    made.fetch_add(key.bytes(), Ordering::Relaxed);
                    Ok(tensor)
                })
                .inspect_err(|_| STORE.digests.remove(item.file.identity()))?;
            progress.add(item.length - item.length / 2);
            Ok(tensor)
        })?;

        // Before any thread reads the tensors.
        uploader.finish()?;
        drop(reservation);
        let total = weight_memory(&keys).total;
        let used = WeightMemory {
            total,
            shared: total.saturating_sub(made.into_inner()),
        };

        let files = tensors
            .iter()
            .filter_map(|tensor| tensor.mapped_file().cloned())
            .collect();
        let mut loaded: Vec<HashMap<String, Arc<StoredTensor>>> =
            self.components.iter().map(|_| HashMap::new()).collect();
        for (item, tensor) in std::iter::zip(&items, tensors) {
            if let Some(component) = loaded.get_mut(item.component) {
                component.insert(item.name.clone(), tensor);
            }
        }
        // Only of a load that has succeeded.
        cache_digests(&items, &digests);
        drop(items);
        let weights = std::iter::zip(self.components, loaded)
            .map(|((component, kind), tensors)| Some(Weights::new(component, tensors, device, kind)))
            .collect();
        Ok(LoadedWeights {
            weights,
            memory: used,
            files: MappedFiles::new(files),
        })
    }
}

/// Returns whether models load tensors of this dtype. Integers, such as positions, they do not load.
pub(super) fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double)
}

/// Lists the float tensors of all components. The largest come first, so no thread begins one at the end.
fn items(components: &[(Component, Kind)], device: Device, min_lazy_upcast_bytes: u64) -> Result<Vec<Item<'_>>> {
    let mut items = Vec::new();
    for (number, (component, target)) in components.iter().enumerate() {
        for file in component.files() {
            let cached: Option<Digests> = STORE.digests.get(file.identity());
            for name in file.names() {
                let Some(info) = file.info(&name) else {
                    continue;
                };
                let from = file.kind(&name, info)?;
                if !is_float(from) {
                    continue;
                }
                let (start, end) = info.data_offsets;
                let (shape, bytes) = (shape(info)?, (end - start) as u64);
                let narrow = device == Device::Cpu
                    && *target == Kind::Float
                    && matches!(from, Kind::Half | Kind::BFloat16)
                    && shape.len() > 1
                    && bytes >= min_lazy_upcast_bytes;
                items.push(Item {
                    component: number,
                    file,
                    from,
                    shape,
                    kind: if narrow { from } else { *target },
                    length: bytes,
                    cached: cached.as_ref().and_then(|digests| digests.get(&name).copied()),
                    name,
                });
            }
        }
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.length));
    Ok(items)
}

/// Caches the digests of the files that were hashed now.
fn cache_digests(items: &[Item<'_>], digests: &[Digest]) {
    let mut files: HashMap<*const TensorFile, (&TensorFile, HashMap<String, Digest>)> = HashMap::new();
    for (item, &digest) in std::iter::zip(items, digests) {
        if item.cached.is_none() {
            let (_, names) = files
                .entry(std::ptr::from_ref(item.file))
                .or_insert_with(|| (item.file, HashMap::new()));
            names.insert(item.name.clone(), digest);
        }
    }
    for (file, digests) in files.into_values() {
        STORE.digests.insert(file.identity().clone(), Arc::new(digests));
    }
}

/// Adds up the memory of the tensors with these keys, each counted once.
fn weight_memory(keys: &[Key]) -> WeightMemory {
    let mut seen = std::collections::HashSet::new();
    let mut memory = WeightMemory::default();
    for key in keys.iter().filter(|key| seen.insert(*key)) {
        memory.total += key.bytes();
        if STORE.has(key) {
            memory.shared += key.bytes();
        }
    }
    memory
}

/// Adds up the bytes of tensors that are not in the store and will be used in the maps of their files.
fn mapped_bytes(items: &[Item<'_>], keys: &[Key]) -> Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    for (item, key) in std::iter::zip(items, keys) {
        if seen.insert(key) && can_map(key, item.bytes()?) && !STORE.has(key) {
            bytes += key.bytes();
        }
    }
    Ok(bytes)
}

/// Reports the progress of a load.
struct Reporter<'a> {
    done: AtomicU64,
    total: u64,
    started: Instant,
    /// Number of reports.
    sent: AtomicU64,
    report: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Reporter<'a> {
    fn new(items: &[Item<'_>], report: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self {
            done: AtomicU64::new(0),
            total: items.iter().map(|item| item.length).sum(),
            started: Instant::now(),
            sent: AtomicU64::new(0),
            report,
        }
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = (self.started.elapsed().as_millis() / REPORT_EVERY.as_millis()) as u64;
        let sent = self.sent.load(Ordering::Relaxed);
        if due > sent
            && self
                .sent
                .compare_exchange(sent, due, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            (self.report)(Progress {
                done,
                total: self.total,
            });
        }
    }
}
