//! A model's weights, read in parallel and looked up in the store.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tch::{Device, Kind};

use super::component::Component;
use super::digest::{Digest, Digests};
use super::file::{TensorFile, shape};
use super::materialize::{can_map, materialize};
use super::parallel::in_parallel;
use super::path::Weights;
use super::store::{Held, Key, STORE};
use crate::torch::{Upload, memory};
use diffusion_core::{Error, Result};

/// Left free on the host beside the weights: a load that takes the last of it harms what runs.
const HOST_RESERVE: u64 = 256 << 20;
/// A tensor of at least as many bytes in its file stays in half precision on the CPU, if it is a matrix; so the small models lose no time
/// by being widened in every call.
const LEAST_NARROW: u64 = 1 << 20;
/// Time between two words on how far a load is.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// The weights of a model, to be loaded together onto one device.
///
/// A large matrix in half precision that is asked for in float32 on the CPU stays as it is, in its file: widened at load it would take
/// three times the memory traffic and twice the memory, which is what bounds the models of a machine and the time of a load. It is
/// widened where it is used ([`WeightPath::held`](super::WeightPath::held)), some per cent of a denoising step.
pub struct Loader {
    device: Device,
    components: Vec<(Component, Kind)>,
    least_narrow: u64,
}

/// One component of a [`Loader`].
#[derive(Clone, Copy)]
pub struct ComponentId(usize);

/// How far a load is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes of the files that were dealt with up to now: hashed, and placed or found.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

/// The memory of a model's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightMemory {
    /// Bytes of the model's tensors on the device.
    pub total: u64,
    /// How many of them were there already, for other models.
    pub shared: u64,
}

/// The loaded components.
pub struct LoadedWeights {
    weights: Vec<Option<Weights>>,
    /// The memory of all components.
    pub memory: WeightMemory,
}

impl LoadedWeights {
    /// The tensors of a component.
    ///
    /// # Errors
    /// A component that was taken before.
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
    /// What its file is remembered to hold, if it is.
    remembered: Option<Digest>,
}

impl Item<'_> {
    fn key(&self, digest: Digest, device: Device) -> Key {
        Key {
            digest,
            from: self.from,
            shape: self.shape.clone(),
            kind: self.kind,
            device,
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
            .ok_or_else(|| Error::internal("a tensor that its file lacks"))?;
        self.file.bytes(info)
    }
}

impl Loader {
    /// For a device.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            components: Vec::new(),
            least_narrow: LEAST_NARROW,
        }
    }

    /// With another limit than [`LEAST_NARROW`].
    #[cfg(test)]
    #[must_use]
    pub fn least_narrow(mut self, bytes: u64) -> Self {
        self.least_narrow = bytes;
        self
    }

    /// Opens the weight files of `folder`, whose tensors are to be had as `kind`; see [`Component::open`] for `stem`.
    ///
    /// # Errors
    /// Those of [`Component::open`].
    pub fn open(&mut self, folder: &Path, stem: &str, kind: Kind) -> Result<ComponentId> {
        let component = Component::open(folder, stem)?;
        self.components.push((component, kind));
        Ok(ComponentId(self.components.len() - 1))
    }

    /// Loads what is not in the store, in parallel. `report` is called as tensors are done, at most every two
    /// seconds.
    ///
    /// # Errors
    /// Out of memory, before anything is loaded, if the device has no room for it; a dtype that is not read (`Unsupported`); what
    /// CUDA says.
    pub fn load(self, report: &(dyn Fn(Progress) + Sync)) -> Result<LoadedWeights> {
        let device = self.device;
        let items = items(&self.components, device, self.least_narrow)?;
        let progress = Reporter::new(&items, report);

        let digests = in_parallel(&items, |item| {
            let digest = item.remembered.map_or_else(|| item.digest(), Ok);
            progress.add(item.length / 2);
            digest
        })?;
        remember(&items, &digests);

        let keys: Vec<Key> = std::iter::zip(&items, &digests)
            .map(|(item, &digest)| item.key(digest, device))
            .collect();
        // From the look at what is free until it is taken, one load on a device: two would both be promised the same memory.
        let placing = STORE.placing(device);
        let one_at_a_time = placing.lock().unwrap_or_else(PoisonError::into_inner);
        let used = weight_memory(&keys);
        let mapped = in_place(&items, &keys)?;
        check_room(used.total - used.shared, mapped, device)?;

        let upload = Upload::to(device)?;
        let numbered: Vec<usize> = (0..items.len()).collect();
        let held = in_parallel(&numbered, |&n| {
            let (item, key) = (&items[n], &keys[n]);
            let held = STORE
                .get(key, || {
                    let hashed = item.remembered.is_none();
                    materialize(item.file, &item.name, key.clone(), hashed, &upload)
                })
                .inspect_err(|_| STORE.memory.forget(item.file.identity()))?;
            progress.add(item.length - item.length / 2);
            Ok(held)
        })?;

        // Before anybody may read them.
        upload.finish()?;
        drop(one_at_a_time);

        let mut placed: Vec<HashMap<String, Arc<Held>>> = self.components.iter().map(|_| HashMap::new()).collect();
        for (item, held) in std::iter::zip(&items, held) {
            if let Some(component) = placed.get_mut(item.component) {
                component.insert(item.name.clone(), held);
            }
        }
        drop(items);
        let weights = std::iter::zip(self.components, placed)
            .map(|((component, kind), placed)| Some(Weights::new(component, placed, device, kind)))
            .collect();
        Ok(LoadedWeights { weights, memory: used })
    }
}

/// All floating-point tensors of the components, the largest first, so that no thread is left with one at the end. (Integers are
/// positions and the like, which models do not load.)
fn items(components: &[(Component, Kind)], device: Device, least_narrow: u64) -> Result<Vec<Item<'_>>> {
    let mut items = Vec::new();
    for (number, (component, target)) in components.iter().enumerate() {
        for file in component.files() {
            let remembered: Option<Digests> = STORE.memory.of(file.identity());
            for name in file.names() {
                let Some(info) = file.info(&name) else {
                    continue;
                };
                let from = file.kind(&name, info)?;
                if !matches!(from, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double) {
                    continue;
                }
                let (start, end) = info.data_offsets;
                let (shape, bytes) = (shape(info)?, (end - start) as u64);
                let narrow = device == Device::Cpu
                    && *target == Kind::Float
                    && matches!(from, Kind::Half | Kind::BFloat16)
                    && shape.len() > 1
                    && bytes >= least_narrow;
                items.push(Item {
                    component: number,
                    file,
                    from,
                    shape,
                    kind: if narrow { from } else { *target },
                    length: bytes,
                    remembered: remembered.as_ref().and_then(|digests| digests.get(&name).copied()),
                    name,
                });
            }
        }
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.length));
    Ok(items)
}

/// Remembers what files hold that were hashed now.
fn remember(items: &[Item<'_>], digests: &[Digest]) {
    let mut files: HashMap<*const TensorFile, (&TensorFile, HashMap<String, Digest>)> = HashMap::new();
    for (item, &digest) in std::iter::zip(items, digests) {
        if item.remembered.is_none() {
            let (_, names) = files
                .entry(std::ptr::from_ref(item.file))
                .or_insert_with(|| (item.file, HashMap::new()));
            names.insert(item.name.clone(), digest);
        }
    }
    for (file, digests) in files.into_values() {
        STORE.memory.remember(file.identity().clone(), Arc::new(digests));
    }
}

/// The memory of the tensors with these keys, each counted once.
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

/// How many bytes of what is not there yet are to be used in the maps of their files.
fn in_place(items: &[Item<'_>], keys: &[Key]) -> Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    for (item, key) in std::iter::zip(items, keys) {
        if seen.insert(key) && can_map(key, item.bytes()?) && !STORE.has(key) {
            bytes += key.bytes();
        }
    }
    Ok(bytes)
}

/// Whether the device has room for that many bytes more, `mapped` of which lie in files that are mapped already.
fn check_room(needed: u64, mapped: u64, device: Device) -> Result<()> {
    // What is there already takes nothing, however full the device is.
    if needed == 0 {
        return Ok(());
    }
    let reserve = if device == Device::Cpu { HOST_RESERVE } else { 0 };
    let Some(free) = memory::available(device, mapped)? else {
        return Ok(());
    };
    if needed > free.saturating_sub(reserve) {
        return Err(Error::out_of_memory(format!(
            "the weights take {needed} bytes more on {device:?}, where {free} are free and {reserve} of them kept so"
        )));
    }
    Ok(())
}

/// Says how far a load is, now and then.
struct Reporter<'a> {
    done: AtomicU64,
    total: u64,
    started: Instant,
    /// Reports up to now.
    said: AtomicU64,
    report: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Reporter<'a> {
    fn new(items: &[Item<'_>], report: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self {
            done: AtomicU64::new(0),
            total: items.iter().map(|item| item.length).sum(),
            started: Instant::now(),
            said: AtomicU64::new(0),
            report,
        }
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = (self.started.elapsed().as_millis() / REPORT_EVERY.as_millis()) as u64;
        let said = self.said.load(Ordering::Relaxed);
        if due > said
            && self
                .said
                .compare_exchange(said, due, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            (self.report)(Progress {
                done,
                total: self.total,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = check_room(u64::MAX, 0, Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
        check_room(0, 0, Device::Cpu).unwrap();
    }
}
