//! The LoRA files of a folder: found by name, loaded when they are first used, and kept within a bound.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lora::{AdaptableLayers, Lora};
use super::lora_files::{Identity, LoraFiles};
use diffusion_core::quote::is_file_name;
use diffusion_core::{Error, Result};

/// Names that are listed.
const MAX_LISTED: usize = 10_000;

/// The adapters in a folder, for one model on one device.
#[derive(Debug)]
pub struct LoraPool {
    folder: PathBuf,
    /// The folder that no link may lead out of.
    root: Option<PathBuf>,
    layers: AdaptableLayers,
    max_bytes: u64,
    kept: Mutex<Kept>,
    hits: AtomicU64,
    loads: AtomicU64,
    /// What was reported last.
    reported: Mutex<PoolUsage>,
}

#[derive(Debug, Default)]
struct Kept {
    by_file: HashMap<Identity, (Arc<Lora>, u64)>,
    /// Grows with each use.
    clock: u64,
}

/// How many adapters are kept, and how often they were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Adapters in memory.
    pub adapters: usize,
    /// Their memory in bytes.
    pub bytes: u64,
    /// Requests for an adapter that was in memory.
    pub hits: u64,
    /// Adapters that were loaded.
    pub loads: u64,
}

impl LoraPool {
    /// Makes the pool of a folder, which need not exist. At most `max_bytes` bytes of adapters are kept that no request uses.
    pub fn new(folder: PathBuf, layers: AdaptableLayers, max_bytes: u64) -> Self {
        Self {
            folder,
            root: None,
            layers,
            max_bytes,
            kept: Mutex::default(),
            hits: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            reported: Mutex::default(),
        }
    }

    /// Refuses files outside of `root`, once all links are followed.
    #[must_use]
    pub fn inside(mut self, root: Option<PathBuf>) -> Self {
        self.root = root;
        self
    }

    /// Calls `report` with the usage that was reported last and the usage now.
    pub fn report_usage(&self, report: impl FnOnce(PoolUsage, PoolUsage)) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.usage();
        report(std::mem::replace(&mut *reported, now), now);
    }

    /// Frees the adapters that no request uses, and calls `report` as [`LoraPool::report_usage`] does.
    pub fn clear(&self, report: impl FnOnce(PoolUsage, PoolUsage)) {
        self.kept().by_file.clear();
        self.report_usage(report);
    }

    /// Returns the names of the adapters that the folder has now and that requests can ask for, sorted; at most 10,000.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let names = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(".safetensors").unwrap_or(&name).to_owned();
            (is_file_name(&name) && LoraFiles::named(&self.folder, &name).is_some()).then_some(name)
        });
        let mut names: Vec<String> = names.take(MAX_LISTED).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns an adapter if it is in memory and its file has not changed.
    pub fn loaded(&self, name: &str) -> Option<Arc<Lora>> {
        let identity = LoraFiles::named(&self.folder, name)?.identity()?;
        let lora = self.kept().find(&identity)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(lora)
    }

    /// Returns an adapter, and loads it if it is not in memory or its file has changed.
    ///
    /// # Errors
    /// `NotFound` if the folder has no such adapter; `InvalidArgument` for a file outside of the root; those of [`Lora::load`].
    pub fn get(&self, name: &str) -> Result<Arc<Lora>> {
        if let Some(lora) = self.loaded(name) {
            return Ok(lora);
        }
        let files = LoraFiles::named(&self.folder, name)
            .ok_or_else(|| Error::not_found("the model has no LoRA of this name"))?;
        let (lora, identity) = files.load(&self.layers, self.root.as_deref())?;
        let lora = Arc::new(lora);
        self.loads.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept();
        kept.insert(identity, Arc::clone(&lora));
        kept.evict(self.max_bytes);
        Ok(lora)
    }

    /// Returns how many adapters are kept.
    pub fn usage(&self) -> PoolUsage {
        let kept = self.kept();
        PoolUsage {
            adapters: kept.by_file.len(),
            bytes: kept.bytes(),
            hits: self.hits.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, identity: &Identity) -> Option<Arc<Lora>> {
        self.clock += 1;
        let (lora, used) = self.by_file.get_mut(identity)?;
        *used = self.clock;
        Some(Arc::clone(lora))
    }

    fn insert(&mut self, identity: Identity, lora: Arc<Lora>) {
        self.clock += 1;
        self.by_file.insert(identity, (lora, self.clock));
    }

    fn bytes(&self) -> u64 {
        self.by_file.values().map(|(lora, _)| lora.bytes()).sum()
    }

    /// Frees the adapters that were not used for longest, down to `max_bytes`. The last one stays.
    fn evict(&mut self, max_bytes: u64) {
        while self.bytes() > max_bytes && self.by_file.len() > 1 {
            let oldest = self.by_file.iter().min_by_key(|(_, (_, used))| *used);
            let Some(identity) = oldest.map(|(identity, _)| identity.clone()) else {
                return;
            };
            self.by_file.remove(&identity);
        }
    }
}
